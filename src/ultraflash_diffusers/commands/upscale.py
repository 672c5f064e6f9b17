# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash upscale`: a video file in, the same at a higher resolution out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .pipeline_options import (
    add_output_options,
    add_pipeline_options,
    add_stream_options,
    checkpoint_name,
    chosen_dtype,
    load_pipeline,
    missing_components,
    positive,
    share,
    upsampler_scale,
)

if TYPE_CHECKING:
    from ..pipelines.file_stream import TimedReader
    from ..pipelines.video_stream import PipelineStreamState, VideoStream

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
    command.add_argument(
        "--strength",
        type=share,
        default=1.0,
        help="how much of the detail that the networks add is shown: 0 is the resampled input (default: %(default)s)",
    )
    command.add_argument("--num-frames", type=positive, metavar="N", help="take the first N frames, or all there are")
    add_stream_options(command)
    add_pipeline_options(command)
    add_output_options(command)
    command.set_defaults(run=_run)
    return command


def _run(options: argparse.Namespace) -> None:
    from ..pipelines.file_stream import FileStream, TimedReader
    from .output_file import opened_writer

    reader = TimedReader(options.input, options.num_frames)
    scale = _checked_scale(options)
    size = (reader.info.width * scale, reader.info.height * scale)
    with opened_writer(options, *size, source=reader, made_with=_made_with(options)) as writer:
        expected, progress = reader.expected_frames, not options.json
        stream = FileStream(writer, expected, options.save_every, reader, progress)
        report = stream.run(lambda state: _stream(options, reader, state))
    report.show(options.json)


def _checked_scale(options: argparse.Namespace) -> int:
    checkpoint = checkpoint_name(options)
    if options.prompt is not None and missing_components(checkpoint, "text_encoder", "tokenizer"):
        raise ValueError(f"--prompt {options.prompt!r}: this checkpoint has no text encoder to read it")
    own = upsampler_scale(checkpoint)
    if options.scale not in (None, own):
        raise ValueError(f"--scale {options.scale}: this checkpoint upscales {own} times, and only that")
    return own


def _made_with(options: argparse.Namespace) -> dict[str, Any]:
    """What the frames depend on, beside the clip."""
    return {
        "checkpoint": options.checkpoint,
        "dtype": chosen_dtype(options),
        "prompt": options.prompt,
        "color_correction": options.color_correction,
        "strength": options.strength,
        "num_frames": options.num_frames,
        "seed": options.seed,
        "steps": options.steps,
    }


def _stream(options: argparse.Namespace, reader: TimedReader, state: PipelineStreamState | None) -> VideoStream:
    import torch

    return load_pipeline(options).stream(
        options.prompt,
        reader,
        num_inference_steps=options.steps,
        # a resumed stream keeps its seeds
        generator=torch.Generator().manual_seed(options.seed) if state is None else None,
        color_correction=options.color_correction,
        strength=options.strength,
        output_type="uint8",
        state=state,
    )
