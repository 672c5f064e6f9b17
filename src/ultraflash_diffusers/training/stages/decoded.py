# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trainings of one-step transformers by their decoded results (paper, "SR fine-tune", "Phase I")."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.hr_autoencoder import HRAutoencoder
from ...models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ...pipelines.execution.calls import SRCalls
from ...pipelines.samplers import PreparedPrompts, sample_group
from ..data.crops import Batch
from ..data.prompts import Prompts
from ..losses.fidelity import psnr
from ..losses.flow_matching import weighted_mse
from ..losses.linear_decoding import decode_linearly
from ..losses.perceptual import PerceptualLoss
from ..losses.pixels import PixelLoss
from ..settings import Count, NonNegative
from ..starting_points.networks import decoder_parameters, train_only, upsampler_parameters
from .base import one_in
from .sr import SRObjective, SRTraining, sampler
from .tuning import DecoderTuning, UpsamplerTuning, check_decoding

# latents that are decoded for the decoder's memory in front of those that losses see
LATENTS_BEFORE = 3


@dataclass(frozen=True)
class DecodedObjective(SRObjective):
    """What trainings share that compare decoded results.

    Args:
        pixel_loss (`PixelLoss`, *optional*): of the decoded result.
        decode_linearly (`bool`, *optional*, defaults to `False`): the losses see the latents through the autoencoder's
            linear shortcut alone, which is cheap.
        decoded_latents (`int`, *optional*): consecutive latents of a clip, drawn for each step, that losses of decoded
            results see: the decoder's memory grows with them. All by default.
        perceptual_weight (`float`, *optional*, defaults to 0.0): of the perceptual loss of the decoded result.
        judged_frames (`int`, *optional*, defaults to 1): frames of a clip, drawn anew for each batch, that the
            perceptual loss (and a reward) sees; all of them if the clip has no more.
        judged_clips (`int`, *optional*): the first clips of a batch, of which these frames are; all by default. Large
            judges cost more than all that is trained.
        decoder (`DecoderTuning`, *optional*): whether the decoder is trained along.

    Raises:
        ValueError: a decoder that is to be trained and is not used.
    """

    pixel_loss: PixelLoss = PixelLoss()
    decode_linearly: bool = False
    decoded_latents: Count | None = None
    perceptual_weight: NonNegative[float] = 0.0
    judged_frames: Count = 1
    judged_clips: Count | None = None
    decoder: DecoderTuning = DecoderTuning()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decoding(self.decode_linearly, self.decoder)
        if self.decoded_latents is not None and self.decode_linearly:
            raise ValueError("`decoded_latents` saves the memory of the decoder, which `decode_linearly` leaves out")


@dataclass(frozen=True)
class OneStep(DecodedObjective):
    """From noise to clean latents at once, compared as decoded pixels; begins with a clean condition.

    Args:
        latent_weight (`float`, *optional*, defaults to 0.0): of the mean squared error of the latents.
        upsampler (`UpsamplerTuning`, *optional*): whether the upsampler is trained along.
    """

    latent_weight: NonNegative[float] = 0.0
    upsampler: UpsamplerTuning = UpsamplerTuning()

    @property
    def alternates(self) -> bool:
        """Whether some steps leave out some of what is trained."""
        return self.upsampler.every is not None or self.decoder.reconstruction_every is not None


