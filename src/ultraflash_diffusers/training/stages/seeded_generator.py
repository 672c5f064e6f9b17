# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The training of a generator with a seed code: text, code and clock determine the clip, so regression is exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ...models.causal_wan_transformer import CausalWanTransformer
from ...models.hr_autoencoder import HRAutoencoder
from ...models.seed_code import SeedPlaces, text_summary
from ..data.world import ANCHORS, RIDGES
from ..data.world_batches import CLIP_FRAMES, WorldBatch, WorldClips
from ..losses.fidelity import psnr
from ..losses.linear_decoding import decode_moments, encode_moments, pixel_weights
from ..settings import NonNegative, Positive, Settings
from ..starting_points.text_encoding import TextEncoding
from .base import Training

_STEP_EPSILON = 0.01  # of steps between pixels in [-1, 1]
_LATENT_EPSILON = 0.1


@dataclass(frozen=True)
class SeededRegression(Settings):
    """What a generator with a seed code learns.

    Args:
        charbonnier_epsilon (`float`, *optional*, defaults to 0.02): where the loss of pixels in [-1, 1] turns from
            square to absolute.
        mse_weight (`float`, *optional*, defaults to 2.0): of the squared error beside it.
        step_weight (`float`, *optional*, defaults to 4.0): of the error of the steps from each pixel to the next, down
            and to the right, which sees tiles where a few levels hardly count.
        latent_weight (`float`, *optional*, defaults to 2.0): of the error of the latents, in which fine detail counts
            more than in pixels: each channel by the square root of what it counts there.
        places_weight (`float`, *optional*, defaults to 0.5): of the error of anchors and ridges, in tenths and
            twentieths of the frame's height.
    """

    charbonnier_epsilon: Positive[float] = 0.02
    mse_weight: NonNegative[float] = 2.0
    step_weight: NonNegative[float] = 4.0
    latent_weight: NonNegative[float] = 2.0
    places_weight: NonNegative[float] = 0.5


class SeededGeneratorTraining(Training):
    """Regression of decoded parts of frames, drawn in one step by the true places; and of the places.

    Args:
        network (`CausalWanTransformer`): with a seed code and a [`PlacedHead`], predicting samples.
        text (`TextEncoding`): trained along.
        autoencoder (`HRAutoencoder`): in whose latent space the network works, with a linear shortcut.
        objective (`SeededRegression`): what is learnt.

    Raises:
        ValueError: networks that do not fit together, or cannot learn by regression.
    """

    def __init__(
        self,
        network: CausalWanTransformer,
        text: TextEncoding,
        autoencoder: HRAutoencoder,
        objective: SeededRegression,
    ) -> None:
        super().__init__()
        _check(network, autoencoder)
        self.network, self.text, self.autoencoder, self.objective = network, text, autoencoder, objective
        autoencoder.requires_grad_(False)

    def forward(  # type: ignore[override]
        self, batch: WorldBatch, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        embeds, shown = self.text(batch.texts), len(batch.pixels)
        places = SeedPlaces(batch.places.anchors[:shown], batch.places.ridges[:shown])
        latents = self.network.draw_windows(embeds[:shown], batch.codes[:shown], batch.window, places)
        error = decode_moments(self.autoencoder, latents) - batch.pixels
        steps = torch.stack([_charbonnier(error.diff(dim=axis), _STEP_EPSILON) for axis in (3, 4)]).mean()
        terms = {
            "charbonnier": _charbonnier(error, self.objective.charbonnier_epsilon),
            "mse": self.objective.mse_weight * error.square().mean(),
            "steps": self.objective.step_weight * steps,
            "latents": self.objective.latent_weight * self._latent_error(latents, batch.pixels),
            "places": self.objective.places_weight * self._places_error(embeds, batch),
        }
        return torch.stack(list(terms.values())).sum(), terms

    def _latent_error(self, latents: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        weights = pixel_weights(self.autoencoder).sqrt()
        error = latents - encode_moments(self.autoencoder, pixels)
        return (weights / weights.mean() * ((error.square() + _LATENT_EPSILON**2).sqrt() - _LATENT_EPSILON)).mean()

    def _places_error(self, embeds: torch.Tensor, batch: WorldBatch) -> torch.Tensor:
        start = torch.zeros((), dtype=torch.int64)
        _, found = self.network.seed_code_embedding(batch.codes, text_summary(embeds), start, 1)
        assert found is not None
        # sizes are logarithms, which count less
        anchors = (found.anchors - batch.places.anchors) * found.anchors.new_tensor([10, 10, 1.5])
        ridges = 20 * (found.ridges - batch.places.ridges)
        return _charbonnier(anchors, 0.1) + _charbonnier(ridges, 0.1)

    def validate(self, batch: WorldClips) -> Mapping[str, float | torch.Tensor]:  # type: ignore[override]
        ratio, config = self.autoencoder.spatial_compression_ratio, self.network.config
        height, width = (side // ratio for side in batch.pixels.shape[-2:])
        noise = torch.zeros(
            len(batch.texts), config.in_channels, CLIP_FRAMES, height, width, device=batch.pixels.device
        )
        timestep = torch.full((len(noise),), 1000.0, device=noise.device)
        flow = self.network(noise, timestep, self.text(batch.texts), seed_code=batch.codes).sample
        result = self.autoencoder.decode(noise - flow).sample.float()
        return {"psnr": psnr(result, batch.pixels).item(), "result": result[:1], "truth": batch.pixels[:1]}

    def save_pretrained(self, folder: Path) -> None:
        """Writes `generator_transformer`, `text_encoder` and `tokenizer` as a pipeline has them."""
        self.network.save_pretrained(folder / "generator_transformer")
        self.text.save_pretrained(folder)


def _charbonnier(error: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Mean of what is square below epsilon and absolute above."""
    return (error.square() + epsilon**2).sqrt().mean() - epsilon


def _check(network: CausalWanTransformer, autoencoder: HRAutoencoder) -> None:
    config, channels = network.config, autoencoder.config.latent_channels
    moments = autoencoder.temporal_compression_ratio
    if config.prediction_type != "sample" or not config.head_channels or config.reads_latents:
        raise ValueError(
            "the network needs `prediction_type` 'sample', `head_channels` and `reads_latents` False, got "
            f"{config.prediction_type!r}, {config.head_channels} and {config.reads_latents}"
        )
    found = (config.head_moments, config.head_anchors, config.head_ridges)
    if found != (moments, ANCHORS, RIDGES):
        raise ValueError(
            "`head_moments`, `head_anchors` and `head_ridges` must be the autoencoder's temporal compression and the "
            f"world's, {(moments, ANCHORS, RIDGES)}, got {found}"
        )
    if config.in_channels != channels or not autoencoder.config.linear_shortcut:
        raise ValueError(
            f"the autoencoder must have `linear_shortcut` and {config.in_channels} latent channels, got "
            f"{autoencoder.config.linear_shortcut} and {channels}"
        )
