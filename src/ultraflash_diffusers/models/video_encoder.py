# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Encoders of pixels beside [`HRAutoencoder`]: diffusers' Wan autoencoder as a stream with explicit state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan
from diffusers.utils import BaseOutput
from torch import nn

from .hr_autoencoder import HRAutoencoder
from .stream_state import StreamState


@dataclass
class WanEncoderState(StreamState):
    """What the Wan encoder's convolutions have to remember of the frames before.

    Args:
        cache (`list[torch.Tensor]`): features of the last one or two frames in front of each convolution over time,
            `None` where there are none.
    """

    cache: list[torch.Tensor | None]


@dataclass
class WanVideoEncoderOutput(BaseOutput):
    """Output of [`WanVideoEncoder.encode`].

    Args:
        latents (`torch.Tensor`): `[batch, latent_channels, latent_frames, latent_height, latent_width]`, normalised.
        state (`WanEncoderState`): state for the next frames of the stream.
    """

    latents: torch.Tensor
    state: WanEncoderState | None = None


class WanVideoEncoder(nn.Module):
    """The encoder of an `AutoencoderKLWan`, chunk by chunk with the results of one call.

    `AutoencoderKLWan.encode` keeps such features on the module and forgets them at the end of a call; here the stream
    owns them, so that streams do not disturb each other.

    Args:
        autoencoder (`AutoencoderKLWan`): Wan 2.1's.
    """

    has_encoder = True

    def __init__(self, autoencoder: AutoencoderKLWan) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.temporal_compression_ratio = autoencoder.config.scale_factor_temporal
        self.spatial_compression_ratio = autoencoder.config.scale_factor_spatial

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.autoencoder.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.autoencoder.device

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, state: WanEncoderState | None = None) -> WanVideoEncoderOutput:
        """Encodes the next frames of a stream.

        Args:
            pixels (`torch.Tensor`): `[batch, 3, frames, height, width]` in [-1, 1]; `4 n + 1` frames at the start of a
                stream, `4 n` later.
            state (`WanEncoderState`, *optional*): what the frames before left; `None` starts a stream.

        Raises:
            ValueError: another number of frames, or a state of another encoder.
        """
        if not isinstance(state, WanEncoderState | None):
            raise ValueError(f"`state` is a {type(state).__name__}, expected a WanEncoderState of this encoder")
        ratio, frames = self.temporal_compression_ratio, pixels.shape[2]
        first = 1 if state is None else 0
        if frames < 1 or (frames - first) % ratio:
            raise ValueError(f"`pixels` has {frames} frames, expected {ratio} n{' + 1' if first else ''} of them")
        if hasattr(self.autoencoder, "_hf_hook"):  # offloaded weights come to their device
            self.autoencoder._hf_hook.pre_forward(self.autoencoder)
        counts = self.autoencoder._cached_conv_counts["encoder"]
        cache: list[torch.Tensor | None] = [None] * counts if state is None else list(state.cache)
        pieces = [1] * first + [ratio] * ((frames - first) // ratio)
        features = [
            self.autoencoder.encoder(piece, feat_cache=cache, feat_idx=[0]) for piece in pixels.split(pieces, dim=2)
        ]
        mean, _ = self.autoencoder.quant_conv(torch.cat(features, dim=2)).chunk(2, dim=1)
        return WanVideoEncoderOutput(latents=self._normalised(mean), state=WanEncoderState(cache))

    def _normalised(self, latents: torch.Tensor) -> torch.Tensor:
        config, shape = self.autoencoder.config, (1, -1, 1, 1, 1)
        mean = torch.tensor(config.latents_mean, device=latents.device).view(shape)
        std = torch.tensor(config.latents_std, device=latents.device).view(shape)
        return ((latents.float() - mean) / std).to(latents.dtype)


# what sources of pixels encode with
VideoEncoder = HRAutoencoder | WanVideoEncoder
