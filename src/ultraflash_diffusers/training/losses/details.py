# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Details of pictures, by wavelets: how strong they are and where."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def wavelet_details(pixels: torch.Tensor) -> torch.Tensor:
    """The LH, HL and HH bands of one level of the orthonormal Haar wavelet.

    Args:
        pixels (`torch.Tensor`): `[..., height, width]`, both even.

    Returns:
        `torch.Tensor`: `[3, ..., height / 2, width / 2]`.
    """
    a, b = pixels[..., ::2, ::2], pixels[..., ::2, 1::2]
    c, d = pixels[..., 1::2, ::2], pixels[..., 1::2, 1::2]
    return torch.stack([a - b + c - d, a + b - c - d, a - b - c + d]) / 2


def wavelet_transform(pixels: torch.Tensor, levels: int = 1) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The orthonormal Haar wavelet over several levels; [`inverse_wavelet_transform`] gives the pixels back.

    Args:
        pixels (`torch.Tensor`): `[..., height, width]`, both multiples of `2 ** levels`.
        levels (`int`, *optional*, defaults to 1): how often the low band is split again.

    Returns:
        `tuple`: the low band `[..., height / 2**levels, width / 2**levels]`, and the [`wavelet_details`] of each
        level, the finest first.

    Raises:
        ValueError: less than one level, or a size that cannot be halved so often.
    """
    if levels < 1 or any(size % 2**levels for size in pixels.shape[-2:]):
        height, width = pixels.shape[-2:]
        raise ValueError(f"`levels` is {levels}: it must be positive, and {height}x{width} divisible by 2 ** levels")
    low, details = pixels, []
    for _ in range(levels):
        details.append(wavelet_details(low))
        rows = low[..., ::2, :] + low[..., 1::2, :]
        low = (rows[..., ::2] + rows[..., 1::2]) / 2
    return low, details


def inverse_wavelet_transform(low: torch.Tensor, details: list[torch.Tensor]) -> torch.Tensor:
    """Puts the bands of [`wavelet_transform`] together again.

    Args:
        low (`torch.Tensor`): `[..., height, width]`.
        details (list of `torch.Tensor`): the finest level first; the last one `[3, ..., height, width]`.

    Returns:
        `torch.Tensor`: `[..., height * 2**levels, width * 2**levels]`.
    """
    for x, y, xy in reversed(details):
        top = torch.stack([low + x + y + xy, low - x + y - xy], dim=-1).flatten(-2)
        bottom = torch.stack([low + x - y - xy, low - x - y + xy], dim=-1).flatten(-2)
        low = torch.stack([top, bottom], dim=-2).flatten(-3, -2) / 2
    return low


def wavelet_loss(prediction: torch.Tensor, target: torch.Tensor, levels: int = 1) -> torch.Tensor:
    """Mean L1 distance of the detail bands (paper, "Phase I"), averaged over the levels.

    Args:
        prediction (`torch.Tensor`): `[..., height, width]`, both multiples of `2 ** levels`.
        target (`torch.Tensor`): the same shape.
        levels (`int`, *optional*, defaults to 1): see [`wavelet_transform`].
    """
    _, details = wavelet_transform(prediction - target, levels)
    return torch.stack([bands.abs().mean() for bands in details]).mean()


def local_contrast(pixels: torch.Tensor, scales: int = 2) -> list[torch.Tensor]:
    """How strong the details are around each place: the root of their mean energy in windows of 8 pixels a side.

    The energy is that of [`wavelet_details`]; each further scale looks at the picture made half as large.

    Args:
        pixels (`torch.Tensor`): `[batch, channels, frames, height, width]`, height and width multiples of
            `2 ** scales` and at least `4 * 2 ** scales`.
        scales (`int`, *optional*, defaults to 2): how many.

    Returns:
        list of `torch.Tensor`: `[batch * channels, frames, height / 8, width / 8]`, then half as high and wide each.
    """
    pixels, contrasts = pixels.flatten(0, 1), []
    for _ in range(scales):
        energy = F.avg_pool2d(wavelet_details(pixels).square().mean(0), kernel_size=4)
        # the root has no gradient at zero
        contrasts.append((energy + 1e-5).sqrt())
        pixels = F.avg_pool2d(pixels, kernel_size=2)
    return contrasts


def contrast_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 distance of [`local_contrast`], summed over two scales: as much detail as the target, wherever it lies.

    A pixel-wise loss is lowest for the mean of all plausible details, which is blurred; this one asks for their
    strength and not for their position.

    Args:
        prediction (`torch.Tensor`): `[batch, channels, frames, height, width]`, height and width multiples of 4 and at
            least 16.
        target (`torch.Tensor`): the same shape.
    """
    pairs = zip(local_contrast(prediction), local_contrast(target), strict=True)
    return torch.stack([(ours - theirs).abs().mean() for ours, theirs in pairs]).sum()


def detail_ratio(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Sharpness against the target: the prediction's mean absolute detail band over the target's; 1 is equal.

    Args:
        prediction (`torch.Tensor`): `[..., height, width]`, both even.
        target (`torch.Tensor`): the same shape.
    """
    return wavelet_details(prediction).abs().mean() / wavelet_details(target).abs().mean().clamp_min(1e-10)
