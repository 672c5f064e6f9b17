# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the documentation tells people to run: its code blocks, by page and line."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A fenced block.

    Args:
        page (`Path`): the Markdown file.
        line (`int`): of its first line of text, from 1.
        language (`str`): what stands behind the fence.
        text (`str`): what is in it.
    """

    page: Path
    line: int
    language: str
    text: str


def snippets(page: Path) -> list[Snippet]:
    """All fenced blocks of a page."""
    text = page.read_text()
    return [
        Snippet(page, text.count("\n", 0, found.start()) + 2, found[2], found[3]) for found in _FENCE.finditer(text)
    ]


def commands(page: Path, program: str, language: str | None = None) -> list[list[str]]:
    """The words after a program's name, of each command line in a page's blocks (of one language, or all)."""
    found = []
    for snippet in snippets(page):
        if snippet.language != "python" and language in (None, snippet.language):
            for line in snippet.text.replace("\\\n", " ").splitlines():
                if line.startswith(f"{program} "):
                    found.append(shlex.split(line, comments=True)[1:])
    return found
