# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Cascaded self-forcing preference optimisation of the SR transformer (paper, "Phase II")."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from ...models.ultraflash_sr_transformer import SRStreamState, UltraFlashSRTransformer
from ...pipelines.noise import SeededFrameNoise
from ...pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from ...pipelines.samplers import sr_timesteps
from ...pipelines.sources import Source
from ..data.crops import Batch, CropDataset
from ..data.inputs import load_cascade_data
from ..data.prompt_batches import PromptBatch, PromptDataset, load_prompts
from ..data.prompts import Prompts, texts_of
from ..losses.flow_matching import add_noise, randn_like
from ..losses.linear_decoding import check_linear_shortcut, pixel_weights
from ..losses.preference import preference_loss, preference_margin, squared_error_change
from ..settings import Count, Positive, Settings
from ..starting_points.lora import choose_trained, lora_of, save_lora
from ..starting_points.networks import has_no_weights, load_cascade, load_network
from .base import Training
from .cascade_rollout import SRStream, clip_source, rollout_groups, text_source
from .preference_pairs import Pair, PairMaker

BETAS = {"mean": 2000.0, "sum": 0.1}
_SEED_LIMIT = 2**63 - 1


@dataclass(frozen=True)
class PreferenceObjective(Settings):
    """What the transformer learns to prefer.

    Args:
        margin_reduction (`str`, *optional*, defaults to `"mean"`): of the squared errors of a sample's elements, which
            makes the strength independent of its size, or `"sum"`.
        beta (`float`, *optional*): how near to the reference it stays, see [`preference_margin`]; 2000 (Diffusion-DPO)
            with the mean and 0.1 (paper) with the sum by default.
        num_inference_steps (`int`, *optional*, defaults to 1): steps of the transformer that is tuned.
        weigh_channels (`bool`, *optional*, defaults to `False`): winner and loser differ by what shows in pixels,
            through the autoencoder's linear shortcut.
    """

    margin_reduction: Literal["mean", "sum"] = "mean"
    beta: Positive[float] | None = None
    num_inference_steps: Count = 1
    weigh_channels: bool = False

    @property
    def strength(self) -> float:
        """`beta`, or its default."""
        return BETAS[self.margin_reduction] if self.beta is None else self.beta


@dataclass(frozen=True)
class _Comparison:
    """A pair, and what its two networks saw: the inputs that winner and loser share."""

    pair: Pair
    condition: torch.Tensor
    prompt_embeds: torch.Tensor
    state: SRStreamState
    reference_state: SRStreamState