class DecodedTraining(SRTraining):
    """Trains a one-step transformer by its decoded results, and perhaps the decoder along.

    Args:
        transformer, upsampler, autoencoder, prompts, objective: see [`SRTraining`].
        perceptual (`PerceptualLoss`, *optional*): frozen.

    Raises:
        ValueError: a weight for a perceptual loss that is not there.
    """

    objective: DecodedObjective

    def __init__(
        self,
        transformer: UltraFlashSRTransformer,
        upsampler: CausalLatentUpsampler,
        autoencoder: HRAutoencoder,
        prompts: Prompts,
        objective: DecodedObjective,
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        if objective.perceptual_weight > 0 and perceptual is None:
            raise ValueError(f"`perceptual_weight` is {objective.perceptual_weight}, but `perceptual` is None")
        super().__init__(transformer, upsampler, autoencoder, prompts, objective)
        self.perceptual = perceptual
        self._frozen: list[nn.Module] = [] if perceptual is None else [perceptual]
        train_only(decoder_parameters(autoencoder) if objective.decoder.train_decoder else [], autoencoder)
        self._reconstructs = False
        self._place = 0.0  # of the decoded latents among all, the same in all processes

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the trained networks; what is frozen judges as it always does."""
        super().train(mode)
        for network in self._frozen:
            network.eval()
        return self

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        tuned = self.objective.decoder.parameter_groups(self.autoencoder, learning_rate)
        return [*super().parameter_groups(learning_rate), *tuned]

    def begin_step(self, step: int, generator: torch.Generator) -> None:
        self._reconstructs = one_in(self.objective.decoder.reconstruction_every, generator)
        if self.objective.decoded_latents is not None:
            self._place = torch.rand((), generator=generator, dtype=torch.float64).item()

    @property
    def sampler(self) -> FlowMatchEulerDiscreteScheduler:
        return sampler(1)

    def corrected(self, result: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Returns decoded pixels as the pixel loss corrects their colours."""
        return self.objective.pixel_loss.corrected(result, batch.low)

    def _denoised(self, noise: torch.Tensor, condition: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """The clean latents that one step makes of noise."""
        calls = SRCalls(self.transformer)
        prompts = PreparedPrompts.of(calls, [prompt_embeds])
        return sample_group(calls, self.sampler, noise, condition, prompts, [None])[0]

    def _decode(self, latents: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Batch]:
        """Pixels for the losses, and the clips at the frames that they show; validation sees those of whole clips."""
        if self.objective.decode_linearly:
            return decode_linearly(self.autoencoder, latents), batch
        count, number = latents.shape[2], self.objective.decoded_latents
        if number is None or number >= count:
            return self.autoencoder.decode(latents).sample, batch
        first = int(self._place * (count - number + 1))
        state, ratio = None, self.autoencoder.temporal_compression_ratio
        if first > 0:  # behind some latents, as in the middle of a stream
            with torch.no_grad():
                state = self.autoencoder.decode(latents[:, :, max(0, first - LATENTS_BEFORE) : first]).state
        decoded = self.autoencoder.decode(latents[:, :, first : first + number], state=state).sample
        start = 0 if first == 0 else ratio * (first - 1) + 1
        return decoded, batch.at(slice(start, start + decoded.shape[2]))

    def _judged(
        self, decoded: torch.Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Some frames of the result, in the colours that are compared, and of the clips."""
        result, clips = self.corrected(decoded, batch), slice(self.objective.judged_clips)
        chosen = torch.randperm(result.shape[2], generator=generator)[: self.objective.judged_frames]
        result, target = (pixels[clips, :, chosen.to(pixels.device)] for pixels in (result, batch.high))
        return result, target

    def _without_transformer(
        self, name: str, latents: torch.Tensor, batch: Batch, source: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of latents as they are, which has no contrast term; logged under the name alone."""
        decoded, batch = self._decode(latents, batch)
        source = None if source is None else batch.low
        pixel_loss = replace(self.objective.pixel_loss, contrast_weight=0.0)
        loss = torch.stack(list(pixel_loss(decoded, batch.high, batch.flow, source).values())).sum()
        return loss, {name: loss, f"psnr_of_{name}": psnr(pixel_loss.corrected(decoded.detach(), source), batch.high)}

    def save_pretrained(self, folder: Path) -> None:
        """Writes the transformer to `transformer` (LoRA layers to `folder`), and a trained decoder's autoencoder."""
        super().save_pretrained(folder)
        if self.objective.decoder.train_decoder:
            self.autoencoder.save_pretrained(folder / "autoencoder")


class OneStepTraining(DecodedTraining):
    """Trains the one-step transformer in pixels, perhaps with decoder and upsampler: with [`OneStep`]."""

    objective: OneStep

    def __init__(
        self,
        transformer: UltraFlashSRTransformer,
        upsampler: CausalLatentUpsampler,
        autoencoder: HRAutoencoder,
        prompts: Prompts,
        objective: OneStep,
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        super().__init__(transformer, upsampler, autoencoder, prompts, objective, perceptual)
        tuned = upsampler_parameters(upsampler) if objective.upsampler.train_latent_upsampler else []
        train_only(tuned, upsampler)
        self._compares_condition = False

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        tuned = self.objective.upsampler.parameter_groups(self.upsampler, learning_rate)
        return [*super().parameter_groups(learning_rate), *tuned]

    def begin_step(self, step: int, generator: torch.Generator) -> None:
        super().begin_step(step, generator)
        self._compares_condition = one_in(self.objective.upsampler.every, generator)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if self._reconstructs:
            return self._without_transformer("reconstruction", batch.encode_high(self.encoder), batch)
        clean = self.condition(batch)
        if self._compares_condition:
            return self._without_transformer("condition", clean, batch, batch.low)
        latents = self._denoised(*self._inputs(clean, batch.texts, generator))
        terms, measured = {}, {}
        judge = self.perceptual if self.objective.perceptual_weight > 0 else None
        if judge is not None or not self.objective.pixel_loss.is_empty:
            decoded, shown = self._decode(latents, batch)
            terms = self.objective.pixel_loss(decoded, shown.high, shown.flow, shown.low)
            measured = {"psnr": psnr(self.corrected(decoded.detach(), shown), shown.high)}
            if judge is not None:
                distance = judge(*self._judged(decoded, shown, generator))
                terms["perceptual"] = self.objective.perceptual_weight * distance
        if self.objective.latent_weight > 0:
            error = weighted_mse(latents, batch.encode_high(self.encoder), self.channel_weights)
            terms["latent"] = self.objective.latent_weight * error
        return torch.stack(list(terms.values())).sum(), terms | measured

    def save_pretrained(self, folder: Path) -> None:
        """As [`~DecodedTraining.save_pretrained`], and the upsampler, if it was trained, to `latent_upsampler`."""
        super().save_pretrained(folder)
        if self.objective.upsampler.train_latent_upsampler:
            self.upsampler.save_pretrained(folder / "latent_upsampler")
