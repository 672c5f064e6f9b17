# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The HR autoencoder's training: pixels to latents and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ...models.hr_autoencoder import HRAutoencoder
from ..data.crops import Batch
from ..losses.details import detail_ratio
from ..losses.fidelity import psnr
from ..losses.pixels import PixelLoss
from ..settings import NonNegative, Settings
from .base import Training


@dataclass(frozen=True)
class AutoencoderObjective(Settings):
    """What the autoencoder learns from a clip.

    Args:
        pixel_loss (`PixelLoss`, *optional*): of the reconstruction.
        latent_mean_weight (`float`, *optional*, defaults to 0.001): of the squared mean of each latent channel.
        freeze_encoder (`bool`, *optional*, defaults to `False`): trains the decoder only; the latent space stays as it
            is.
    """

    pixel_loss: PixelLoss = PixelLoss()
    latent_mean_weight: NonNegative[float] = 1e-3
    freeze_encoder: bool = False


class AutoencoderTraining(Training):
    """Reconstruction, and latents that stay centred.

    Args:
        autoencoder (`HRAutoencoder`): with an encoder.
        objective (`AutoencoderObjective`): what is learnt.
    """

    def __init__(self, autoencoder: HRAutoencoder, objective: AutoencoderObjective) -> None:
        super().__init__()
        self.autoencoder, self.objective = autoencoder, objective
        for name, parameter in autoencoder.named_parameters():
            parameter.requires_grad_(not (objective.freeze_encoder and name.startswith("encoder")))

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        latents = self.autoencoder.encode(batch.high).latents.float()
        reconstruction = self.autoencoder.decode(latents).sample
        terms = self.objective.pixel_loss(reconstruction, batch.high, batch.flow)
        terms["latent_mean"] = self.objective.latent_mean_weight * latents.mean((0, 2, 3, 4)).square().mean()
        measured = {"psnr": psnr(reconstruction.detach(), batch.high), "latent_std": latents.std()}
        return torch.stack(list(terms.values())).sum(), terms | measured

    def validate(self, batch: Batch) -> dict[str, float | torch.Tensor]:
        reconstruction = self.autoencoder.decode(self.autoencoder.encode(batch.high).latents.float()).sample.float()
        return {
            "psnr": psnr(reconstruction, batch.high).item(),
            "detail": detail_ratio(reconstruction, batch.high).item(),
            "result": reconstruction,
            "truth": batch.high,
        }

    def save_pretrained(self, folder: Path) -> None:
        self.autoencoder.save_pretrained(folder)
