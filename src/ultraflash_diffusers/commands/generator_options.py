# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What `ultraflash generate` lets one say to the text generator: its schedule, and the picture that it starts with."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .pipeline_options import factor, natural, positive

if TYPE_CHECKING:
    from PIL.Image import Image

_SCHEDULE = ("frames_per_chunk", "first_chunk_frames", "denoising_steps", "first_chunk_denoising_steps", "flow_shift")


def add_generator_options(command: argparse.ArgumentParser) -> None:
    """Declares them."""
    picture = command.add_argument_group("a picture to start with")
    picture.add_argument("--image", metavar="FILE", help="first frame of the video: a picture's file or address (URL)")
    picture.add_argument(
        "--resize-mode",
        choices=("default", "crop"),
        help="brought to the video's size as it is (the default), or cut to its aspect",
    )
    schedule = command.add_argument_group(
        "the generator's schedule", "The checkpoint's own by default, which its weights were distilled for."
    )
    schedule.add_argument("--frames-per-chunk", type=positive, metavar="N", help="latent frames made at once")
    schedule.add_argument("--first-chunk-frames", type=positive, metavar="N", help="those of the first chunk")
    schedule.add_argument(
        "--denoising-steps", type=_steps, metavar="T,T,...", help="timesteps before the shift, e.g. 1000,750,500,250"
    )
    schedule.add_argument(
        "--first-chunk-denoising-steps", type=_steps, metavar="T,T,...", help="those of the first generated chunk"
    )
    schedule.add_argument("--flow-shift", type=factor, metavar="FACTOR", help="warps the steps; 1 leaves them")
    schedule.add_argument(
        "--window-frames", type=positive, metavar="N", help="latent frames that it looks back at, for long videos"
    )
    schedule.add_argument(
        "--sink-frames", type=natural, metavar="N", help="of these, how many always are the video's first ones"
    )


def generator_keywords(options: argparse.Namespace) -> dict[str, Any]:
    """What was said beside the window, as `source_kwargs` of the pipeline.

    Raises:
        ValueError: the picture cannot be read.
    """
    keywords = {name: getattr(options, name) for name in _SCHEDULE}
    if options.image is not None:
        keywords |= {"first_frames": _picture(options.image), "resize_mode": options.resize_mode or "default"}
    elif options.resize_mode is not None:
        raise ValueError(f"--resize-mode {options.resize_mode}: there is no --image to resize")
    return keywords


def _picture(address: str) -> Image:
    """Reads a picture upright."""
    from diffusers.utils import load_image

    try:
        return load_image(address, convert_method=_in_colour)
    except (OSError, ValueError) as error:
        raise ValueError(f"--image {address!r} cannot be read: {error}") from error


def _in_colour(picture: Image) -> Image:
    if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise ValueError("it is transparent in places: put it on a background first")
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"it has more than 8 bits a sample (mode {picture.mode!r}): convert it first")
    return picture.convert("RGB")


def _steps(text: str) -> tuple[float, ...]:
    """Reads timesteps that decrease inside (0, 1000]."""
    try:
        steps = tuple(float(step) for step in text.split(","))
    except ValueError:
        steps = ()
    decrease = all(before > after for before, after in zip(steps, steps[1:], strict=False))
    if not steps or not decrease or not 0 < steps[-1] <= steps[0] <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} are no timesteps that decrease from at most 1000, all above 0")
    return steps
