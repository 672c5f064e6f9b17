# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Batches of the largest crops without contents: what a plan of a step is made of, before there is any data."""

from __future__ import annotations

import argparse
import math

import torch

from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.hr_autoencoder import HRAutoencoder
from ...pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from .chunks import ChunkBatch
from .crops import Batch, Crop
from .latents import LatentBatch
from .prompt_batches import PromptBatch

_META = torch.device("meta")


def planned_batch(arguments: argparse.Namespace, scale: int | None = None, with_flow: bool = False) -> Batch:
    """The largest batch of clips.

    Args:
        arguments (`argparse.Namespace`): with `crops` and `train_batch_size`.
        scale (`int`, *optional*): with low-resolution clips, so many times smaller.
        with_flow (`bool`, *optional*, defaults to `False`): with optical flow.
    """
    size, crop = _largest(arguments)
    sides = (crop.height, crop.width)
    low = None if scale is None else _empty(size, 3, crop.frames, *(side // scale for side in sides), kind=torch.uint8)
    flow = _empty(size, crop.frames - 1, 2, *sides, kind=torch.float16) if with_flow else None
    return Batch(_empty(size, 3, *crop, kind=torch.uint8), low, flow, [""] * size)


def planned_cascade_batch(
    arguments: argparse.Namespace, upsampler: CausalLatentUpsampler, autoencoder: HRAutoencoder, with_flow: bool
) -> Batch:
    """[`planned_batch`] for the SR transformer: clips, or latents with `cache_latents`.

    Raises:
        ValueError: crops that are no whole latents.
    """
    scale, temporal = upsampler.config.scale, autoencoder.temporal_compression_ratio
    spatial = autoencoder.spatial_compression_ratio
    for crop in arguments.crops:
        crop.check(scale * spatial, temporal)
    if vars(arguments).get("cache_latents"):
        return planned_latents(arguments, autoencoder.config.latent_channels, spatial, temporal, scale)
    return planned_batch(arguments, scale, with_flow)


def planned_rollouts(arguments: argparse.Namespace, pipe: UltraFlashStreamingPipeline) -> Batch | PromptBatch:
    """What preference optimisation rolls out: clips, or prompts; see [`planned_batch`]."""
    if arguments.prompts is None:
        return planned_cascade_batch(arguments, pipe.latent_upsampler, pipe.autoencoder, with_flow=False)
    size, crop = _largest(arguments)
    return PromptBatch([""] * size, crop)


def planned_latents(arguments: argparse.Namespace, channels: int, spatial: int, temporal: int, scale: int) -> Batch:
    """The largest batch of latents, `scale` times smaller ones beside them; see [`planned_batch`]."""
    size, crop = _largest(arguments)
    frames = (crop.frames - 1) // temporal + 1
    high, low = (
        _empty(size, channels, frames, *(side // (spatial * factor) for side in (crop.height, crop.width)))
        for factor in (1, scale)
    )
    return LatentBatch(high, low, None, [""] * size)


def planned_chunks(arguments: argparse.Namespace, channels: int, frames: int, height: int, width: int) -> ChunkBatch:
    """A batch of a generator's samples, in latents; see [`planned_batch`]."""
    size = arguments.train_batch_size[0]
    starts = torch.zeros(size, dtype=torch.bool)
    return ChunkBatch(_empty(size, channels, frames, height, width), None, None, [""] * size, starts)


def _largest(arguments: argparse.Namespace) -> tuple[int, Crop]:
    sizes = arguments.train_batch_size
    sizes = sizes if len(sizes) == len(arguments.crops) else sizes * len(arguments.crops)
    return max(zip(sizes, arguments.crops, strict=True), key=lambda each: each[0] * math.prod(each[1]))


def _empty(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=kind, device=_META)
