# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Colour correction: the detail of the result on the colours of the source."""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F

ColorCorrection = Literal["wavelet", "none"]
COLOR_CORRECTIONS: tuple[ColorCorrection, ...] = ("wavelet", "none")


def wavelet_color_correction(frames: torch.Tensor, reference: torch.Tensor, levels: int = 5) -> torch.Tensor:
    """Gives `frames` the low frequencies of `reference`: `high(frames) + low(upscaled reference)`.

    `low` has the reach of the coarsest band of the à-trous wavelet decomposition after `levels` levels. Each frame is
    treated by itself, linearly; frames that equal the bicubically upscaled reference stay as they are.

    All but the last two levels are replaced by mean pooling, which has about their variance, and what follows works at
    the pooled resolution; the upscaled reference is only ever computed there (bicubic scaling and pooling are linear
    along each axis, so a small matrix does both at once).

    Args:
        frames (`torch.Tensor`): `[batch, 3, frames, height, width]`.
        reference (`torch.Tensor`): `[batch, 3, frames, reference height, reference width]`, the same frames before
            upscaling, in the same range.
        levels (`int`, *optional*, defaults to 5): what is coarser than about `2**levels` pixels comes from the
            reference; 0 takes everything from it.

    Returns:
        `torch.Tensor`: of the shape and dtype of `frames`.

    Raises:
        ValueError: another batch, channel or frame count in `reference`, or negative `levels`.
    """
    if reference.shape[:3] != frames.shape[:3]:
        raise ValueError(
            f"`reference` of shape {tuple(reference.shape)} must have the batch, channels and frames of `frames` "
            f"{tuple(frames.shape)}"
        )
    if levels < 0:
        raise ValueError(f"`levels` must be 0 or more, got {levels}")
    batch, channels, count, height, width = frames.shape
    factor = 2 ** max(levels - 2, 0)
    pictures = frames.transpose(1, 2).flatten(0, 2).unsqueeze(1)
    coarse = reference.transpose(1, 2).flatten(0, 2).unsqueeze(1).to(frames.device, torch.float32)
    difference = _upscaled_and_pooled(coarse, height, width, factor) - _pooled(pictures, factor, factor).float()
    for level in range(min(levels, 2)):
        difference = _smoothed(difference, dilation=2**level)
    corrected = pictures + _interpolated(difference, height, width, factor).to(frames.dtype)
    return corrected.view(batch, count, channels, height, width).transpose(1, 2)


def _upscaled_and_pooled(pictures: torch.Tensor, height: int, width: int, factor: int) -> torch.Tensor:
    if factor == 1:
        return F.interpolate(pictures, size=(height, width), mode="bicubic", align_corners=False)
    rows = _pooled_upscaling(pictures.shape[-2], height, factor, pictures.device)
    return rows @ pictures @ _pooled_upscaling(pictures.shape[-1], width, factor, pictures.device).T


def _interpolated(pictures: torch.Tensor, height: int, width: int, factor: int) -> torch.Tensor:
    if factor == 1:
        return pictures
    rows = _interpolation(pictures.shape[-2], height, factor, pictures.device)
    return rows @ (pictures @ _interpolation(pictures.shape[-1], width, factor, pictures.device).T)


def _pooled(pictures: torch.Tensor, row_factor: int, column_factor: int) -> torch.Tensor:
    """Mean pooling; bottom and right edges are repeated where the size is no multiple."""
    if row_factor == column_factor == 1:
        return pictures
    height, width = pictures.shape[-2:]
    padding = (0, -width % column_factor, 0, -height % row_factor)
    if any(padding):
        pictures = F.pad(pictures, padding, mode="replicate")
    return F.avg_pool2d(pictures, (row_factor, column_factor))


@functools.lru_cache(maxsize=8)
def _pooled_upscaling(size: int, new_size: int, factor: int, device: torch.device) -> torch.Tensor:
    """Matrix `[ceil(new_size / factor), size]`: bicubic scaling along one axis, then mean pooling."""
    impulses = torch.eye(size, device=device)[None, None]
    upscaled = F.interpolate(impulses, size=(new_size, size), mode="bicubic", align_corners=False)
    return _pooled(upscaled, factor, 1)[0, 0]


@functools.lru_cache(maxsize=8)
def _interpolation(size: int, new_size: int, factor: int, device: torch.device) -> torch.Tensor:
    """Matrix `[new_size, size]`: linear interpolation along one axis from the pooled resolution back."""
    impulses = torch.eye(size, device=device)[None, None]
    upscaled = F.interpolate(impulses, size=(size * factor, size), mode="bilinear", align_corners=False)
    return upscaled[0, 0, :new_size]


def _smoothed(pictures: torch.Tensor, dilation: int) -> torch.Tensor:
    """Binomial (1, 2, 1) / 4 smoothing along both axes, edges repeated."""
    for axis, padding in ((-2, (0, 0, dilation, dilation)), (-1, (dilation, dilation, 0, 0))):
        size = pictures.shape[axis]
        padded = F.pad(pictures, padding, mode="replicate")
        ends = padded.narrow(axis, 0, size) + padded.narrow(axis, 2 * dilation, size)
        pictures = ends.add_(pictures, alpha=2).mul_(0.25)
    return pictures
