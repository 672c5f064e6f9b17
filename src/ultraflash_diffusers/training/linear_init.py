# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Closed-form starting points: the best linear autoencoder and the best linear latent upsampler.

Both networks may hold a linear path beside their convolutional stack (`linear_shortcut`, `residual`). Solving for that
path from data, and starting the stack at zero, puts training where a linear method would end.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from ..models.causal_latent_upsampler import CausalLatentUpsampler
from ..models.hr_autoencoder import HRAutoencoder


@torch.no_grad()
def fit_linear_shortcut(autoencoder: HRAutoencoder, clips: Iterable[torch.Tensor]) -> float:
    """Sets the autoencoder's shortcuts to the principal components of the clips' space-time patches.

    The latents come out with zero mean and unit variance for each channel; the convolutional stacks are set to
    contribute nothing at first.

    Args:
        autoencoder (`HRAutoencoder`): built with `linear_shortcut=True`, with an encoder.
        clips (iterable of `torch.Tensor`): `[batch, 3, frames, height, width]` in [-1, 1]; frames and sizes multiples
            of the compression.

    Returns:
        `float`: the share of the patches' variance that the components hold, in (0, 1].

    Raises:
        ValueError: `autoencoder` has no shortcuts, or `clips` is empty.
    """
    if not autoencoder.config.linear_shortcut or not autoencoder.has_encoder:
        raise ValueError("`autoencoder` must have an encoder and be built with `linear_shortcut=True`")
    channels = autoencoder.config.latent_channels
    mean, covariance = _moments(_fold(autoencoder, clip) for clip in clips)
    variances, components = torch.linalg.eigh(covariance)
    variances, components = variances.flip(0)[:channels], components.flip(1)[:, :channels]
    spread = variances.clamp_min(1e-8).sqrt()
    into, out = components / spread, components * spread
    _set_pointwise(autoencoder.encoder_shortcut, into.T, -(mean @ into))
    _set_pointwise(autoencoder.decoder_shortcut, out, mean)
    _silence(autoencoder.encoder[-1])
    _silence(autoencoder.decoder[-1])
    return (variances.sum() / covariance.trace()).item()


@torch.no_grad()
def fit_linear_upsampling(
    upsampler: CausalLatentUpsampler, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], ridge: float = 1e-4
) -> float:
    """Sets the upsampler's residual head to the least-squares map from low- to high-resolution latents.

    The convolutional stack is set to contribute nothing at first.

    Args:
        upsampler (`CausalLatentUpsampler`): built with `residual=True` and a prime `scale`, so that its head is one
            convolution.
        pairs (iterable of tuples): low-resolution latents `[batch, channels, frames, height, width]` and their
            high-resolution counterparts.
        ridge (`float`, *optional*, defaults to 1e-4): regularisation, relative to the mean input variance.

    Returns:
        `float`: the mean squared error that the linear map leaves.

    Raises:
        ValueError: `upsampler` has no such head, or `pairs` is empty.
    """
    head = upsampler.skip_up
    if not isinstance(head, nn.Sequential) or len(head) > 2:
        raise ValueError("`upsampler` must be built with `residual=True` and a prime `scale`")
    gram: torch.Tensor | None = None
    for low, high in pairs:
        inputs = F.unfold(low.transpose(1, 2).flatten(0, 1), kernel_size=3, padding=1).transpose(1, 2).flatten(0, 1)
        targets = F.pixel_unshuffle(high.transpose(1, 2).flatten(0, 1), upsampler.config.scale)
        joined = torch.cat([inputs, torch.ones_like(inputs[:, :1]), targets.permute(0, 2, 3, 1).flatten(0, 2)], dim=1)
        joined = joined.double()
        gram = joined.T @ joined + (0 if gram is None else gram)
    if gram is None:
        raise ValueError("`pairs` is empty")
    width = 9 * upsampler.config.in_channels + 1
    inputs, cross, total = gram[:width, :width], gram[:width, width:], gram[width:, width:].trace()
    damping = ridge * inputs.diagonal()[:-1].mean() * torch.eye(width, dtype=gram.dtype)
    solution = torch.linalg.solve(inputs + damping, cross)
    weight = solution[:-1].T.unflatten(1, (-1, 3, 3))
    head[0].load_state_dict({"weight": weight, "bias": solution[-1]})
    _silence(upsampler.final if upsampler.config.layout == "v1" else upsampler.net[-1])
    samples = gram[width - 1, width - 1] * (gram.shape[0] - width)
    return ((total - 2 * (solution * cross).sum() + (solution * (inputs @ solution)).sum()) / samples).item()


def _fold(autoencoder: HRAutoencoder, clip: torch.Tensor) -> torch.Tensor:
    """The rows that the encoder's shortcut sees: one flattened space-time patch a latent position."""
    if autoencoder.unit_range:
        clip = clip * 0.5 + 0.5
    return autoencoder.fold_patches(clip.transpose(1, 2)).permute(0, 2, 3, 1).flatten(0, 2)


def _moments(rows: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    gram: torch.Tensor | None = None
    for block in rows:
        # the column of ones makes count, sums and products one matrix
        block = torch.cat([torch.ones_like(block[:, :1]), block], dim=1).double()
        gram = block.T @ block if gram is None else gram + block.T @ block
    if gram is None:
        raise ValueError("`clips` is empty")
    count, mean = gram[0, 0], gram[0, 1:] / gram[0, 0]
    return mean, gram[1:, 1:] / count - torch.outer(mean, mean)


def _set_pointwise(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer.load_state_dict({"weight": weight[:, :, None, None], "bias": bias})


def _silence(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
