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
        raise type(error)(_in_options(error)) from error
    try:
        with writer:
            yield writer
    except BaseException as error:
        print(f"ultraflash: {_what_is_kept(writer)}", file=sys.stderr)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or _is_out_of_memory(error):
            raise ValueError(f"{width}x{height} frames need more memory than there is: {error}") from error
        if isinstance(error, FileExistsError):
            raise FileExistsError(_in_options(error)) from error
        raise


def _in_options(error: Exception) -> str:
    """An error of [`VideoWriter`] in the words of the command line."""
    return str(error).replace("resume=True", "--resume").replace("overwrite=True", "--overwrite")


def _what_is_kept(writer: VideoWriter) -> str:
    if not writer.partial_path.exists() or not writer.frames_written:
        return "nothing was finished that could be kept"
    kept = f"{writer.frames_written} frames are kept in {writer.partial_path}, which plays"
    if not writer.frames_done:
        return f"{kept}; the same command with --resume begins anew"
    return f"{kept}; the same command with --resume goes on from frame {writer.frames_done}"


def _is_out_of_memory(error: BaseException) -> bool:
    # PyTorch has no class of its own for what the CPU's allocator says
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
