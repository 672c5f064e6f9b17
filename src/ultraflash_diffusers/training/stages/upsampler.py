# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The causal latent upsampler's training in a finished autoencoder's latent space (paper, "Latent upsampler")."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.hr_autoencoder import HRAutoencoder
from ..data.crops import Batch
from ..losses.fidelity import psnr
from ..losses.linear_decoding import decode_linearly
from ..losses.pixels import PixelLoss
from ..settings import NonNegative, Settings
from ..starting_points.networks import decoder_parameters, train_only, upsampler_parameters
from .base import Training, one_in
from .tuning import DecoderTuning, check_decoding


@dataclass(frozen=True)
class UpsamplerObjective(Settings):
    """What the upsampler learns from a clip.

    Args:
        pixel_loss (`PixelLoss`, *optional*): of the decoded latents.
        latent_weight (`float`, *optional*, defaults to 0.01): of the mean squared error of the latents.
        decode_linearly (`bool`, *optional*, defaults to `False`): the losses see the latents through the autoencoder's
            linear shortcut alone, which is cheap.
        decoder (`DecoderTuning`, *optional*): whether the decoder is trained along, which learns to make the best of
            upsampled latents.

    Raises:
        ValueError: a decoder that is to be trained and is not used.
    """

    pixel_loss: PixelLoss = PixelLoss()
    latent_weight: NonNegative[float] = 0.01
    decode_linearly: bool = False
    decoder: DecoderTuning = DecoderTuning()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decoding(self.decode_linearly, self.decoder)


class UpsamplerTraining(Training):
    """The upsampled latents of degraded clips against the clips, as latents and decoded.

    Args:
        upsampler (`CausalLatentUpsampler`): what is trained, but for its residual head.
        autoencoder (`HRAutoencoder`): frozen, but perhaps for the decoder; with an encoder.
        objective (`UpsamplerObjective`): what is learnt.
    """

    def __init__(
        self, upsampler: CausalLatentUpsampler, autoencoder: HRAutoencoder, objective: UpsamplerObjective
    ) -> None:
        super().__init__()
        self.upsampler, self.autoencoder, self.objective = upsampler, autoencoder, objective
        train_only(upsampler_parameters(upsampler), upsampler)
        train_only(decoder_parameters(autoencoder) if objective.decoder.train_decoder else [], autoencoder)
        self._reconstructs = False

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        own = {"params": upsampler_parameters(self.upsampler), "lr": learning_rate}
        return [own, *self.objective.decoder.parameter_groups(self.autoencoder, learning_rate)]

    def begin_step(self, step: int, generator: torch.Generator) -> None:
        self._reconstructs = one_in(self.objective.decoder.reconstruction_every, generator)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        low, target = batch.encode_low(self.autoencoder), batch.encode_high(self.autoencoder)
        latents = target if self._reconstructs else self.upsampler(low).sample.float()
        decoded = self._decode(latents)
        source = None if self._reconstructs else batch.low
        terms = self.objective.pixel_loss(decoded, batch.high, batch.flow, source)
        terms["latent"] = self.objective.latent_weight * F.mse_loss(latents, target)
        measured = {"psnr": psnr(self.objective.pixel_loss.corrected(decoded.detach(), source), batch.high)}
        return torch.stack(list(terms.values())).sum(), terms | measured

    def validate(self, batch: Batch) -> dict[str, float | torch.Tensor]:
        assert batch.low is not None
        latents = self.upsampler(batch.encode_low(self.autoencoder)).sample.float()
        result = self.objective.pixel_loss.corrected(self._decode(latents), batch.low)
        reached = psnr(result, batch.high).item()
        return {
            "psnr": reached,
            "gain_over_bicubic": reached - psnr(bicubic(batch.low, self.upsampler.config.scale), batch.high).item(),
            "input": batch.low,
            "result": result,
            "truth": batch.high,
        }

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        if self.objective.decode_linearly:
            return decode_linearly(self.autoencoder, latents)
        return self.autoencoder.decode(latents).sample

    def save_pretrained(self, folder: Path) -> None:
        """Writes the upsampler to `folder`, and the autoencoder, whose decoder was trained, to its `autoencoder`."""
        self.upsampler.save_pretrained(folder)
        if self.objective.decoder.train_decoder:
            self.autoencoder.save_pretrained(folder / "autoencoder")


def bicubic(pixels: torch.Tensor, scale: int) -> torch.Tensor:
    """Enlarges each frame of `[batch, 3, frames, height, width]`: what a learnt upsampler has to beat."""
    frames = F.interpolate(pixels.transpose(1, 2).flatten(0, 1), scale_factor=scale, mode="bicubic")
    return frames.unflatten(0, (len(pixels), -1)).transpose(1, 2)
