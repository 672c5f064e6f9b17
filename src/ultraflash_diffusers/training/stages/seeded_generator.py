# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The training of a generator with a seed code: text, code and clock determine the clip, so regression is exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ...models.causal_wan_transformer import CausalWanTransformer
from ...models.hr_autoencoder import HRAutoencoder
from ...models.seed_code import SeedPlaces, text_summary
from ..data.world import ANCHORS, LOOKS, RIDGES
from ..data.world_batches import CLIP_FRAMES, WorldBatch, WorldClips
from ..losses.fidelity import psnr
from ..settings import NonNegative, Positive, Settings
from ..starting_points.text_encoding import TextEncoding
from .base import Training

_PLACES_EPSILON = 0.03
_STEP_EPSILON = 0.01  # of steps between pixels in [-1, 1]


@dataclass(frozen=True)
class SeededRegression(Settings):
    """What a generator with a seed code learns.

    Args:
        charbonnier_epsilon (`float`, *optional*, defaults to 0.02): where the loss of pixels in [-1, 1] turns from
            square to absolute.
        mse_weight (`float`, *optional*, defaults to 2.0): of the squared error beside it.
        step_weight (`float`, *optional*, defaults to 4.0): of the error of the steps from each pixel to the next, down
            and to the right, which sees tiles where a few levels hardly count.
        looks_weight (`float`, *optional*, defaults to 5.0): of the error with which a linear layer, which serves the
            training alone, reads from the embedding what there is to see: learning what texts mean takes far more of
            them than learning to draw takes pictures, and this way they need none.
        places_weight (`float`, *optional*, defaults to 0.5): of the error of anchors and ridges, in tenths and
            twentieths of the frame's height.
    """

    charbonnier_epsilon: Positive[float] = 0.02
    mse_weight: NonNegative[float] = 2.0
    step_weight: NonNegative[float] = 4.0
    looks_weight: NonNegative[float] = 5.0
    places_weight: NonNegative[float] = 0.5


class SeededGeneratorTraining(Training):
    """Regression of parts of frames, drawn in one step by the true places; and of the places.

    How the network's drawings become latents is not learnt but taken over from the autoencoder.

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
        self.looks = nn.Linear(network.seed_code_embedding.linear_out.out_features, LOOKS)
        self.register_buffer("start", torch.zeros((), dtype=torch.int64), persistent=False)
        network.head.encode_as(*_encoding(autoencoder))

    def forward(  # type: ignore[override]
        self, batch: WorldBatch, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        embeds, shown = self.text(batch.texts), len(batch.pixels)
        embedding, found = self.network.seed_code_embedding(batch.codes, text_summary(embeds), self.start, 1)
        covers = None if found.covers is None else found.covers[:shown, :, -1:]
        places = SeedPlaces(batch.places.anchors[:shown, :, -1:], batch.places.ridges[:shown], covers)
        drawn = self.network.draw_windows(embeds[:shown], embedding[:shown], batch.window, places)
        error = drawn[:, 0] - batch.pixels
        steps = torch.stack([_charbonnier(error.diff(dim=axis), _STEP_EPSILON) for axis in (2, 3)]).mean()
        terms = {
            "charbonnier": _charbonnier(error, self.objective.charbonnier_epsilon),
            "mse": self.objective.mse_weight * error.square().mean(),
            "steps": self.objective.step_weight * steps,
        }
        terms["looks"] = self.objective.looks_weight * (self.looks(embedding[:, 0]) - batch.looks).square().mean()
        terms["places"] = self.objective.places_weight * _places_error(found, batch.places)
        return torch.stack(list(terms.values())).sum(), terms

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


def _places_error(found: SeedPlaces, true: SeedPlaces) -> torch.Tensor:
    # sizes are logarithms, which count less
    anchors = (found.anchors - true.anchors) * found.anchors.new_tensor([10, 10, 1.5])
    return _charbonnier(anchors, _PLACES_EPSILON) + _charbonnier(20 * (found.ridges - true.ridges), _PLACES_EPSILON)


def _charbonnier(error: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Mean of what is square below epsilon and absolute above."""
    return (error.square() + epsilon**2).sqrt().mean() - epsilon


def _encoding(autoencoder: HRAutoencoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias by which folded pixels in [-1, 1] become latents."""
    shortcut = autoencoder.encoder_shortcut
    assert shortcut.bias is not None
    if not autoencoder.unit_range:
        return shortcut.weight, shortcut.bias
    return shortcut.weight / 2, shortcut.bias + shortcut.weight.flatten(1).sum(1) / 2


def _check(network: CausalWanTransformer, autoencoder: HRAutoencoder) -> None:
    config, channels = network.config, autoencoder.config.latent_channels
    if config.prediction_type != "sample" or not config.head_channels or config.reads_latents:
        raise ValueError(
            "the network needs `prediction_type` 'sample', `head_channels` and `reads_latents` False, got "
            f"{config.prediction_type!r}, {config.head_channels} and {config.reads_latents}"
        )
    if (len(config.head_sprites), config.head_ridges) != (ANCHORS, RIDGES):
        raise ValueError(
            f"the world has {ANCHORS} anchors and {RIDGES} ridges, but `head_sprites` are "
            f"{tuple(config.head_sprites)} and `head_ridges` {config.head_ridges}"
        )
    compression = (autoencoder.temporal_compression_ratio, autoencoder.spatial_compression_ratio)
    if (config.head_moments, config.head_pixels) != compression:
        raise ValueError(
            f"`head_moments` and `head_pixels` must be the autoencoder's compression {compression}, got "
            f"{(config.head_moments, config.head_pixels)}"
        )
    if config.in_channels != channels or not (autoencoder.config.linear_shortcut and autoencoder.has_encoder):
        raise ValueError(
            f"the autoencoder must have an encoder, `linear_shortcut` and {config.in_channels} latent channels, got "
            f"{channels} channels and `linear_shortcut` {autoencoder.config.linear_shortcut}"
        )
