# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Folders that are there as a whole or not at all: what a killed or failed conversion leaves does not load."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# without these a folder does not load: the first to go, the last to come
_INDEXES = ("config.json", "model_index.json")
_WEIGHTS = "diffusion_pytorch_model*"


def check_output(output: Path) -> None:
    """Tries whether the output folder, or the nearest one above it that is there, can be written.

    Raises:
        OSError: it cannot.
    """
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"the output folder {str(output)!r} cannot be made: {str(existing)!r} is a file")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise PermissionError(f"the output folder {str(output)!r} cannot be written: {error.strerror}") from error


def partial_folder(output: Path) -> Path:
    """Where a folder grows until it is whole: on the same disk, hidden, with a name that the next run finds."""
    return output / ".partial" if output.is_dir() else output.parent / f".{output.name}.partial"


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Gives a folder to write to, whose files come to `output` when the block has ended without an error.

    Files of `output` that are not written anew stay, but for the weights that they replace.
    """
    partial = partial_folder(output)
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        install(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def install(partial: Path, output: Path) -> None:
    """Moves a finished folder to its place; no moment shows a mixture that loads."""
    files = [path.relative_to(partial) for path in partial.rglob("*") if path.is_file()]
    for file in files:
        _sync(partial / file)
    if not output.exists():
        os.replace(partial, output)
        return
    for file in files:
        if file.name in _INDEXES:
            (output / file).unlink(missing_ok=True)
            for stale in (output / file.parent).glob(_WEIGHTS):
                stale.unlink()
    for file in sorted(files, key=lambda path: path.name in _INDEXES):
        (output / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / file, output / file)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
