# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The super-resolution transformer's training on real clips (paper, "SR fine-tune")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import get_peft_model_state_dict

from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.hr_autoencoder import HRAutoencoder
from ...models.ultraflash_sr_transformer import SRStreamState, UltraFlashSRTransformer
from ...pipelines.execution.calls import SRCalls
from ...pipelines.lora import UltraFlashLoraLoaderMixin
from ...pipelines.samplers import PreparedPrompts, sample_group, sr_timesteps
from ..data.crops import Batch
from ..data.prompts import Prompts
from ..losses.distribution_matching import clean_from_flow
from ..losses.linear_decoding import decode_linearly, pixel_weights
from ..losses.pixels import (
    PixelLoss,
    add_noise,
    corrupt_condition,
    detail_ratio,
    psnr,
    randn_like,
    sample_sigmas,
    weighted_mse,
)
from .base import Stage, decoder_parameters, one_in, train_only, upsampler_parameters

# blocks that a validation stream remembers, the pipeline's default
KV_CACHE_BLOCKS = 3


@dataclass(frozen=True)
class SRObjective:
    """What the transformer learns from a clip.

    Args:
        name (`str`, *optional*, defaults to `"one_step"`): `"one_step"`, from noise to clean latents at once, compared
            as decoded pixels; or `"flow_matching"`, the flow at a random noise level (the paper's multi-step model).
            A network that predicts the clean latents is compared in these: the flow's error would be
            `1 / sigma^2` times as large, and the losses of the least noisy samples all that counts.
        pixel_loss (`PixelLoss`, *optional*): one step: of the decoded result.
        latent_weight (`float`, *optional*, defaults to 0.0): one step: of the mean squared error of the latents.
        condition_every (`int`, *optional*): where the upsampler is trained too: one batch in so many, drawn at random,
            compares its own result instead, without the contrast term: it stays a picture that can be decoded, and
            the details are left to the transformer.
        reconstruction_every (`int`, *optional*): where the decoder is trained too: one batch in so many decodes the
            clips' own latents, which the decoder must not forget.
        decode_linearly (`bool`, *optional*, defaults to `False`): one step: the pixel losses see the latents through
            the autoencoder's linear shortcut (see [`decode_linearly`]), and not through the whole decoder.
        weigh_channels (`bool`, *optional*, defaults to `False`): squared errors of latents count as much as they show
            in pixels, see [`~ultraflash_diffusers.training.losses.linear_decoding.pixel_weights`].
        flow_shift (`float`, *optional*, defaults to 1.5): flow matching: see [`sample_sigmas`].
        condition_noise (pair of `float`, *optional*, defaults to `(0.0, 0.0)`): bounds of the noise share in the
            condition (paper: 0.4, 0.6).
        condition_dropout (`float`, *optional*, defaults to 0.0): share of samples without a condition (paper: 0.4).
        text_dropout (`float`, *optional*, defaults to 0.0): share of samples with the empty text (paper: 0.1).
    """

    name: Literal["one_step", "flow_matching"] = "one_step"
    pixel_loss: PixelLoss = PixelLoss()
    latent_weight: float = 0.0
    condition_every: int | None = None
    reconstruction_every: int | None = None
    decode_linearly: bool = False
    weigh_channels: bool = False
    flow_shift: float = 1.5
    condition_noise: tuple[float, float] = (0.0, 0.0)
    condition_dropout: float = 0.0
    text_dropout: float = 0.0


