# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Puts the repository's own pages into the site, with links that hold in both places.

Links are written as they hold in the repository. The site has the same tree, with what is in `docs` at its root.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# pages, and what pages link to
TAKEN = (
    "*.md",
    "CITATION.cff",
    "Dockerfile",
    "LICENSE",
    "benchmarks/**/*.md",
    "demo/*.md",
    "demo/*.webp",
    "examples/*",
    "integrations/**/*.md",
    "src/ultraflash_diffusers/checkpoint/README.md",
    "training/**/*.md",
    "training/recipes/*.sh",
)
LEFT_OUT = {"README.md"}  # the site has a first page of its own
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the repository's pages at the paths that they have there."""
    for path in sorted({path for pattern in TAKEN for path in ROOT.glob(pattern) if path.is_file()}):
        name = path.relative_to(ROOT).as_posix()
        if name not in LEFT_OUT:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links of the repository into links of the site."""
    here = page.file.src_uri
    source = posixpath.relpath(page.file.abs_src_path or here, ROOT.as_posix())

    def in_site(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        return posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(here) or ".")

    return _LINK.sub(in_site, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Shows types and references of diffusers' docstrings, which have Markdown of their own, as plain code."""
    html = re.sub(r"<code>[^<]*`[^<]*</code>(, default: <code>[^<]*</code>)?", _plain_type, html)
    return re.sub(r"\[<code>~?([^<]*)</code>\]", r"<code>\1</code>", html)


def _plain_type(found: re.Match[str]) -> str:
    text = re.sub(r"[`*\[\]~]|</?code>|, default: <.*", "", found[0])
    return f"<code>{text}</code>"
