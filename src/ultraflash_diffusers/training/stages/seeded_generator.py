# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The training of a generator with a seed code: text, code and clock determine the clip, so regression is exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ...models.causal_wan_transformer import CausalWanTransformer
from ...models.hr_autoencoder import HRAutoencoder
from ...models.seed_code import text_summary
from ..data.world import ANCHORS
from ..data.world_batches import WorldBatch
from ..losses.fidelity import psnr
from ..losses.linear_decoding import decode_linearly
from ..settings import NonNegative, Positive, Settings
from ..starting_points.text_encoding import TextEncoding
from .base import Training


@dataclass(frozen=True)
class SeededRegression(Settings):
    """What a generator with a seed code learns.

    Args:
        charbonnier_epsilon (`float`, *optional*, defaults to 0.02): where the loss of pixels in [-1, 1] turns from
            square to absolute.
        mse_weight (`float`, *optional*, defaults to 2.0): of the squared error beside it.
        anchor_weight (`float`, *optional*, defaults to 0.5): of the anchors' error, tenths of the frame's height.
    """

    charbonnier_epsilon: Positive[float] = 0.02
    mse_weight: NonNegative[float] = 2.0
    anchor_weight: NonNegative[float] = 0.5


class SeededGeneratorTraining(Training):
    """Regression of the decoded clip, in one step from noise; and of the anchors, which get no other gradient.

    Batches without pixels teach the anchors alone.

    Args:
        network (`CausalWanTransformer`): with a seed code, predicting samples.
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
        embeds, terms = self.text(batch.texts), {}
        if self.network.config.seed_code_anchors:
            terms["anchors"] = self.objective.anchor_weight * self._anchor_error(embeds, batch)
        if batch.pixels is not None:
            error = decode_linearly(self.autoencoder, self._latents(embeds, batch, generator)) - batch.pixels
            epsilon = self.objective.charbonnier_epsilon
            terms["charbonnier"] = (error.square() + epsilon**2).sqrt().mean() - epsilon
            terms["mse"] = self.objective.mse_weight * error.square().mean()
        return torch.stack(list(terms.values())).sum(), terms

    def _anchor_error(self, embeds: torch.Tensor, batch: WorldBatch) -> torch.Tensor:
        start = torch.zeros((), dtype=torch.int64)
        frames = batch.anchors.shape[1]
        _, found = self.network.seed_code_embedding(batch.codes, text_summary(embeds), start, frames)
        assert found is not None
        # sizes are logarithms, which count less
        error = (found - batch.anchors) * found.new_tensor([10, 10, 1.5])
        return (error.square() + 0.01).sqrt().mean() - 0.1

    def _latents(self, embeds: torch.Tensor, batch: WorldBatch, generator: torch.Generator) -> torch.Tensor:
        assert batch.pixels is not None
        ratio, config = self.autoencoder.spatial_compression_ratio, self.network.config
        height, width = (side // ratio for side in batch.pixels.shape[-2:])
        shape = (len(batch.texts), config.in_channels, batch.anchors.shape[1], height, width)
        noise = torch.randn(shape, generator=generator).to(embeds)
        timestep = torch.full((len(noise),), 1000.0, device=noise.device)
        return noise - self.network(noise, timestep, embeds, seed_code=batch.codes).sample.to(noise)

    def validate(self, batch: WorldBatch) -> Mapping[str, float | torch.Tensor]:  # type: ignore[override]
        assert batch.pixels is not None
        latents = self._latents(self.text(batch.texts), batch, torch.Generator().manual_seed(0))
        result = self.autoencoder.decode(latents).sample.float()
        return {"psnr": psnr(result, batch.pixels).item(), "result": result[:1], "truth": batch.pixels[:1]}

    def save_pretrained(self, folder: Path) -> None:
        """Writes `generator_transformer`, `text_encoder` and `tokenizer` as a pipeline has them."""
        self.network.save_pretrained(folder / "generator_transformer")
        self.text.save_pretrained(folder)


def _check(network: CausalWanTransformer, autoencoder: HRAutoencoder) -> None:
    config, channels = network.config, autoencoder.config.latent_channels
    if config.prediction_type != "sample" or config.patch_size[0] != 1 or config.sample_size is None:
        raise ValueError(
            "the network needs `prediction_type` 'sample', `patch_size` (1, ...) and a `sample_size`, got "
            f"{config.prediction_type!r}, {tuple(config.patch_size)} and {config.sample_size}"
        )
    if config.seed_code_anchors not in (0, ANCHORS):
        raise ValueError(f"`seed_code_anchors` must be 0 or the world's {ANCHORS}, got {config.seed_code_anchors}")
    if config.in_channels != channels or not autoencoder.config.linear_shortcut:
        raise ValueError(
            f"the autoencoder must have `linear_shortcut` and {config.in_channels} latent channels, got "
            f"{autoencoder.config.linear_shortcut} and {channels}"
        )
