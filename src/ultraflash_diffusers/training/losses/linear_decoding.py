# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Decoding and encoding without the autoencoder's convolutions, where it has to be cheap."""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional as F

from ...models.hr_autoencoder import HRAutoencoder
from ...pixels import from_unit, to_unit


def check_linear_shortcut(arguments: argparse.Namespace, source: str, autoencoder: HRAutoencoder) -> None:
    """Refuses arguments that need the linear shortcut with an autoencoder, read from `source`, that has none.

    Raises:
        ValueError: `decode_linearly`, `encode_linearly` or `weigh_channels` is true.
    """
    for name in ("decode_linearly", "encode_linearly", "weigh_channels"):
        if vars(arguments).get(name) and not autoencoder.config.linear_shortcut:
            raise ValueError(f"--{name}: the autoencoder {source!r} has no `linear_shortcut`")


def decode_linearly(autoencoder: HRAutoencoder, latents: torch.Tensor) -> torch.Tensor:
    """Decodes the beginning of a stream through the autoencoder's linear shortcut alone.

    One matrix product for each latent, forwards and backwards, instead of the convolutional stack at full resolution;
    close to the whole decoder where the stack is a small correction to the shortcut.

    Args:
        autoencoder (`HRAutoencoder`): built with `linear_shortcut=True`.
        latents (`torch.Tensor`): `[batch, latent_channels, latent_frames, latent_height, latent_width]`, normalised.

    Returns:
        `torch.Tensor`: `[batch, 3, frames, height, width]`, nominally in [-1, 1].
    """
    frames = decode_moments(autoencoder, latents)
    return frames[:, :, autoencoder.temporal_compression_ratio - 1 :]  # the first latent stands for one frame


def decode_moments(autoencoder: HRAutoencoder, latents: torch.Tensor) -> torch.Tensor:
    """Decodes a part of a stream likewise: each latent frame, the first too, stands for all the frames that it can.

    Args:
        autoencoder (`HRAutoencoder`): built with `linear_shortcut=True`.
        latents (`torch.Tensor`): `[batch, latent_channels, latent_frames, latent_height, latent_width]`, normalised.

    Returns:
        `torch.Tensor`: `[batch, 3, frames, height, width]`, nominally in [-1, 1].
    """
    temporal, spatial = autoencoder.temporal_compression_ratio, autoencoder.spatial_compression_ratio
    patches = autoencoder.decoder_shortcut(latents.transpose(1, 2).flatten(0, 1))
    patches = patches.reshape(-1, patches.shape[1] // temporal, *patches.shape[2:])
    frames = F.pixel_shuffle(patches, spatial).unflatten(0, (len(latents), -1)).transpose(1, 2)
    return from_unit(frames) if autoencoder.unit_range else frames


def pixel_weights(autoencoder: HRAutoencoder) -> torch.Tensor:
    """How much the squared error of each latent channel counts in pixels, through the linear shortcut alone.

    A latent space whose channels all have about unit variance hides that some of them make up the picture and many
    hardly show: a plain squared error is mostly of the latter.

    Args:
        autoencoder (`HRAutoencoder`): built with `linear_shortcut=True`.

    Returns:
        `torch.Tensor`: `[latent_channels, 1, 1, 1]`, float32, 1 on average.
    """
    energy = autoencoder.decoder_shortcut.weight.detach().float().square().flatten(2).sum(dim=(0, 2))
    return (energy / energy.mean()).view(-1, 1, 1, 1)


def encode_linearly(autoencoder: HRAutoencoder, pixels: torch.Tensor) -> torch.Tensor:
    """Encodes the beginning of a stream through the autoencoder's linear shortcut alone.

    Args:
        autoencoder (`HRAutoencoder`): built with `linear_shortcut=True`, with an encoder.
        pixels (`torch.Tensor`): `[batch, 3, t n + 1, height, width]` in [-1, 1].

    Returns:
        `torch.Tensor`: `[batch, latent_channels, n + 1, latent_height, latent_width]`.
    """
    filling = pixels[:, :, :1].expand(-1, -1, autoencoder.temporal_compression_ratio - 1, -1, -1)
    return encode_moments(autoencoder, torch.cat([filling, pixels], dim=2))


def encode_moments(autoencoder: HRAutoencoder, pixels: torch.Tensor) -> torch.Tensor:
    """Encodes a part of a stream likewise, the way back from [`decode_moments`].

    Args:
        autoencoder (`HRAutoencoder`): built with `linear_shortcut=True`, with an encoder.
        pixels (`torch.Tensor`): `[batch, 3, t n, height, width]` in [-1, 1].

    Returns:
        `torch.Tensor`: `[batch, latent_channels, n, latent_height, latent_width]`.
    """
    frames = pixels.transpose(1, 2)
    folded = autoencoder.fold_patches(to_unit(frames) if autoencoder.unit_range else frames)
    return autoencoder.encoder_shortcut(folded).unflatten(0, (len(pixels), -1)).transpose(1, 2)
