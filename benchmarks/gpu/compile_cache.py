# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What torch has compiled, as files that travel: a later call on a fresh machine need not compile it again."""

from __future__ import annotations

from pathlib import Path

import torch

_LARGEST = 15 * 2**20  # bytes of a stage's file; larger ones are not worth the transfer


def save(folder: Path, stage: str) -> None:
    """Writes what this process has compiled, if anything."""
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is not None and len(artifacts[0]) <= _LARGEST:
        folder.mkdir(exist_ok=True)
        (folder / stage).write_bytes(artifacts[0])


def load(folder: Path) -> None:
    """Lets this process find what the files hold."""
    for path in sorted(folder.iterdir()):
        torch.compiler.load_cache_artifacts(path.read_bytes())
