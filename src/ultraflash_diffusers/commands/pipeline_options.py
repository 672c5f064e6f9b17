# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the commands that run the cascade share: its options, and loading it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .. import UltraFlashStreamingPipeline


def positive(text: str) -> int:
    """Reads a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def add_pipeline_options(command: argparse.ArgumentParser) -> None:
    """Declares which checkpoint runs, where and how precisely."""
    command.add_argument(
        "--checkpoint", metavar="FOLDER", help="folder or Hub name of a pipeline; the packaged one by default"
    )
    command.add_argument("--device", help="where to run, e.g. cuda:1; a GPU by default, if there is one")
    command.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="precision; bfloat16 on a GPU and float32 on a CPU by default",
    )


def add_stream_options(command: argparse.ArgumentParser) -> None:
    """Declares what decides the frames that a stream makes."""
    command.add_argument("--num-frames", type=positive, metavar="N", help="frames of the result")
    command.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    command.add_argument(
        "--steps", type=positive, default=1, help="SR steps; more than 1 only for multi-step models (default: 1)"
    )


def add_output_options(command: argparse.ArgumentParser) -> None:
    """Declares how the result is written."""
    command.add_argument("--crf", type=float, default=18, help="x264's rate factor, 1 (best) to 51 (default: 18)")
    command.add_argument("--overwrite", action="store_true", help="replace OUTPUT, if it exists, once all is done")


def checkpoint_name(options: argparse.Namespace) -> str:
    """The checkpoint that was asked for, or the packaged one."""
    from .. import default_checkpoint

    return options.checkpoint or str(default_checkpoint())


def upsampler_scale(checkpoint: str) -> int:
    """Reads a checkpoint's scale without loading any weights.

    Raises:
        OSError: there is no such checkpoint, or it holds no upsampler.
    """
    from .. import CausalLatentUpsampler

    return CausalLatentUpsampler.load_config(checkpoint, subfolder="latent_upsampler")["scale"]


def load_pipeline(options: argparse.Namespace) -> UltraFlashStreamingPipeline:
    """Loads the checkpoint on its device, in its precision.

    Raises:
        OSError, ValueError: there is no such checkpoint or device.
    """
    import torch

    from .. import UltraFlashStreamingPipeline

    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r} is no device: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name!r}: no CUDA device was found")
    dtype: torch.dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    pipe = UltraFlashStreamingPipeline.from_pretrained(checkpoint_name(options), dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe
