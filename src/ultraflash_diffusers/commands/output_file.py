# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The file that a command writes: opened as its options say, and what is told where it cannot be finished."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..video_io import VideoWriter


@contextmanager
def opened_writer(options: argparse.Namespace, width: int, height: int, **arguments: Any) -> Iterator[VideoWriter]:
    """Opens the output, finishes it at the end, and says what is kept and how to go on where that is not reached.

    Args:
        options (`argparse.Namespace`): with `output`, `crf`, `resume` and `overwrite`.
        width, height (`int`): of the frames.
        arguments: more of [`VideoWriter`]'s.
    """
    try:
        writer = VideoWriter(
            options.output,
            width,
            height,
            crf=options.crf,
            resume=options.resume,
            overwrite=options.overwrite,
            **arguments,
        )
    except (FileExistsError, ValueError) as error:
        in_options = str(error).replace("resume=True", "--resume").replace("overwrite=True", "--overwrite")
        raise type(error)(in_options) from error
    try:
        with writer:
            yield writer
    except BaseException as error:
        if writer.partial_path.exists():
            kept = f"{writer.frames_written} frames are kept in {writer.partial_path}, which plays"
            print(f"ultraflash: {kept}; the same command with --resume goes on", file=sys.stderr)
        if isinstance(error, torch.OutOfMemoryError):
            raise ValueError(f"{width}x{height} frames need more memory than the device has: {error}") from error
        raise
