# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a faster path costs in accuracy: the same stream before and after, from the same noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Recording:
    """What a pipeline makes of a source.

    Args:
        latents (`torch.Tensor`): `[batch, channels, frames, height, width]`, on the CPU.
        frames (`torch.Tensor`): `[batch, frames, 3, height, width]` in [0, 1], on the CPU.
    """

    latents: torch.Tensor
    frames: torch.Tensor


@dataclass(frozen=True)
class Accuracy:
    """How far a faster path is from the plain one.

    Args:
        latent_error (`float`): relative L2 error of the high-resolution latents.
        frame_psnr (`float`): PSNR of the frames against the plain path's in dB; infinite where they are equal.
    """

    latent_error: float
    frame_psnr: float


def record(pipe: DiffusionPipeline, source: Any = None, seed: int = 0, **arguments: Any) -> Recording:
    """Runs a pipeline twice, to its latents and to its frames, always from the same noise.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): plain or optimized.
        source (*optional*): what `stream` takes, such that it can be read twice: latents (real ones, for a figure that
            means something), a list of frames, a file.
        seed (`int`, *optional*, defaults to 0): of the noise.
        arguments: further arguments of the call.
    """
    tensors = []
    for kind in ("latent", "pt"):
        generator = torch.Generator().manual_seed(seed)
        (frames,) = pipe(source=source, generator=generator, output_type=kind, return_dict=False, **arguments)
        tensors.append(cast(torch.Tensor, frames).float().cpu())
    return Recording(*tensors)


def compare(plain: Recording, optimized: Recording) -> Accuracy:
    """Compares what the same pipeline made before and after [`optimize`].

    Raises:
        ValueError: recordings of different sizes.
    """
    if plain.latents.shape != optimized.latents.shape or plain.frames.shape != optimized.frames.shape:
        raise ValueError(
            f"`optimized` has frames of shape {tuple(optimized.frames.shape)}, `plain` {tuple(plain.frames.shape)}"
        )
    error = (optimized.latents - plain.latents).norm() / plain.latents.norm()
    mean_square = float((optimized.frames - plain.frames).square().mean())
    psnr = -10 * math.log10(mean_square) if mean_square else math.inf
    return Accuracy(float(error), psnr)
