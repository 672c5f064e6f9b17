# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the commands that write a video file share: their options, and its errors in the words of these."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .pipeline_options import (
    checkpoint_name,
    chosen_dtype,
    load_pipeline,
    pipeline_index,
    seconds,
    upsampler_scale,
)

if TYPE_CHECKING:
    from .. import UltraFlashStreamingPipeline
    from ..pipelines.video_files import LazyPipeline


def add_strict(command: argparse.ArgumentParser) -> None:
    """Declares what becomes of prompts that are not understood in full."""
    command.add_argument(
        "--strict",
        action="store_true",
        help="refuse a prompt of which words are unknown to the checkpoint, or cut off, instead of warning",
    )


def add_output_options(command: argparse.ArgumentParser) -> None:
    """Declares how the result is written."""
    command.add_argument("--crf", type=float, default=18, help="x264's rate factor, 1 (best) to 51 (default: 18)")
    command.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same command")
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace OUTPUT, if it exists, once all is done, and without --resume what an interrupted run left",
    )
    command.add_argument(
        "--save-every",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="how often to save what --resume goes on from (default: %(default)s); less often where saving would "
        "take over a twentieth of the time",
    )


def lazy_pipeline(options: argparse.Namespace) -> LazyPipeline:
    """The pipeline that was asked for: what its checkpoint says of it, and how it is loaded.

    Raises:
        FileNotFoundError, OSError, ValueError: there is no such checkpoint or device.
    """
    from ..pipelines.video_files import LazyPipeline

    loaded: dict[tuple[int, int] | None, UltraFlashStreamingPipeline] = {}

    def load(height: int, width: int) -> UltraFlashStreamingPipeline:
        size = (height, width) if options.memory else None  # which then decides how it runs
        if size not in loaded:
            loaded.clear()
            loaded[size] = load_pipeline(options, (height, width))
            loaded[size].strict_prompts = options.strict
        return loaded[size]

    checkpoint = checkpoint_name(options)
    return LazyPipeline(pipeline_index(checkpoint), upsampler_scale(checkpoint), load)


def file_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that [`upscale_file`] and [`generate_file`] share."""
    made_with = {"checkpoint": options.checkpoint, "dtype": chosen_dtype(options), "memory": options.memory}
    return {
        "seed": options.seed,
        "num_inference_steps": options.steps,
        "crf": options.crf,
        "resume": options.resume,
        "overwrite": options.overwrite,
        "save_every": options.save_every,
        "progress": not options.json,
        "made_with": made_with,
    }


@contextmanager
def in_words_of_options() -> Iterator[None]:
    """Prints an error's notes, such as what is kept of the file, and says options where it says arguments."""
    try:
        yield
    except BaseException as error:
        for note in getattr(error, "__notes__", ()):
            print(f"ultraflash: {_in_options(note)}", file=sys.stderr)
        if type(error) in (FileExistsError, ValueError):
            raise type(error)(_in_options(str(error))) from error
        raise


def _in_options(text: str) -> str:
    return text.replace("resume=True", "--resume").replace("overwrite=True", "--overwrite")
