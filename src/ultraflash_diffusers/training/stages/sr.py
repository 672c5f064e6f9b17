# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The super-resolution transformer's training on real clips (paper, "SR fine-tune")."""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.utils import logging
from torch import nn

from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.hr_autoencoder import HRAutoencoder
from ...models.ultraflash_sr_transformer import SRStreamState, UltraFlashSRTransformer
from ...pipelines.execution.calls import SRCalls
from ...pipelines.samplers import PreparedPrompts, sample_group, sr_timesteps
from ..data.crops import Batch
from ..data.prompts import Prompts
from ..losses.details import detail_ratio
from ..losses.distribution_matching import clean_from_flow
from ..losses.fidelity import psnr
from ..losses.flow_matching import add_noise, corrupt_condition, randn_like, sample_sigmas, weighted_mse
from ..losses.linear_decoding import pixel_weights
from ..settings import Count, Positive, Settings, Share
from ..starting_points.lora import choose_trained, lora_of, save_lora
from ..starting_points.networks import (
    StreamSettings,
    load_network,
    start_network,
)
from .base import EncodingTraining

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class SRObjective(Settings):
    """What all trainings of the transformer share.

    Args:
        condition_noise (pair of `float`, *optional*, defaults to `(0.0, 0.0)`): bounds of the share of noise in the
            condition (paper: 0.4, 0.6).
        condition_dropout (`float`, *optional*, defaults to 0.0): share of samples without a condition (paper: 0.4).
        text_dropout (`float`, *optional*, defaults to 0.0): share of samples with the empty text (paper: 0.1).
        weigh_channels (`bool`, *optional*, defaults to `False`): errors of latents count as much as they show in
            pixels, through the autoencoder's linear shortcut.
    """

    condition_noise: tuple[Share, Share] = (0.0, 0.0)
    condition_dropout: Share = 0.0
    text_dropout: Share = 0.0
    weigh_channels: bool = False

    @property
    def mean_condition_noise(self) -> float:
        """What a checkpoint records, and a pipeline of it takes."""
        return sum(self.condition_noise) / 2


@dataclass(frozen=True)
class FlowMatching(SRObjective):
    """The flow at a random noise level: the paper's multi-step model, with the paper's corruption of its inputs.

    A network that predicts the clean latents is compared in these: the flow's error would be `1 / sigma^2` times as
    large, and the losses of the least noisy samples all that counts.

    Args:
        flow_shift (`float`, *optional*, defaults to 1.5): of noise levels, in training and validation.
        num_inference_steps (`int`, *optional*, defaults to 8): denoising steps in validation.
    """

    condition_noise: tuple[Share, Share] = (0.4, 0.6)
    condition_dropout: Share = 0.4
    text_dropout: Share = 0.1
    flow_shift: Positive[float] = 1.5
    num_inference_steps: Count = 8


