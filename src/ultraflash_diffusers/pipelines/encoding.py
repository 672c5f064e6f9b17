# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which network encodes a stream's frames, and whether it speaks the decoder's latent space."""

from __future__ import annotations

from diffusers import AutoencoderKLWan, DiffusionPipeline
from diffusers.models.modeling_utils import ModelMixin

from ..models.hr_autoencoder import HRAutoencoder
from ..models.video_encoder import VideoEncoder, WanVideoEncoder
from .sources import WAN_LATENT_SPACE, is_wan_autoencoder


def video_encoder(pipe: DiffusionPipeline) -> VideoEncoder:
    """Returns the encoder of an [`UltraFlashStreamingPipeline`]: its `encoder`, or else its autoencoder.

    Raises:
        TypeError: `encoder` is of a class that is not known.
        ValueError: it has no encoder, or another latent space than the autoencoder that decodes.
    """
    return pipe.autoencoder if pipe.encoder is None else fitting_encoder(pipe.encoder, pipe.autoencoder)


def fitting_encoder(encoder: ModelMixin, decoder: HRAutoencoder) -> VideoEncoder:
    """Returns a network as the encoder of what another one decodes, after checking that it can be.

    Args:
        encoder (`AutoencoderKLWan` or [`HRAutoencoder`]): the network.
        decoder ([`HRAutoencoder`]): the other one.

    Raises:
        TypeError, ValueError: see [`video_encoder`].
    """
    if isinstance(encoder, AutoencoderKLWan):
        ratios = (encoder.config.scale_factor_spatial, encoder.config.scale_factor_temporal)
        fits = is_wan_autoencoder(encoder) and decoder.config.latent_space == WAN_LATENT_SPACE
        channels, space = encoder.config.z_dim, f"mean and deviation {list(encoder.config.latents_mean[:2])} ..."
    elif isinstance(encoder, HRAutoencoder):
        ratios = (encoder.spatial_compression_ratio, encoder.temporal_compression_ratio)
        if not encoder.has_encoder:
            raise ValueError("`encoder` holds a decoder alone and cannot encode")
        fits = encoder.config.latent_space == decoder.config.latent_space
        channels, space = encoder.config.latent_channels, repr(encoder.config.latent_space)
    else:
        raise TypeError(f"`encoder` is a {type(encoder).__name__}, expected an AutoencoderKLWan or an HRAutoencoder")
    expected = (decoder.spatial_compression_ratio, decoder.temporal_compression_ratio)
    if not fits or ratios != expected or channels != decoder.config.latent_channels:
        raise ValueError(
            f"`encoder` does not fit `autoencoder`: {channels} channels, {ratios[0]}x smaller, {ratios[1]} frames "
            f"each, latent space {space}; expected {decoder.config.latent_channels}, {expected[0]}, {expected[1]} and "
            f"{decoder.config.latent_space!r}"
        )
    return WanVideoEncoder(encoder) if isinstance(encoder, AutoencoderKLWan) else encoder