class SRStage(Stage):
    """Trains the transformer, or its LoRA layers, on the upsampled latents of degraded clips.

    Args:
        transformer (`UltraFlashSRTransformer`): those of its parameters that require gradients are trained.
        upsampler (`CausalLatentUpsampler`): frozen, unless it has a learning rate.
        autoencoder (`HRAutoencoder`): frozen, but perhaps for the decoder; with an encoder.
        prompts (`Prompts`): embeddings of the clips' texts.
        objective (`SRObjective`): what is learnt.
        num_inference_steps (`int`, *optional*, defaults to 1): denoising steps in validation.
        decoder_learning_rate (`float`, *optional*): trains the decoder too, with this learning rate.
        upsampler_learning_rate (`float`, *optional*): trains the upsampler too, with this one; one step only.
    """

    channel_weights: torch.Tensor | None

    def __init__(
        self,
        transformer: UltraFlashSRTransformer,
        upsampler: CausalLatentUpsampler,
        autoencoder: HRAutoencoder,
        prompts: Prompts,
        objective: SRObjective,
        num_inference_steps: int = 1,
        decoder_learning_rate: float | None = None,
        upsampler_learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.upsampler, self.autoencoder = upsampler, autoencoder
        train_only(upsampler_parameters(upsampler) if upsampler_learning_rate is not None else [], upsampler)
        train_only(decoder_parameters(autoencoder) if decoder_learning_rate is not None else [], autoencoder)
        self.prompts, self.objective, self.num_inference_steps = prompts, objective, num_inference_steps
        self.decoder_learning_rate, self.upsampler_learning_rate = decoder_learning_rate, upsampler_learning_rate
        weights = pixel_weights(autoencoder) if objective.weigh_channels else None
        self.register_buffer("channel_weights", weights, persistent=False)

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        groups = [{"params": [p for p in self.transformer.parameters() if p.requires_grad], "lr": learning_rate}]
        if self.decoder_learning_rate is not None:
            groups.append({"params": decoder_parameters(self.autoencoder), "lr": self.decoder_learning_rate})
        if self.upsampler_learning_rate is not None:
            groups.append({"params": upsampler_parameters(self.upsampler), "lr": self.upsampler_learning_rate})
        return groups

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        objective = self.objective
        if one_in(objective.reconstruction_every, generator):
            return self._without_transformer("reconstruction", batch.encode_high(self.autoencoder), batch)
        clean = self.condition(batch)
        if one_in(objective.condition_every, generator):
            return self._without_transformer("condition", clean, batch, batch.low)
        noise, condition, prompt_embeds = self._inputs(clean, batch.texts, generator)
        if objective.name == "flow_matching":
            return self._flow_matching(batch, condition, noise, prompt_embeds, generator)
        return self._one_step(batch, condition, noise, prompt_embeds)

    def _inputs(
        self, clean: torch.Tensor, texts: list[str], generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noise to start from, and condition and text as training corrupts them."""
        objective = self.objective
        condition = corrupt_condition(clean, generator, objective.condition_noise, objective.condition_dropout)
        dropped = torch.rand(len(texts), generator=generator) < objective.text_dropout
        texts = ["" if drop else text for drop, text in zip(dropped.tolist(), texts, strict=True)]
        return randn_like(condition, generator), condition, self.prompts(texts).to(condition)

    def condition(self, batch: Batch) -> torch.Tensor:
        """Returns the upsampled latents of the degraded clips, float32."""
        return self.upsampler(batch.encode_low(self.autoencoder)).sample.float()

    def _one_step(
        self, batch: Batch, condition: torch.Tensor, noise: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        latents = self._denoised(noise, condition, prompt_embeds)
        decoded = self._decode(latents)
        terms = self.objective.pixel_loss(decoded, batch.high, batch.flow, batch.low)
        if self.objective.latent_weight > 0:
            error = weighted_mse(latents, batch.encode_high(self.autoencoder), self.channel_weights)
            terms["latent"] = self.objective.latent_weight * error
        return torch.stack(list(terms.values())).sum(), terms | {"psnr": self._psnr(decoded.detach(), batch)}

    def _denoised(self, noise: torch.Tensor, condition: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """The clean latents that one step makes of noise."""
        calls = SRCalls(self.transformer)
        prompts = PreparedPrompts.of(calls, [prompt_embeds])
        return sample_group(calls, self._scheduler(1), noise, condition, prompts, [None])[0]

    def _without_transformer(
        self, name: str, latents: torch.Tensor, batch: Batch, source: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of latents as they are, which has no contrast term; logged under the name alone."""
        decoded = self._decode(latents)
        pixel_loss = replace(self.objective.pixel_loss, contrast_weight=0.0)
        loss = torch.stack(list(pixel_loss(decoded, batch.high, batch.flow, source).values())).sum()
        return loss, {name: loss, f"psnr_of_{name}": psnr(pixel_loss.corrected(decoded.detach(), source), batch.high)}

    def _psnr(self, decoded: torch.Tensor, batch: Batch) -> torch.Tensor:
        return psnr(self.objective.pixel_loss.corrected(decoded, batch.low), batch.high)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels for the losses; validation always sees those of the whole decoder."""
        if self.objective.decode_linearly:
            return decode_linearly(self.autoencoder, latents)
        return self.autoencoder.decode(latents).sample

    def _flow_matching(
        self,
        batch: Batch,
        condition: torch.Tensor,
        noise: torch.Tensor,
        prompt_embeds: torch.Tensor,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        clean = batch.encode_high(self.autoencoder)
        sigmas = sample_sigmas(len(clean), generator, self.objective.flow_shift).to(clean.device)
        noisy = add_noise(clean, noise, sigmas)
        flow = self.transformer(torch.cat([noisy, condition], dim=1), 1000 * sigmas, prompt_embeds).sample
        flow, measured = flow.float(), {"sigma": sigmas.mean()}
        if self._predicts == "flow":
            return weighted_mse(flow, noise - clean, self.channel_weights), measured
        return weighted_mse(clean_from_flow(noisy, flow, sigmas), clean, self.channel_weights), measured

    @property
    def _predicts(self) -> Literal["flow", "clean"]:
        """What the errors of networks at a noise level are measured in: what they predict."""
        return "flow" if self.transformer.config.prediction_type == "flow" else "clean"

    def validate(self, batch: Batch) -> Mapping[str, float | torch.Tensor]:
        condition = self.condition(batch)
        latents = self._restored(*self._validation_inputs(condition, batch.texts))
        result = self.autoencoder.decode(latents).sample
        return {**self._measured(result, condition, batch), **self._shown(result, batch)}

    def _shown(self, result: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """The videos that a validation shows."""
        shown = {"result": self.objective.pixel_loss.corrected(result, batch.low), "truth": batch.high}
        return shown if batch.low is None else {"input": batch.low} | shown

    def _measured(self, result: torch.Tensor, condition: torch.Tensor, batch: Batch) -> dict[str, float]:
        before = self.autoencoder.decode(condition).sample
        return {
            "psnr": self._psnr(result, batch).item(),
            "psnr_of_condition": self._psnr(before, batch).item(),
            "detail": detail_ratio(self.objective.pixel_loss.corrected(result, batch.low), batch.high).item(),
        }

    def _validation_inputs(
        self, condition: torch.Tensor, texts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same noise at every validation, the condition with as much noise as on average, and the text."""
        generator = torch.Generator().manual_seed(0)
        low, high = self.objective.condition_noise
        share = torch.full((len(condition),), (low + high) / 2)
        condition = add_noise(condition, randn_like(condition, generator), share)
        groups = condition.split(self.transformer.config.chunk_size, dim=2)
        noise = torch.cat([randn_like(group, generator) for group in groups], dim=2)
        return noise, condition, self.prompts(texts).to(condition)

    def _restored(self, noise: torch.Tensor, condition: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """Streams the condition through the transformer as the pipeline does, group by group."""
        frames, calls = self.transformer.config.chunk_size, SRCalls(self.transformer)
        prompts = PreparedPrompts.of(calls, [prompt_embeds])
        states: list[SRStreamState | None] = [self.transformer.new_stream(KV_CACHE_BLOCKS)]
        groups = []
        for latents, group in zip(noise.split(frames, dim=2), condition.split(frames, dim=2), strict=True):
            scheduler = self._scheduler(self.num_inference_steps)
            latents, states = sample_group(calls, scheduler, latents, group, prompts, states)
            groups.append(latents)
        return torch.cat(groups, dim=2)

    def _scheduler(self, steps: int) -> FlowMatchEulerDiscreteScheduler:
        """Noise levels from 1 to 0, evenly spaced and then shifted as in training."""
        return sr_timesteps(FlowMatchEulerDiscreteScheduler(shift=self.objective.flow_shift), steps)

    def save_pretrained(self, folder: Path) -> None:
        """Writes the transformer to `transformer` (LoRA layers to `folder`), and what was trained beside it.

        That is the autoencoder, whose decoder was trained, to `autoencoder`, and the upsampler to `latent_upsampler`.
        """
        if self.transformer._hf_peft_config_loaded:
            UltraFlashLoraLoaderMixin.save_lora_weights(folder, get_peft_model_state_dict(self.transformer))
        else:
            self.transformer.save_pretrained(folder / "transformer")
        if self.decoder_learning_rate is not None:
            self.autoencoder.save_pretrained(folder / "autoencoder")
        if self.upsampler_learning_rate is not None:
            self.upsampler.save_pretrained(folder / "latent_upsampler")
