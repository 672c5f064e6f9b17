# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How near pixels come to others: point by point, and by structural similarity."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ...pixels import LUMA, to_unit


def charbonnier(prediction: torch.Tensor, target: torch.Tensor, epsilon: float = 1e-2) -> torch.Tensor:
    """Mean of `sqrt((prediction - target)^2 + epsilon^2)`: an L1 loss that is smooth at zero.

    Args:
        prediction (`torch.Tensor`): any shape.
        target (`torch.Tensor`): the same shape.
        epsilon (`float`, *optional*, defaults to 1e-2): below it the loss is quadratic; also the least value.
    """
    return torch.sqrt((prediction - target).square() + epsilon**2).mean()


def luma(pixels: torch.Tensor) -> torch.Tensor:
    """The brightness (BT.601), in [0, 1].

    Args:
        pixels (`torch.Tensor`): `[batch, 3, frames, height, width]` in [-1, 1].

    Returns:
        `torch.Tensor`: `[batch, frames, height, width]`.
    """
    weights = torch.tensor(LUMA, dtype=pixels.dtype, device=pixels.device)
    return to_unit(torch.einsum("bcfhw,c->bfhw", pixels, weights))


def ssim_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """One minus the structural similarity (Wang et al., 2004) of the luma, in 11x11 Gaussian windows of sigma 1.5.

    Args:
        prediction (`torch.Tensor`): `[batch, 3, frames, height, width]`, nominally in [-1, 1], at least 11 pixels high
            and wide.
        target (`torch.Tensor`): the same shape; both float32.

    Raises:
        ValueError: pictures smaller than the window.
    """
    if min(prediction.shape[-2:]) < 11:
        height, width = prediction.shape[-2:]
        raise ValueError(f"`prediction` is {height}x{width}: structural similarity needs at least 11x11 pixels")
    # a variance is a small difference of large numbers: half precision would leave nothing of it
    with torch.autocast(prediction.device.type, enabled=False):
        x, y = luma(prediction), luma(target)
        mean_x, mean_y = _gaussian_mean(x), _gaussian_mean(y)
        variance_x = _gaussian_mean(x * x) - mean_x**2
        variance_y = _gaussian_mean(y * y) - mean_y**2
        covariance = _gaussian_mean(x * y) - mean_x * mean_y
    # the constants are for a range of 1
    brightness = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
    return 1 - (brightness * structure).mean()


def _gaussian_mean(frames: torch.Tensor) -> torch.Tensor:
    """Means over the windows that lie inside: `[batch, frames, height, width]` loses 10 rows and columns."""
    window = torch.exp(-((torch.arange(11, dtype=frames.dtype, device=frames.device) - 5) ** 2) / (2 * 1.5**2))
    window = window / window.sum()
    blurred = F.conv2d(frames.flatten(0, 1)[:, None], window.view(1, 1, 1, 11))
    return F.conv2d(blurred, window.view(1, 1, 11, 1))[:, 0].unflatten(0, frames.shape[:2])


def psnr(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1]: the mean over frames, predictions clamped first.

    Args:
        prediction (`torch.Tensor`): `[batch, channels, frames, height, width]`.
        target (`torch.Tensor`): the same shape.
    """
    error = ((prediction.float().clamp(-1, 1) - target.float()) / 2).square().mean((1, 3, 4))
    return (-10 * error.clamp_min(1e-10).log10()).mean()
