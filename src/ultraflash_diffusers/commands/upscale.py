# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash upscale`: a video file in, the same at a higher resolution out."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .pipeline_options import (
    add_output_options,
    add_pipeline_options,
    add_stream_options,
    add_strict,
    checkpoint_name,
    chosen_dtype,
    load_pipeline,
    missing_components,
    natural,
    positive,
    share,
    upsampler_scale,
)

if TYPE_CHECKING:
    from ..pipelines.video_stream import PipelineStreamState, VideoStream
    from ..video_io import VideoReader

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_upscale(commands: SubParsers) -> argparse.ArgumentParser:
    """Declares the sub-command and returns its parser."""
    command = commands.add_parser(
        "upscale",
        help="a video file at a higher resolution",
        description="Upscales a video of any length in constant memory. Sound, subtitles, timestamps and colour tags "
        "are kept. Until it is finished, OUTPUT.partial.mp4 holds what is done, and plays; --resume goes on from it.",
    )
    command.add_argument("input", type=Path, metavar="INPUT", help="video file, or folder of numbered pictures")
    command.add_argument("output", type=Path, metavar="OUTPUT", help="file to write: .mp4, .m4v, .mov or .mkv")
    _add_size_options(command)
    _add_track_options(command)
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
    add_strict(command)
    add_stream_options(command)
    add_pipeline_options(command)
    add_output_options(command)
    command.set_defaults(run=_run)
    return command


def _add_size_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--scale",
        type=_factor,
        metavar="FACTOR",
        help="by how much; the checkpoint's own scale by default. Frames are made at that and resampled to others",
    )
    command.add_argument("--size", type=_size, metavar="WxH", help="size of the result, e.g. 1920x1080")
    command.add_argument("--width", type=positive, help="width of the result; the height keeps the aspect")
    command.add_argument("--height", type=positive, help="height of the result; the width keeps the aspect")


def _add_track_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--video-track", type=natural, metavar="N", help="which video track, from 0; the film itself")
    sound = command.add_mutually_exclusive_group()
    sound.add_argument(
        "--audio-track", type=natural, action="append", metavar="N", help="which sound, from 0; repeatable; all of it"
    )
    sound.add_argument("--no-audio", action="store_true", help="without sound")
    command.add_argument("--deinterlace", action="store_true", help="make whole pictures of interlaced ones")
    command.add_argument("--fps", type=_factor, help="frames a second of a folder of pictures (default: 24)")
    command.add_argument(
        "--bit-depth",
        type=int,
        choices=(8, 10),
        help="bits a sample: 8 is H.264, 10 is HEVC, which keeps HDR; as INPUT has by default",
    )


def _run(options: argparse.Namespace) -> None:
    from ..pipelines.file_stream import FileStream
    from ..video_io import VideoReader
    from .output_file import opened_writer

    reader = VideoReader(
        options.input,
        track=options.video_track,
        num_frames=options.num_frames,
        fps=options.fps,
        deinterlace=options.deinterlace,
        high_bit_depth={None: None, 8: False, 10: True}[options.bit_depth],
    )
    scale = _checkpoint_scale(options)
    width, height = _asked_size(options, reader) or (reader.info.width * scale, reader.info.height * scale)
    arguments: dict[str, Any] = {
        "source": reader,
        "made_with": _made_with(options),
        "bit_depth": 10 if reader.high_bit_depth else 8,
        # whoever names both sides means square pixels
        "sample_aspect_ratio": Fraction(1) if options.size or (options.width and options.height) else None,
        "audio_tracks": () if options.no_audio else options.audio_track,
    }
    with opened_writer(options, width, height, **arguments) as writer:
        stream = FileStream(writer, reader.info.num_frames, options.save_every, progress=not options.json)
        report = stream.run(lambda state: _stream(options, reader, state))
    report.show(options.json)


def _checkpoint_scale(options: argparse.Namespace) -> int:
    checkpoint = checkpoint_name(options)
    if options.prompt is not None and missing_components(checkpoint, "text_encoder", "tokenizer"):
        raise ValueError(f"--prompt {options.prompt!r}: this checkpoint has no text encoder to read it")
    return upsampler_scale(checkpoint)


def _asked_size(options: argparse.Namespace, reader: VideoReader) -> tuple[int, int] | None:
    from ..pipelines.resampling import target_size

    if options.size is not None and (options.width or options.height):
        raise ValueError(f"--size {'x'.join(map(str, options.size))} and --width or --height are both given")
    width, height = options.size or (options.width, options.height)
    info = reader.info
    return target_size(info.width, info.height, scale=options.scale, target_width=width, target_height=height)


def _factor(text: str) -> float:
    """Reads a number of more than 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of more than 0")
    return value


def _size(text: str) -> tuple[int, int]:
    """Reads `WIDTHxHEIGHT`."""
    width, x, height = text.lower().partition("x")
    if not x:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, expected e.g. 1920x1080")
    return positive(width), positive(height)


def _made_with(options: argparse.Namespace) -> dict[str, Any]:
    """What the frames depend on, beside the clip."""
    return {
        "checkpoint": options.checkpoint,
        "dtype": chosen_dtype(options),
        "memory": options.memory,
        "prompt": options.prompt,
        "color_correction": options.color_correction,
        "strength": options.strength,
        "num_frames": options.num_frames,
        "video_track": options.video_track,
        "deinterlace": options.deinterlace,
        "seed": options.seed,
        "steps": options.steps,
    }


def _stream(options: argparse.Namespace, reader: VideoReader, state: PipelineStreamState | None) -> VideoStream:
    import torch

    output_type: Literal["np", "uint8"] = "np" if reader.high_bit_depth else "uint8"
    scale = upsampler_scale(checkpoint_name(options))
    size = (scale * reader.info.height, scale * reader.info.width)
    pipe = load_pipeline(options, size)
    pipe.strict_prompts = options.strict
    return pipe.stream(
        options.prompt,
        reader,
        num_inference_steps=options.steps,
        # a resumed stream keeps its seeds
        generator=torch.Generator().manual_seed(options.seed) if state is None else None,
        color_correction=options.color_correction,
        strength=options.strength,
        output_type=output_type,
        state=state,
    )
