# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash generate`: a prompt in, a video out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .pipeline_options import add_output_options, add_pipeline_options, add_stream_options, load_pipeline, positive

if TYPE_CHECKING:
    from .. import UltraFlashStreamingPipeline

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT_FRAMES = 81  # five seconds at the rate of the clips that Wan's generators were trained on
_DEFAULT_FPS = 16


def add_generate(commands: SubParsers) -> argparse.ArgumentParser:
    """Declares the sub-command and returns its parser."""
    command = commands.add_parser(
        "generate",
        help="a video from a prompt",
        description="Generates a video from text with a checkpoint that holds a text generator.",
    )
    command.add_argument("prompt", metavar="PROMPT", help="what the video shows")
    command.add_argument(
        "--output", type=Path, default=Path("ultraflash.mp4"), help="file to write (default: %(default)s)"
    )
    command.add_argument("--height", type=positive, help="pixels of the result; the checkpoint's own by default")
    command.add_argument("--width", type=positive, help="likewise")
    command.add_argument("--fps", type=positive, default=_DEFAULT_FPS, help="frames a second (default: %(default)s)")
    add_stream_options(command)
    add_pipeline_options(command)
    add_output_options(command)
    command.set_defaults(run=_run)
    return command


def _run(options: argparse.Namespace) -> None:
    import torch

    from ..video_io import VideoWriter
    from .stream_to_file import write_stream

    if not options.prompt.strip():
        raise ValueError("PROMPT is empty: say what the video shows")
    pipe = load_pipeline(options)
    _check_generator(pipe)
    height, width = options.height or pipe.config.default_height, options.width or pipe.config.default_width
    num_frames = options.num_frames or _DEFAULT_FRAMES
    writer = VideoWriter(options.output, width, height, fps=options.fps, crf=options.crf, overwrite=options.overwrite)
    with writer:
        stream = pipe.stream(
            options.prompt,
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=options.steps,
            generator=torch.Generator().manual_seed(options.seed),
            output_type="np",
        )
        report = write_stream(stream, writer, num_frames)
    report.show(options.json)


def _check_generator(pipe: UltraFlashStreamingPipeline) -> None:
    missing = [name for name in ("generator_transformer", "text_encoder", "tokenizer") if getattr(pipe, name) is None]
    if missing:
        raise ValueError(
            f"this checkpoint has no {', '.join(missing)}, so it cannot make video from text: name one that has "
            "with --checkpoint (`ultraflash convert` makes the networks from published weights), or use "
            "`ultraflash upscale` on a video"
        )
