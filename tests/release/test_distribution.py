# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What goes to a package index is whole, and its README works there."""

from __future__ import annotations

import email
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from release import distribution

ADDRESS = "https://example.org/owner/name"


def test_links_of_the_readme_become_addresses() -> None:
    readme = "![a picture](docs/x.webp) [page](docs/x.md), [paper](https://example.org/x), [here](#below)"
    assert distribution.with_addresses(readme, ADDRESS) == (
        f"![a picture]({ADDRESS}/raw/main/docs/x.webp) [page]({ADDRESS}/blob/main/docs/x.md), "
        "[paper](https://example.org/x), [here](#below)"
    )


def test_addresses_go_into_the_metadata() -> None:
    text = distribution.with_urls((distribution.ROOT / "pyproject.toml").read_text(), ADDRESS)
    urls = tomllib.loads(text)["project"]["urls"]
    assert urls["Repository"] == ADDRESS
    assert urls["Paper"].startswith("https://arxiv.org/")


def test_the_readme_links_to_files_that_are_there() -> None:
    readme = (distribution.ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!\w+:|#)([^)#]+)", readme)
    assert links
    for link in links:
        assert (distribution.ROOT / link).exists(), link


@pytest.mark.parametrize("repository", ["owner/name", "ftp://example.org/x", ""])
def test_an_address_that_is_none_is_refused(repository: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`repository` must be a web address"):
        distribution.build(repository, tmp_path)


@pytest.mark.slow
def test_sdist_and_wheel_are_whole(tmp_path: Path) -> None:
    wheel, sdist = sorted(distribution.build(ADDRESS, tmp_path), key=lambda file: file.suffix, reverse=True)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = email.message_from_bytes(archive.read(next(name for name in names if name.endswith("METADATA"))))
    packages = {name.split("/")[0] for name in names}
    assert packages == {"ultraflash_diffusers", f"ultraflash_diffusers-{metadata['Version']}.dist-info"}
    assert {"ultraflash_diffusers/py.typed", "ultraflash_diffusers/checkpoint/model_index.json"} <= set(names)
    assert f"Repository, {ADDRESS}" in metadata.get_all("Project-URL")
    assert not re.search(r"\]\((?!\w+:|#)", metadata.get_payload())
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "tests/conftest.py",
        "docs/index.md",
        "training/recipes/packaged_checkpoint.sh",
        "mkdocs.yml",
        "LICENSE",
    ):
        assert name in files