class SRTraining(EncodingTraining):
    """Trains the transformer, or its LoRA layers, on the upsampled latents of degraded clips.

    Args:
        transformer (`UltraFlashSRTransformer`): those of its parameters that require gradients are trained.
        upsampler (`CausalLatentUpsampler`): frozen.
        autoencoder (`HRAutoencoder`): frozen; with an encoder, or else there is [`~EncodingTraining.encode_by`].
        prompts (`Prompts`): embeddings of the clips' texts.
        objective (`SRObjective`): what is learnt.
    """

    channel_weights: torch.Tensor | None
    # of validation
    streams = StreamSettings()

    def __init__(
        self,
        transformer: UltraFlashSRTransformer,
        upsampler: CausalLatentUpsampler,
        autoencoder: HRAutoencoder,
        prompts: Prompts,
        objective: SRObjective,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.upsampler = upsampler.requires_grad_(False)
        self.autoencoder = autoencoder.requires_grad_(False)
        self.prompts, self.objective = prompts, objective
        warn_of_other_noise("the transformer", transformer, objective)
        weights = pixel_weights(autoencoder) if objective.weigh_channels else None
        self.register_buffer("channel_weights", weights, persistent=False)

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        return [{"params": [p for p in self.transformer.parameters() if p.requires_grad], "lr": learning_rate}]

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
        return self.upsampler(batch.encode_low(self.encoder)).sample.float()

    @property
    def _predicts(self) -> Literal["flow", "clean"]:
        """What the errors of networks at a noise level are measured in: what they predict."""
        return "flow" if self.transformer.config.prediction_type == "flow" else "clean"

    def validate(self, batch: Batch) -> Mapping[str, float | torch.Tensor]:
        condition = self.condition(batch)
        latents = self._restored(*self._validation_inputs(condition, batch.texts))
        result = self.autoencoder.decode(latents).sample
        return {**self._measured(result, condition, batch), **self._shown(result, batch)}

    @property
    @abstractmethod
    def sampler(self) -> FlowMatchEulerDiscreteScheduler:
        """The denoising steps of a validation."""

    def corrected(self, result: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Returns decoded pixels in the colours that they are compared in: by default their own."""
        return result

    def _shown(self, result: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """The videos that a validation shows."""
        shown = {"result": self.corrected(result, batch), "truth": batch.high}
        return shown if batch.low is None else {"input": batch.low} | shown

    def _measured(self, result: torch.Tensor, condition: torch.Tensor, batch: Batch) -> dict[str, float]:
        result, before = (
            self.corrected(pixels, batch) for pixels in (result, self.autoencoder.decode(condition).sample)
        )
        return {
            "psnr": psnr(result, batch.high).item(),
            "psnr_of_condition": psnr(before, batch.high).item(),
            "detail": detail_ratio(result, batch.high).item(),
        }

    def _validation_inputs(
        self, condition: torch.Tensor, texts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same noise at every validation, the condition with as much noise as on average, and the text."""
        generator = torch.Generator().manual_seed(0)
        share = torch.full((len(condition),), self.objective.mean_condition_noise)
        condition = add_noise(condition, randn_like(condition, generator), share)
        groups = condition.split(self.streams.frames_of(self.transformer), dim=2)
        noise = torch.cat([randn_like(group, generator) for group in groups], dim=2)
        return noise, condition, self.prompts(texts).to(condition)

    def _restored(self, noise: torch.Tensor, condition: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """Streams the condition through the transformer as the pipeline does, group by group."""
        calls, frames = SRCalls(self.transformer), self.streams.frames_of(self.transformer)
        prompts = PreparedPrompts.of(calls, [prompt_embeds])
        states: list[SRStreamState | None] = [self.transformer.new_stream(self.streams.kv_cache_blocks)]
        groups = []
        for latents, group in zip(noise.split(frames, dim=2), condition.split(frames, dim=2), strict=True):
            latents, states = sample_group(calls, self.sampler, latents, group, prompts, states)
            groups.append(latents)
        return torch.cat(groups, dim=2)

    def save_pretrained(self, folder: Path) -> None:
        """Writes the transformer to `transformer`, or LoRA layers to `folder`."""
        if self.transformer._hf_peft_config_loaded:
            save_lora(self.transformer, folder)
        else:
            self.transformer.register_to_config(condition_noise=self.objective.mean_condition_noise)
            self.transformer.save_pretrained(folder / "transformer")


class FlowMatchingTraining(SRTraining):
    """Trains the multi-step transformer in latents: of [`SRTraining`] with [`FlowMatching`]."""

    objective: FlowMatching

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        noise, condition, prompt_embeds = self._inputs(self.condition(batch), batch.texts, generator)
        clean = batch.encode_high(self.encoder)
        sigmas = sample_sigmas(len(clean), generator, self.objective.flow_shift).to(clean.device)
        noisy = add_noise(clean, noise, sigmas)
        flow = self.transformer(torch.cat([noisy, condition], dim=1), 1000 * sigmas, prompt_embeds).sample
        flow, measured = flow.float(), {"sigma": sigmas.mean()}
        if self._predicts == "flow":
            return weighted_mse(flow, noise - clean, self.channel_weights), measured
        return weighted_mse(clean_from_flow(noisy, flow, sigmas), clean, self.channel_weights), measured

    @property
    def sampler(self) -> FlowMatchEulerDiscreteScheduler:
        return sampler(self.objective.num_inference_steps, self.objective.flow_shift)


def warn_of_other_noise(what: str, transformer: UltraFlashSRTransformer, objective: SRObjective) -> None:
    """Says where a network was trained with other noise in the condition than it is going to be used with.

    Args:
        what (`str`): it is.
        transformer (`UltraFlashSRTransformer`): whose config may say its noise.
        objective (`SRObjective`): with the noise of this run.
    """
    recorded, ours = transformer.config.condition_noise, objective.mean_condition_noise
    if recorded is not None and abs(recorded - ours) > 1e-6:
        logger.warning(
            f"{what} was trained with {recorded:g} of noise in the condition, and gets {ours:g} on average here: "
            "--condition_noise says which"
        )


def sampler(num_inference_steps: int, flow_shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of so many steps from noise, evenly spaced and then shifted.

    Args:
        num_inference_steps (`int`): how many.
        flow_shift (`float`, *optional*, defaults to 1.0): to more noise, as
            [`~ultraflash_diffusers.training.losses.flow_matching.sample_sigmas`] shifts it in training.
    """
    return sr_timesteps(FlowMatchEulerDiscreteScheduler(shift=flow_shift), num_inference_steps)


def start_transformer(arguments: argparse.Namespace) -> UltraFlashSRTransformer:
    """The network to train, with LoRA layers if they are asked for.

    Args:
        arguments (`argparse.Namespace`): of `training/train_sr.py`.
    """
    if arguments.pretrained_wan is not None:
        wan = load_network(WanTransformer3DModel, arguments.pretrained_wan, "transformer")
        transformer = UltraFlashSRTransformer.from_wan(wan)
    else:
        transformer = start_network(UltraFlashSRTransformer, arguments, "transformer")
    if arguments.network_config is not None:
        # at first a "detail" network gives the condition back, a "flow" network no flow
        nn.init.zeros_(transformer.proj_out.weight)
        nn.init.zeros_(transformer.proj_out.bias)
    choose_trained(transformer, lora_of(arguments))
    return transformer
