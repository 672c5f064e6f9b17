# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash generate`: a prompt in, a video out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..allocation import freed_memory_kept
from .file_options import add_output_options, add_strict, file_arguments, in_words_of_options, lazy_pipeline
from .generator_options import add_generator_options, generator_keywords
from .pipeline_options import (
    add_pipeline_options,
    add_stream_options,
    checkpoint_name,
    missing_components,
    positive,
)

if TYPE_CHECKING:
    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_generate(commands: SubParsers) -> argparse.ArgumentParser:
    """Declares the sub-command and returns its parser."""
    command = commands.add_parser(
        "generate",
        help="a video from a prompt",
        description="Generates a video from text with a checkpoint that holds a text generator. Until it is finished, "
        "OUTPUT.partial.mp4 holds what is done, and plays; --resume goes on from it.",
    )
    command.add_argument("prompt", metavar="PROMPT", help="what the video shows")
    command.add_argument(
        "--output",
        type=Path,
        default=Path("ultraflash.mp4"),
        help="file to write: .mp4, .m4v, .mov or .mkv (default: %(default)s)",
    )
    command.add_argument("--height", type=positive, help="pixels of the result; the checkpoint's own by default")
    command.add_argument("--width", type=positive, help="likewise")
    command.add_argument("--num-frames", type=positive, metavar="N", help="frames; the checkpoint's own by default")
    command.add_argument("--fps", type=positive, help="frames a second; the checkpoint's own by default")
    add_generator_options(command)
    add_strict(command)
    add_stream_options(command)
    add_pipeline_options(command)
    add_output_options(command)
    command.set_defaults(run=_run)
    return command


def _run(options: argparse.Namespace) -> None:
    from ..pipelines.video_files import generate_file

    _check_generator(checkpoint_name(options))
    keywords = generator_keywords(options)
    with in_words_of_options(), freed_memory_kept():
        report = generate_file(
            lazy_pipeline(options),
            options.prompt,
            options.output,
            height=options.height,
            width=options.width,
            num_frames=options.num_frames,
            fps=options.fps,
            window_frames=options.window_frames,
            sink_frames=options.sink_frames,
            source_kwargs=keywords,
            **file_arguments(options),
        )
    report.show(options.json)


def _check_generator(checkpoint: str) -> None:
    missing = missing_components(checkpoint, "generator_transformer", "text_encoder", "tokenizer")
    if missing:
        raise ValueError(
            f"this checkpoint has no {', '.join(missing)}, so it cannot make video from text: name one that has "
            "with --checkpoint (`ultraflash convert` makes the networks from published weights), or use "
            "`ultraflash upscale` on a video"
        )
