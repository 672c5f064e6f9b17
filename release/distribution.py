# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Builds and checks what goes to a package index: an sdist and a wheel whose README works there.

    python release/distribution.py --repository https://github.com/OWNER/NAME --output dist

An index page shows the README, but none of the files that it links to: links become addresses of the repository. The
checkout stays as it is; everything happens in a copy of the files that git tracks.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)")


def with_addresses(readme: str, repository: str) -> str:
    """Turns links to files of the repository into addresses: those of pictures to their bytes.

    Args:
        readme (`str`): Markdown.
        repository (`str`): web address of the repository, as GitHub has it.
    """

    def address(found: re.Match[str]) -> str:
        kind = "raw" if found[1] else "blob"
        return f"{found[1]}[{found[2]}]({repository}/{kind}/main/{found[3]})"

    return _LINK.sub(address, readme)


def with_urls(pyproject: str, repository: str) -> str:
    """Adds the repository's addresses to the metadata.

    Args:
        pyproject (`str`): text of `pyproject.toml`.
        repository (`str`): web address of the repository.
    """
    urls = {
        "Repository": repository,
        "Issues": f"{repository}/issues",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
    }
    lines = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    assert "[project.urls]\n" in pyproject
    return pyproject.replace("[project.urls]\n", f"[project.urls]\n{lines}")


def copy_tracked_files(folder: Path) -> None:
    """Copies what git tracks, as it is in the checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def build(repository: str, output: Path) -> list[Path]:
    """Builds sdist and wheel and checks their metadata.

    Args:
        repository (`str`): web address of the repository.
        output (`Path`): folder for the two files; made if need be.

    Returns:
        `list[Path]`: the two files.

    Raises:
        ValueError: `repository` is no web address.
        subprocess.CalledProcessError: the build or `twine check --strict` failed.
    """
    if urlsplit(repository).scheme not in ("http", "https") or not urlsplit(repository).netloc:
        raise ValueError(
            f"`repository` must be a web address such as https://github.com/OWNER/NAME, got {repository!r}"
        )
    repository = repository.rstrip("/")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        copy_tracked_files(copy)
        for name, change in (("README.md", with_addresses), ("pyproject.toml", with_urls)):
            (copy / name).write_text(change((copy / name).read_text(), repository))
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        built = [Path(shutil.copy2(file, output)) for file in sorted((copy / "dist").iterdir())]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, built)], check=True)
    return built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", required=True, metavar="URL", help="web address of the repository")
    parser.add_argument("--output", type=Path, default=Path("dist"), help="folder to write to (default: %(default)s)")
    options = parser.parse_args()
    try:
        for file in build(options.repository, options.output):
            print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
