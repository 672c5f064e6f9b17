# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The sampling of flow matching: noise levels, noise, and what it does to the condition."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ...pipelines.samplers import shift_sigma


def weighted_mse(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The mean squared error, of which some elements may count more than others.

    Args:
        prediction (`torch.Tensor`): any shape.
        target (`torch.Tensor`): the same shape.
        weights (`torch.Tensor`, *optional*): broadcast over it, for instance
            [`~ultraflash_diffusers.training.losses.linear_decoding.pixel_weights`]; `None` for equal ones.
    """
    if weights is None:
        return F.mse_loss(prediction, target)
    return (weights * (prediction - target).square()).mean()


def sample_sigmas(batch_size: int, generator: torch.Generator, shift: float = 1.5) -> torch.Tensor:
    """Draws noise levels in (0, 1): the logistic function of a normal variable, shifted to more noise.

    The shift is that of flow-matching schedulers, [`shift_sigma`]; the median is `shift / (1 + shift)`.

    Args:
        batch_size (`int`): how many.
        generator (`torch.Generator`): on the CPU.
        shift (`float`, *optional*, defaults to 1.5): 1 for none (paper: 1.5).
    """
    sigmas = torch.sigmoid(torch.randn(batch_size, generator=generator))
    return shift_sigma(sigmas, shift)


def add_noise(clean: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """`z_t = (1 - sigma) z_0 + sigma epsilon`; the flow that a network learns is `epsilon - z_0`.

    Args:
        clean (`torch.Tensor`): `[batch, ...]`.
        noise (`torch.Tensor`): the same shape.
        sigmas (`torch.Tensor`): `[batch]`, in [0, 1].
    """
    sigmas = sigmas.to(clean).view(-1, *[1] * (clean.ndim - 1))
    return (1 - sigmas) * clean + sigmas * noise


def corrupt_condition(
    condition: torch.Tensor,
    generator: torch.Generator,
    noise_range: tuple[float, float] = (0.4, 0.6),
    drop_probability: float = 0.4,
) -> torch.Tensor:
    """Mixes noise into the condition, and zeroes it altogether for some samples (paper, "SR fine-tune").

    Args:
        condition (`torch.Tensor`): `[batch, channels, frames, height, width]`, upsampled latents.
        generator (`torch.Generator`): on the CPU.
        noise_range (pair of `float`, *optional*, defaults to `(0.4, 0.6)`): bounds of the share of noise in a sample.
        drop_probability (`float`, *optional*, defaults to 0.4): of a sample's condition.
    """
    low, high = noise_range
    shares = low + (high - low) * torch.rand(len(condition), generator=generator)
    kept = torch.rand(len(condition), generator=generator) >= drop_probability
    noisy = add_noise(condition, randn_like(condition, generator), shares)
    return noisy * kept.to(condition).view(-1, 1, 1, 1, 1)


def randn_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal noise from a generator on the CPU, so that it is the same whatever device trains."""
    return torch.randn(tensor.shape, generator=generator).to(tensor)
