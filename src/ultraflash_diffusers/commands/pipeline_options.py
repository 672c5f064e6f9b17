# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the commands that run the cascade share: their options, and looking at a checkpoint before it is loaded."""

from __future__ import annotations

import argparse
import inspect
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .. import UltraFlashStreamingPipeline


def positive(text: str) -> int:
    """Reads a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def natural(text: str) -> int:
    """Reads a whole number of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def port(text: str) -> int:
    """Reads the number of a port."""
    if not text.isdecimal() or len(text) > 5 or not 1 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 1 to {2**16 - 1}")
    return int(text)


def port_or_any(text: str) -> int:
    """Reads the number of a port; 0 is any that is free."""
    return 0 if text == "0" else port(text)


def share(text: str) -> float:
    """Reads a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def factor(text: str) -> float:
    """Reads a number of more than 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of more than 0")
    return value


def seed(text: str) -> int:
    """Reads a seed of PyTorch's generators."""
    value = natural(text)
    if value >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} has more than 64 bits: a seed is 0 to {2**64 - 1}")
    return value


def seconds(text: str) -> float:
    """Reads a time of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


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
    command.add_argument(
        "--memory",
        metavar="SIZE",
        help="what a smaller card has, for instance 8GB: run in the way that is planned to fit, and say which it is",
    )


def add_stream_options(command: argparse.ArgumentParser) -> None:
    """Declares what decides the frames that a stream makes."""
    command.add_argument("--seed", type=seed, default=0, help="of the noise (default: %(default)s)")
    command.add_argument(
        "--steps", type=positive, default=1, help="SR steps; more than 1 only for multi-step models (default: 1)"
    )


def checkpoint_name(options: argparse.Namespace) -> str:
    """The checkpoint that was asked for, or the packaged one."""
    from .. import default_checkpoint

    return options.checkpoint or str(default_checkpoint())


def pipeline_index(checkpoint: str) -> dict[str, Any]:
    """Reads which components and settings a checkpoint has, without loading any weights.

    Settings that it does not name are the pipeline's defaults, as when it is loaded.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, or it is none of this pipeline.
    """
    from .. import UltraFlashStreamingPipeline

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*local_dir_use_symlinks")  # diffusers' own argument
            index = UltraFlashStreamingPipeline.load_config(checkpoint)
    except OSError as error:
        reason = (
            "its model_index.json is missing"
            if Path(checkpoint).is_dir()
            else "no such folder or Hub name; `ultraflash convert --recipe list` shows what can be made of published "
            "weights"
        )
        raise FileNotFoundError(f"--checkpoint {checkpoint!r}: {reason}") from error
    expected = UltraFlashStreamingPipeline.__name__
    if index.get("_class_name") != expected:
        raise ValueError(f"--checkpoint {checkpoint!r} holds a {index.get('_class_name')}, expected a {expected}")
    parameters = inspect.signature(UltraFlashStreamingPipeline.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default not in (each.empty, None)} | index


def missing_components(checkpoint: str, *names: str) -> list[str]:
    """Returns which of these components a checkpoint lacks.

    Raises:
        FileNotFoundError, ValueError: as [`pipeline_index`] does.
    """
    index = pipeline_index(checkpoint)
    return [name for name in names if index.get(name, (None, None))[0] is None]


def upsampler_scale(checkpoint: str) -> int:
    """Reads a checkpoint's scale without loading any weights.

    Raises:
        FileNotFoundError, ValueError: as [`pipeline_index`] does.
        OSError: it holds no upsampler.
    """
    from .. import CausalLatentUpsampler

    pipeline_index(checkpoint)
    return CausalLatentUpsampler.load_config(checkpoint, subfolder="latent_upsampler")["scale"]


def chosen_device(options: argparse.Namespace) -> torch.device:
    """The device that was asked for, else a GPU, else the CPU. Commands whose options say `plans` also take "meta".

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r} is no device: expected cpu, cuda, cuda:1 or the like") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name!r} was not found: PyTorch sees {torch.cuda.device_count()} CUDA devices")
    if device.type == "meta" and getattr(options, "plans", False):
        return device
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        here = torch.accelerator.current_accelerator(check_available=True)
        others = "nothing but a CPU" if here is None else f"a CPU and {here.type}"
        raise ValueError(f"--device {name!r} was not found: PyTorch sees {others}") from error
    return device


def chosen_dtype(options: argparse.Namespace) -> str:
    """The precision that was asked for, or the device's usual one."""
    return options.dtype or ("float32" if chosen_device(options).type == "cpu" else "bfloat16")


def load_pipeline(options: argparse.Namespace, size: tuple[int, int] | None = None) -> UltraFlashStreamingPipeline:
    """Loads the checkpoint on its device, in its precision.

    Args:
        options (`argparse.Namespace`): of [`add_pipeline_options`].
        size (`tuple[int, int]`, *optional*): height and width of the frames, for which there must be memory; the
            checkpoint's own by default.

    Raises:
        OSError, ValueError: there is no such checkpoint or device, or too little memory there.
    """
    import torch
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    from .. import UltraFlashStreamingPipeline
    from ..pipelines.memory_settings import parse_memory
    from .preflight import check_room, free_bytes

    device, dtype = chosen_device(options), getattr(torch, chosen_dtype(options))
    name = checkpoint_name(options)
    index = pipeline_index(name)
    size = size or (index["default_height"], index["default_width"])
    if options.memory:
        parse_memory(options.memory)
    elif (free := free_bytes(device)) is not None:
        check_room(name, index, dtype, size, str(device), free)
    for library in (logging, transformers_logging):
        library.disable_progress_bar()  # of loading; the frames have one of their own
    pipe = UltraFlashStreamingPipeline.from_pretrained(name, dtype=dtype)
    bring(pipe, options, device, size)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def bring(
    pipe: UltraFlashStreamingPipeline, options: argparse.Namespace, device: torch.device, size: tuple[int, int]
) -> None:
    """Brings a pipeline to its device, in the way that fits `--memory`."""
    if not options.memory:
        pipe.to(device)
        return
    from ..pipelines.memory_settings import fit_memory

    planned = fit_memory(pipe, options.memory, *size, device)
    print(f"--memory {options.memory}: {planned}; accuracy: {planned.accuracy}", file=sys.stderr)
