# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A cache of the Hub as huggingface_hub lays it out, with files that a test made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

COMMIT = "a" * 40


def fill_hub_cache(cache: Path, repository: str, files: Mapping[str, Path]) -> None:
    """Puts files into the cache: each a blob, and under its name a link to it in the snapshot of the main branch."""
    place = cache / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    for folder in (place / "refs", place / "blobs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(COMMIT)
    for name, path in files.items():
        blob = place / "blobs" / f"{len(list((place / 'blobs').iterdir())):064x}"
        blob.write_bytes(path.read_bytes())
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
