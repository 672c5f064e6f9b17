# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash upscale`: a video file in, the same at a higher resolution out."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..allocation import freed_memory_kept
from .file_options import add_output_options, add_strict, file_arguments, in_words_of_options, lazy_pipeline
from .pipeline_options import (
    add_pipeline_options,
    add_stream_options,
    checkpoint_name,
    factor,
    missing_components,
    natural,
    positive,
    share,
)

if TYPE_CHECKING:
    from ..pipelines.file_stream import Report
    from ..pipelines.video_files import LazyPipeline
    from .upscale_folder import Task

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_upscale(commands: SubParsers) -> argparse.ArgumentParser:
    """Declares the sub-command and returns its parser."""
    command = commands.add_parser(
        "upscale",
        help="a video file at a higher resolution",
        description="Upscales a video of any length in constant memory. Sound, subtitles, timestamps and colour tags "
        "are kept. Until it is finished, OUTPUT.partial.mp4 holds what is done, and plays; --resume goes on from it.",
    )
    command.add_argument(
        "input", type=Path, metavar="INPUT", help="video file, folder of numbered pictures, or folder of videos"
    )
    command.add_argument(
        "output", type=Path, metavar="OUTPUT", help="file to write: .mp4, .m4v, .mov or .mkv; of videos, a folder"
    )
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
    command.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="make the videos of a folder by Ray, one file a task: on a cluster, or on this machine",
    )
    add_strict(command)
    add_stream_options(command)
    add_pipeline_options(command)
    add_output_options(command)
    command.set_defaults(run=_run)
    return command


def _add_size_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--scale",
        type=factor,
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
    command.add_argument("--fps", type=factor, help="frames a second of a folder of pictures (default: 24)")
    command.add_argument(
        "--bit-depth",
        type=int,
        choices=(8, 10),
        help="bits a sample: 8 is H.264, 10 is HEVC, which keeps HDR; as INPUT has by default",
    )


def _run(options: argparse.Namespace) -> int:
    if options.size is not None and (options.width or options.height):
        raise ValueError(f"--size {'x'.join(map(str, options.size))} and --width or --height are both given")
    checkpoint = checkpoint_name(options)
    if options.prompt is not None and missing_components(checkpoint, "text_encoder", "tokenizer"):
        raise ValueError(f"--prompt {options.prompt!r}: this checkpoint has no text encoder to read it")
    tasks = _tasks(options)
    if tasks:
        return _run_folder(options, tasks)
    if options.ray is not None:
        raise ValueError(f"--ray is for a folder of videos, INPUT is {str(options.input)!r}: a stream is sequential")
    upscale(options, lazy_pipeline(options), options.input, options.output).show(options.json)
    return 0


def _tasks(options: argparse.Namespace) -> list[Task]:
    """The files to make of a folder of videos; none of anything else."""
    from ..video_io.tracks import OUTPUT_SUFFIXES
    from .upscale_folder import plan

    if not options.input.is_dir() or options.output.suffix.lower() in OUTPUT_SUFFIXES:
        return []
    return plan(options.input, options.output)


def _run_folder(options: argparse.Namespace, tasks: list[Task]) -> int:
    from .upscale_folder import upscale_all

    pipe = lazy_pipeline(options)
    one = partial(upscale, options, pipe) if options.ray is None else partial(upscale_elsewhere, options)
    return upscale_all(tasks, one, options.resume, options.overwrite, options.json, options.ray)


def upscale(options: argparse.Namespace, pipe: LazyPipeline, source: Path, output: Path) -> Report:
    """Makes one file as the options say."""
    from ..pipelines.video_files import upscale_file
    from ..video_io import VideoReader

    reader = VideoReader(
        source,
        track=options.video_track,
        num_frames=options.num_frames,
        fps=options.fps,
        deinterlace=options.deinterlace,
        high_bit_depth={None: None, 8: False, 10: True}[options.bit_depth],
    )
    width, height = options.size or (options.width, options.height)
    with in_words_of_options(), freed_memory_kept():
        return upscale_file(
            pipe,
            reader,
            output,
            prompt=options.prompt,
            scale=options.scale,
            width=width,
            height=height,
            audio_tracks=() if options.no_audio else options.audio_track,
            color_correction=options.color_correction,
            strength=options.strength,
            **file_arguments(options),
        )


def upscale_elsewhere(options: argparse.Namespace, source: Path, output: Path) -> Report:
    """Makes one file in another process, which loads the pipeline for it and shows no progress."""
    return upscale(argparse.Namespace(**vars(options) | {"json": True}), lazy_pipeline(options), source, output)


def _size(text: str) -> tuple[int, int]:
    """Reads `WIDTHxHEIGHT`."""
    width, x, height = text.lower().partition("x")
    if not x:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, expected e.g. 1920x1080")
    return positive(width), positive(height)
