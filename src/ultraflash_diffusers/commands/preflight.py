# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whether a checkpoint's streams fit a device, found out before any weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_NETWORKS = ("generator_transformer", "transformer", "latent_upsampler", "autoencoder")


def free_bytes(device: torch.device) -> int | None:
    """What is free on a GPU; `None` where PyTorch cannot tell."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def check_room(
    checkpoint: str, index: dict[str, Any], dtype: torch.dtype, size: tuple[int, int], device: str, free: int
) -> None:
    """Checks that streams of a checkpoint are planned to fit.

    Args:
        checkpoint (`str`): folder or Hub name.
        index (`dict`): its `model_index.json`.
        dtype (`torch.dtype`): in which it is to run.
        size (`tuple[int, int]`): height and width of the frames.
        device (`str`): its name, for the error.
        free (`int`): bytes that are free there.

    Raises:
        ValueError: they do not; it names the setting that does, if there is one.
    """
    from ..pipelines.memory_settings import choose_setting, plan_settings

    pipe = _without_weights(checkpoint, index, dtype)
    if pipe is None:
        return
    wanted = next(plan_settings(pipe, *size))
    if wanted.device_bytes <= free:
        return
    fitting = choose_setting(pipe, *size, free)
    raise ValueError(
        f"--device {device!r} has {free / 1e9:.1f} GB free, but frames of {size[0]}x{size[1]} are planned to take "
        f"{wanted}; this fits: --memory {int(free / 1e8) / 10:g}GB ({fitting})"
    )


def _without_weights(checkpoint: str, index: dict[str, Any], dtype: torch.dtype) -> Any:
    """The pipeline on the meta device; `None` where a network is of another library."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    import ultraflash_diffusers as package

    from ..pipelines.memory_plan import cast_weights

    networks = {}
    for name in _NETWORKS:
        library, kind = index.get(name) or (None, None)
        if library is None:
            continue
        if kind not in package.__all__:
            return None
        network_class = getattr(package, kind)
        with torch.device("meta"):
            networks[name] = network_class.from_config(network_class.load_config(checkpoint, subfolder=name))
        cast_weights(networks[name], dtype)
    settings: dict[str, Any] = {name: value for name, value in index.items() if isinstance(value, (int, float))}
    return package.UltraFlashStreamingPipeline(**networks, scheduler=FlowMatchEulerDiscreteScheduler(), **settings)
