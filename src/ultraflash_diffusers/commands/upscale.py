# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash upscale`: a video file in, the same at a higher resolution out."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from .pipeline_options import (
    add_output_options,
    add_pipeline_options,
    add_stream_options,
    checkpoint_name,
    load_pipeline,
    positive,
    upsampler_scale,
)

if TYPE_CHECKING:
    from ..pipelines.video_stream import VideoStream
    from ..video_io import VideoWriter
    from .stream_to_file import FileStreamState, TimedReader

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_upscale(commands: SubParsers) -> argparse.ArgumentParser:
    """Declares the sub-command and returns its parser."""
    command = commands.add_parser(
        "upscale",
        help="a video file at a higher resolution",
        description="Upscales a video of any length in constant memory. Sound, subtitles, timestamps and colour tags "
        "are kept. Until it is finished, OUTPUT.partial.mp4 holds what is done, and plays; --resume goes on from it.",
    )
    command.add_argument("input", type=Path, metavar="INPUT", help="video file")
    command.add_argument("output", type=Path, metavar="OUTPUT", help="file to write: .mp4, .m4v, .mov or .mkv")
    command.add_argument("--scale", type=positive, help="by how much; only the checkpoint's own scale")
    command.add_argument("--prompt", help="what the video shows, for checkpoints with a text encoder")
    command.add_argument(
        "--color-correction",
        choices=("wavelet", "none"),
        default="wavelet",
        help="keep the colours of the input (default: %(default)s)",
    )
    add_stream_options(command)
    add_pipeline_options(command)
    add_output_options(command)
    command.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same command")
    command.set_defaults(run=_run)
    return command


def _run(options: argparse.Namespace) -> None:
    from ..video_io import VideoWriter
    from .stream_to_file import Report, TimedReader, write_stream

    reader = TimedReader(options.input)
    scale = _checked_scale(options)
    width, height = reader.info.width * scale, reader.info.height * scale
    writer = VideoWriter(
        options.output,
        width,
        height,
        source=reader,
        crf=options.crf,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    try:
        with writer:
            if writer.complete:  # only finishing the file was interrupted
                report = Report(options.output, width, height, frames=writer.frames_written)
            else:
                stream = _stream(options, reader, _resumed(writer, reader))
                report = write_stream(stream, writer, _expected_frames(options, reader), reader.times)
    except KeyboardInterrupt:
        kept = f"its frames are kept in {writer.partial_path}, the same command with --resume goes on"
        print(f"ultraflash: interrupted after {writer.frames_written} frames: {kept}", file=sys.stderr)
        raise
    if reader.frames_damaged:
        print(f"ultraflash: {reader.frames_damaged} damaged parts of the input were skipped", file=sys.stderr)
    report.show(options.json)


def _checked_scale(options: argparse.Namespace) -> int:
    own = upsampler_scale(checkpoint_name(options))
    if options.scale not in (None, own):
        raise ValueError(f"--scale {options.scale}: this checkpoint upscales {own} times, and only that")
    return own


def _expected_frames(options: argparse.Namespace, reader: TimedReader) -> int | None:
    counts = [count for count in (options.num_frames, reader.info.num_frames) if count is not None]
    return min(counts, default=None)


def _resumed(writer: VideoWriter, reader: TimedReader) -> FileStreamState | None:
    """The state at the writer's last checkpoint; `None` where the clip starts anew."""
    from .stream_to_file import FileStreamState

    if writer.state_path is None:
        return None
    state = FileStreamState.load(writer.state_path)
    reader.times = deque(state.times)
    return state


def _stream(options: argparse.Namespace, reader: TimedReader, state: FileStreamState | None) -> VideoStream:
    import torch

    pipe = load_pipeline(options)
    return pipe.stream(
        options.prompt,
        reader,
        num_frames=options.num_frames,
        num_inference_steps=options.steps,
        # a resumed stream keeps its seeds
        generator=torch.Generator().manual_seed(options.seed) if state is None else None,
        color_correction=options.color_correction,
        output_type="np",
        state=None if state is None else state.stream,
    )
