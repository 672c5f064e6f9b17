# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints as folders that are whole or not there, and what can be said of one before it is loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..files import synced
from .run_state import AVERAGE, PROGRESS, saved_shapes, uses_plain_adam

# what a full disk raises: in Python and in safetensors
_WRITE_ERRORS = (OSError, SafetensorError)


def find_checkpoints(output_dir: Path) -> list[Path]:
    """Returns the complete checkpoints of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


@contextmanager
def unfinished_checkpoint(output_dir: Path, step: int) -> Iterator[Path]:
    """Gives the folder in which a checkpoint is written, until [`put_in_place`] gives it its name.

    Args:
        output_dir (`Path`): of the run.
        step (`int`): which becomes the checkpoint's name.

    Raises:
        OSError: it could not be written; what there was of it is deleted, and older checkpoints are as they were.
    """
    folder = output_dir / f"checkpoint-{step}"
    try:
        yield _unfinished(folder)
    except _WRITE_ERRORS as error:
        shutil.rmtree(_unfinished(folder), ignore_errors=True)
        older = find_checkpoints(output_dir)
        rest = f"{older[-1].name!r} is whole" if older else "there is no older one"
        raise OSError(
            f"{folder.name!r} could not be written to {str(output_dir)!r} ({error}); {rest}. Make room and go on with "
            "--resume_from_checkpoint latest"
        ) from error


def put_in_place(output_dir: Path, step: int, total_limit: int | None) -> None:
    """Gives a complete checkpoint its name, and deletes the oldest ones beyond a limit; for one process.

    Args:
        output_dir (`Path`): of the run.
        step (`int`): of the checkpoint.
        total_limit (`int`, *optional*): how many to keep; all by default.
    """
    folder = output_dir / f"checkpoint-{step}"
    if folder.exists():
        _delete(folder)
    for path in _unfinished(folder).iterdir():
        synced(path)
    synced(_unfinished(folder))
    os.replace(_unfinished(folder), folder)
    synced(output_dir)
    for old in find_checkpoints(output_dir)[: -total_limit if total_limit else 0]:
        _delete(old)


def delete_leftovers(output_dir: Path) -> list[Path]:
    """Deletes what a killed run left of checkpoints that it was writing or deleting, and returns what it was."""
    leftovers = sorted(output_dir.glob("checkpoint-*.tmp"))
    for path in leftovers:
        shutil.rmtree(path)
    return leftovers


def check_checkpoint(folder: Path, trained: Mapping[str, torch.Tensor], averaged: bool, in_8_bits: bool) -> None:
    """Checks that a checkpoint is one of this stage, with networks of these shapes.

    Args:
        folder (`Path`): of the checkpoint.
        trained (mapping of `str` to `torch.Tensor`): what is trained, by name.
        averaged (`bool`): whether the run averages its weights.
        in_8_bits (`bool`): whether its optimiser is 8-bit Adam.

    Raises:
        ValueError: it is not there, incomplete, of pickles, or of another stage, shape, optimiser or way of
            averaging.
    """
    problem = f"`resume_from_checkpoint` {str(folder)!r}"
    if not folder.is_dir():
        raise ValueError(f"{problem} is not a folder")
    if not (folder / PROGRESS).is_file() and any(folder.glob("*.pkl")):
        raise ValueError(
            f"{problem} holds pickles, as version 0.1.0 wrote them: reading them could run anything, so they are not "
            "read. Start a new run from its weights instead"
        )
    try:
        json.loads((folder / PROGRESS).read_text())
        saved, plain = saved_shapes(folder), uses_plain_adam(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{problem} is no complete checkpoint: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in trained.items()}
    if saved.keys() != expected.keys():
        missing, foreign = sorted(expected.keys() - saved.keys()), sorted(saved.keys() - expected.keys())
        raise ValueError(
            f"{problem} was made by another stage, or trains other parameters: {len(missing)} are missing there "
            f"{missing[:2]}, {len(foreign)} are not trained here {foreign[:2]}"
        )
    for name, shape in expected.items():
        if saved[name] != shape:
            raise ValueError(f"{problem}: {name!r} has shape {list(saved[name])} there, {list(shape)} here")
    if (folder / AVERAGE).is_file() != averaged:
        raise ValueError(f"{problem} was written {'without' if averaged else 'with'} --use_ema, this run is not")
    # 8-bit Adam has another name for the moments, and neither reads the other one's
    if plain is not None and plain == in_8_bits:
        fault = "without" if plain else "with"
        raise ValueError(f"checkpoint {str(folder)!r} was written {fault} --use_8bit_adam: resume it likewise")


def _unfinished(folder: Path) -> Path:
    return folder.with_name(folder.name + ".tmp")


def _delete(folder: Path) -> None:
    """Deletes a checkpoint so that no kill leaves a half of it under its name."""
    doomed = folder.with_name(folder.name + ".deleted.tmp")
    os.replace(folder, doomed)
    shutil.rmtree(doomed)
