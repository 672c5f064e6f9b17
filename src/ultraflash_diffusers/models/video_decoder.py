# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a pipeline asks of the network that decodes its latents. [`HRAutoencoder`] is the published one."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from .stream_state import StreamState


class DecodedVideo(Protocol):
    """A decoded chunk: frames `sample`, `[batch, 3, frames, height, width]`, nominally in [-1, 1], and the `state`."""

    sample: torch.Tensor
    state: StreamState | None


class VideoDecoder(Protocol):
    """A streamed decoder; a `ModelMixin` of its own, exported by the package, so that pipelines with it load again.

    Its configuration has `latent_channels`, and `latent_space`, the name of the space, where other decoders share it.
    `optimize` compiles its `decoder`, if it has one; tiles need `enable_tiling`; files need an `encode` like
    [`HRAutoencoder.encode`] and `has_encoder`, or another component `encoder`.
    """

    spatial_compression_ratio: int
    temporal_compression_ratio: int
    has_encoder: bool
    dtype: torch.dtype
    config: Any

    def decode(self, z: torch.Tensor, state: Any = None) -> DecodedVideo:
        """Decodes the next chunk of a stream.

        Args:
            z (`torch.Tensor`): `[batch, latent_channels, frames, height, width]`, normalised.
            state (`StreamState`, *optional*): what the chunk before returned; `None` starts a stream, whose first
                latent gives one frame, and each later one `temporal_compression_ratio`.
        """


def missing_of_a_decoder(network: object) -> list[str]:
    """Returns what of a [`VideoDecoder`] `network` does not have."""
    return [name for name in (*VideoDecoder.__annotations__, "decode") if not hasattr(network, name)]