class PreferenceTraining(Training):
    """Trains the SR transformer, or its LoRA layers, to prefer the winners among what its own streams lead to.

    A batch is rolled out through the whole cascade as at inference: source, upsampler, and the transformer with its
    cache, up to a group that is drawn at random. There the pair is made, and the loss of [`preference_loss`] computed.
    The trained network and the reference each see the group behind a past of their own making; gradients reach the
    group, and not its past.

    Noise levels are those of the sampler: one step has one, sigma 1, at which a one-step network is only ever used
    (other levels would train it on inputs that it never meets); of several steps' levels each sample draws one. The
    noise is fresh, and the same for winner and loser.

    Training's pairs are the network's own of the moment: their margin rises, and falls again as the results come near
    the preferred ones, where there is nothing left to prefer. Progress is what validation measures: `margin`, of pairs
    that the reference's results make, and `pair_distance` (to a teacher's result) or `reward`, of our own.

    Args:
        pipe (`UltraFlashStreamingPipeline`): the cascade with the transformer to train, those of whose parameters that
            require gradients are trained: all of them, or its LoRA layers. With a generator for [`PromptBatch`]es.
        pairs (`PairMaker`): where winners and losers come from.
        prompts (`Prompts`): embeddings of the texts, and of the empty one.
        objective (`PreferenceObjective`, *optional*): what is learnt.
        reference (`UltraFlashSRTransformer`, *optional*): the Phase I checkpoint, for a whole network that is already
            beyond it; by default a copy of the network. LoRA layers are switched off instead.

    Raises:
        ValueError: a reference of another shape, or one beside LoRA layers.
    """

    channel_weights: torch.Tensor | None

    def __init__(
        self,
        pipe: UltraFlashStreamingPipeline,
        pairs: PairMaker,
        prompts: Prompts,
        objective: PreferenceObjective | None = None,
        reference: UltraFlashSRTransformer | None = None,
    ) -> None:
        super().__init__()
        self.objective = objective or PreferenceObjective()
        weights = pixel_weights(pipe.autoencoder) if self.objective.weigh_channels else None
        self.register_buffer("channel_weights", weights, persistent=False)
        self.transformer: UltraFlashSRTransformer = pipe.transformer
        self.reference = self._checked_reference(reference)
        self.pairs = pairs
        around = (pipe.latent_upsampler, pipe.autoencoder, pipe.generator_transformer, pipe.encoder)
        self.frozen = nn.ModuleList(network.requires_grad_(False) for network in around if network is not None)
        self.pipe, self.prompts = pipe, prompts
        self._place = 0.0  # of the group, in its clip

    def _checked_reference(self, reference: UltraFlashSRTransformer | None) -> UltraFlashSRTransformer | None:
        if self.transformer._hf_peft_config_loaded:
            if reference is not None:
                raise ValueError("`reference` was given, but with LoRA layers it is the network without them")
            return None
        if reference is None:
            reference = deepcopy(self.transformer)
        check_reference(reference, self.transformer)
        return reference.requires_grad_(False)

    def begin_step(self, step: int, generator: torch.Generator) -> None:
        self._place = torch.rand((), generator=generator, dtype=torch.float64).item()

    def forward(
        self, batch: Batch | PromptBatch, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        group = int(self._place * self._whole_groups(batch))
        comparison = self.compare(batch, group, generator)
        margin = self.margin(comparison, generator)
        return preference_loss(margin), self._measured(comparison, margin.detach())

    def _measured(self, comparison: _Comparison, margin: torch.Tensor) -> dict[str, torch.Tensor]:
        pair = comparison.pair
        return {
            "margin": margin.mean(),
            "accuracy": (margin > 0).float().mean(),
            "pair_distance": F.mse_loss(pair.winner, pair.loser),
            **pair.measured,
        }

    def _whole_groups(self, batch: Batch | PromptBatch) -> int:
        frames = batch.size.frames if isinstance(batch, PromptBatch) else batch.high.shape[2]
        return whole_groups(self.pipe, frames)

    @torch.no_grad()
    def compare(
        self, batch: Batch | PromptBatch, group: int, generator: torch.Generator, by_reference: bool = False
    ) -> _Comparison:
        """Rolls the cascade out and makes the pair of a group.

        Args:
            batch (`Batch` or `PromptBatch`): low-resolution clips, or prompts for the pipeline's generator.
            group (`int`): its number, from 0.
            generator (`torch.Generator`): on the CPU; seeds the stream.
            by_reference (`bool`, *optional*, defaults to `False`): whether "our own" results are the reference's: a
                pair that stays the same while the network is trained.
        """
        size = len(batch.texts)
        seeds = torch.randint(_SEED_LIMIT, (size,), generator=generator).tolist()
        noise = SeededFrameNoise(seeds, size)
        device = self.transformer.device
        embeds = [self.prompts(texts).to(device) for texts in (batch.texts, [""] * size)]
        own = SRStream(self.pipe, self.transformer, noise, embeds, self.objective.num_inference_steps)
        with self._reference() as reference_network:
            reference = SRStream(self.pipe, reference_network, noise, embeds, self.objective.num_inference_steps)
        stream = self.pairs.start(self.pipe, noise, seeds, embeds)
        groups = rollout_groups(self.pipe, self._source(batch, group, embeds[0], noise))
        for past in islice(groups, group):
            latents = own.advance(past)
            with self._reference():
                reference_latents = reference.advance(past)
            stream.follow(past, reference_latents if by_reference else latents)
        with self._reference() if by_reference else nullcontext():
            judged = reference if by_reference else own
            last = next(groups)
            pair = stream.pair(last, judged)
        return _Comparison(pair, judged.condition(last), embeds[0], own.state, reference.state)

    def _source(
        self, batch: Batch | PromptBatch, group: int, prompt_embeds: torch.Tensor, noise: SeededFrameNoise
    ) -> Source:
        """The low-resolution stream, no longer than needed."""
        ratio = self.pipe.autoencoder.temporal_compression_ratio
        frames = ratio * ((group + 1) * self.pipe.config.group_frames - 1) + 1
        if isinstance(batch, PromptBatch):
            return text_source(self.pipe, prompt_embeds, noise, frames, batch.size.height, batch.size.width)
        if batch.low is None:
            raise ValueError("`batch` has no low-resolution clips to roll out")
        return clip_source(self.pipe, batch.low[:, :, :frames])

    def margin(self, comparison: _Comparison, generator: torch.Generator) -> torch.Tensor:
        """The margins of [`preference_margin`], `[batch]`, at freshly drawn noise and noise levels.

        Args:
            comparison: from [`~PreferenceTraining.compare`].
            generator (`torch.Generator`): on the CPU.
        """
        winner, loser = comparison.pair.winner, comparison.pair.loser
        noise, levels = randn_like(winner, generator), self._noise_levels()
        sigmas = levels[torch.randint(len(levels), (len(winner),), generator=generator)].to(winner)
        flows = self._flows(comparison, add_noise(winner, noise, sigmas), sigmas)
        how = (self.channel_weights, self.objective.margin_reduction)
        winner_change = squared_error_change(*flows, noise - winner, *how)
        if len(levels) > 1:
            # at one step's only level, 1, both inputs are the noise alone, and one pass is enough
            flows = self._flows(comparison, add_noise(loser, noise, sigmas), sigmas)
        loser_change = squared_error_change(*flows, noise - loser, *how)
        return preference_margin(winner_change, loser_change, self.objective.strength)

    def _flows(
        self, comparison: _Comparison, noisy: torch.Tensor, sigmas: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The flows of the trained network and of the reference."""
        inputs, timesteps = torch.cat([noisy, comparison.condition], dim=1), 1000 * sigmas
        with torch.no_grad(), self._reference() as network:
            reference_flow = network(
                inputs, timesteps, comparison.prompt_embeds, state=comparison.reference_state
            ).sample
        flow = self.transformer(inputs, timesteps, comparison.prompt_embeds, state=comparison.state).sample
        return flow, reference_flow

    @contextmanager
    def _reference(self) -> Iterator[UltraFlashSRTransformer]:
        """The network as it was before training; LoRA layers are switched off meanwhile."""
        if self.reference is not None:
            yield self.reference
            return
        self.transformer.disable_adapters()
        try:
            yield self.transformer
        finally:
            self.transformer.enable_adapters()

    def _noise_levels(self) -> torch.Tensor:
        """The sampler's noise levels, `[num_inference_steps]`, from 1 downwards."""
        return sr_timesteps(self.pipe.scheduler, self.objective.num_inference_steps).sigmas[:-1]

    def validate(self, batch: Batch | PromptBatch) -> dict[str, float]:
        """Measures the last group of a held-out stream: the margin of the reference's pair, and our own pair."""
        last = self._whole_groups(batch) - 1
        own, fixed = (
            self.compare(batch, last, torch.Generator().manual_seed(0), by_reference) for by_reference in (False, True)
        )
        margin = self.margin(fixed, torch.Generator().manual_seed(1))
        measured = {"loss": preference_loss(margin), **self._measured(own, margin)}
        return {name: value.item() for name, value in measured.items()}

    def save_pretrained(self, folder: Path) -> None:
        """Writes the transformer to `transformer`, or LoRA layers to `folder`."""
        if self.reference is None:
            save_lora(self.transformer, folder)
        else:
            self.transformer.save_pretrained(folder / "transformer")


def check_reference(reference: UltraFlashSRTransformer, transformer: UltraFlashSRTransformer) -> None:
    """Checks that a network can be the reference of another.

    Raises:
        ValueError: their parameters have other names or shapes, or they do not predict the same.
    """
    found, expected = _shape(reference), _shape(transformer)
    differing = sorted(name for name in found | expected if found.get(name) != expected.get(name))
    if differing:
        name = differing[0]
        raise ValueError(
            f"`reference` is of another shape than the transformer: {name!r} is {found.get(name)}, expected "
            f"{expected.get(name)} ({len(differing)} of these differ)"
        )


def _shape(network: UltraFlashSRTransformer) -> dict[str, object]:
    shapes: dict[str, object] = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    return shapes | {"prediction_type": network.config.prediction_type}


def whole_groups(pipe: UltraFlashStreamingPipeline, frames: int) -> int:
    """Groups of the SR transformer that pixel frames fill.

    Args:
        pipe (`UltraFlashStreamingPipeline`): whose group length and temporal compression it is.
        frames (`int`): pixel frames.

    Raises:
        ValueError: they do not fill one.
    """
    ratio, length = pipe.autoencoder.temporal_compression_ratio, pipe.config.group_frames
    groups = ((frames - 1) // ratio + 1) // length
    if groups == 0:
        raise ValueError(
            f"`frames` is {frames}, but a group of this pipeline is {length} latents, {ratio * (length - 1) + 1} "
            "frames: there would be no pair"
        )
    return groups


def load_pipeline(arguments: argparse.Namespace) -> UltraFlashStreamingPipeline:
    """The cascade, with the transformer that is to be tuned.

    Args:
        arguments (`argparse.Namespace`): of `training/train_cascade_dpo.py`.

    Raises:
        ValueError: a pipeline that cannot be rolled out so, or clips that fill no group.
    """
    networks = {}
    if arguments.transformer is not None:
        transformer = load_network(UltraFlashSRTransformer, arguments.transformer, "transformer")
        networks["transformer"] = transformer.float()
    pipe = load_cascade(arguments.pretrained_model_name_or_path, **networks)
    # the text encoder's work is done before the steps that are planned
    mute = pipe.text_encoder is None and not has_no_weights()
    if arguments.prompts is not None and (pipe.generator_transformer is None or mute):
        raise ValueError(
            f"--prompts: the pipeline {arguments.pretrained_model_name_or_path!r} has no `generator_transformer` or "
            "no `text_encoder`: roll out from clips (--train_data_dir)"
        )
    check_linear_shortcut(arguments, arguments.pretrained_model_name_or_path, pipe.autoencoder)
    validates = arguments.validation_data_dir is not None or arguments.validation_prompts is not None
    held_out = (arguments.validation_frames,) if validates else ()
    for frames in (*(crop.frames for crop in arguments.crops), *held_out):
        whole_groups(pipe, frames)
    choose_trained(pipe.transformer, lora_of(arguments))
    if arguments.gradient_checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    return pipe


def load_reference(arguments: argparse.Namespace, pipe: UltraFlashStreamingPipeline) -> UltraFlashSRTransformer | None:
    """The network that results are measured against, where the arguments name another one than that to be tuned.

    Raises:
        ValueError: it is of another shape.
    """
    if arguments.reference is None:
        return None
    reference = load_network(UltraFlashSRTransformer, arguments.reference, "transformer").float()
    check_reference(reference, pipe.transformer)
    return reference


def load_rollouts(
    arguments: argparse.Namespace, accelerator: Accelerator, pipe: UltraFlashStreamingPipeline
) -> tuple[CropDataset | PromptDataset, list[Batch] | list[PromptBatch], set[str]]:
    """What is rolled out, clips or prompts: batches for training, those of validation, and all texts.

    Args:
        arguments (`argparse.Namespace`): of `training/train_cascade_dpo.py`.
        accelerator (`Accelerator`): whose first local process prepares clips.
        pipe (`UltraFlashStreamingPipeline`): of [`load_pipeline`].
    """
    if arguments.prompts is None:
        networks = (pipe.transformer, pipe.latent_upsampler, pipe.autoencoder)
        clips, held_out = load_cascade_data(arguments, accelerator, *networks, with_flow=False)
        return clips, held_out, texts_of(clips, held_out)
    scale, temporal = pipe.latent_upsampler.config.scale, pipe.autoencoder.temporal_compression_ratio
    spatial = pipe.autoencoder.spatial_compression_ratio * math.lcm(scale, *pipe.transformer.config.patch_size[1:])
    prompts, validation = load_prompts(arguments, accelerator, spatial, temporal)
    return prompts, validation, {*prompts.prompts} | {text for batch in validation for text in batch.texts}
