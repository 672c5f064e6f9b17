# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sparse causalisation and one-step distillation of the super-resolution transformer (paper, "Phase I")."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.hr_autoencoder import HRAutoencoder
from ...models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ...pixels import to_unit
from ...rewards import Reward
from ..data.crops import Batch
from ..data.prompts import Prompts
from ..losses.details import detail_ratio
from ..losses.distribution_matching import DistributionMatching, Flow, guided, integrate, surrogate_loss
from ..losses.fidelity import psnr
from ..losses.flow_matching import weighted_mse
from ..losses.linear_decoding import check_linear_shortcut
from ..losses.perceptual import PerceptualLoss
from ..losses.pixels import PixelLoss
from ..settings import Count, NonNegative, Positive, Share
from ..starting_points.lora import LoraLayers, choose_trained, lora_of, may_share, tuned_copy
from ..starting_points.networks import decoder_parameters, load_network
from .decoded import DecodedObjective, DecodedTraining
from .sr import sampler, warn_of_other_noise

# what student and teacher must have in common: the latents, the texts and what the last layer says of them
_SHARED_SETTINGS = ("out_channels", "text_dim", "patch_size", "prediction_type")


@dataclass(frozen=True)
class DistillationObjective(DecodedObjective):
    """What the student learns: from the teacher, and of the decoded result.

    Args:
        condition_noise (pair of `float`, *optional*, defaults to `(0.4, 0.6)`): bounds of the share of noise in the
            condition: those that the teacher was trained with.
        pixel_loss (`PixelLoss`, *optional*): of the decoded result; the wavelet loss alone by default.
        matching (`DistributionMatching`, *optional*): guidance scale (paper: 3.5) and noise levels.
        guidance_drops (`str`, *optional*, defaults to `"text"`): what the teacher does without in its unconditional
            prediction: the text, the condition (zeros), or both. It must have been trained without it now and then.
            The paper does not say.
        fake_updates (`int`, *optional*, defaults to 5): steps of the fake score in front of each step of the student.
        fake_learning_rate (`float`, *optional*): of the fake score; the student's by default.
        regression_steps (`int`, *optional*, defaults to 0): at the beginning, so many steps of the student regress to
            the teacher's multi-step results from the same noise. That turns a dense, bidirectional, multi-step network
            into a sparse, causal, one-step one, blurred, from which matching starts better; each step costs
            `teacher_steps` evaluations of the teacher, with guidance twice as many.
        teacher_steps (`int`, *optional*, defaults to 20): of the teacher, in regression and in validation.
        flow_shift (`float`, *optional*, defaults to 1.5): of the teacher's steps.
        matching_weight (`float`, *optional*, defaults to 1.0): of the squared error whose gradient is the matching's.
        reward_weight (`float`, *optional*, defaults to 0.0): of the reward of the decoded result; 0 measures it only.

    Raises:
        ValueError: a count or a weight outside its range, or reconstructions that nothing compares.
    """

    condition_noise: tuple[Share, Share] = (0.4, 0.6)
    pixel_loss: PixelLoss = PixelLoss(0.0, 0.0, 0.0, wavelet_weight=1.0)
    matching: DistributionMatching = DistributionMatching()
    guidance_drops: Literal["text", "condition", "both"] = "text"
    fake_updates: Count = 5
    fake_learning_rate: Positive[float] | None = None
    regression_steps: NonNegative[int] = 0
    teacher_steps: Count = 20
    flow_shift: Positive[float] = 1.5
    matching_weight: NonNegative[float] = 1.0
    reward_weight: NonNegative[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder.reconstruction_every is not None and self.pixel_loss.is_empty:
            raise ValueError("`reconstruction_every` needs a pixel loss, and all their weights are 0")

    def phase(self, step: int) -> Literal["regression", "fake_score", "student"]:
        """What the optimiser step after `step` others trains."""
        if step < self.regression_steps:
            return "regression"
        position = (step - self.regression_steps) % (self.fake_updates + 1)
        return "student" if position == self.fake_updates else "fake_score"


class DistillationTraining(DecodedTraining):
    """Trains a causal, block-sparse, one-step student to make what a multi-step teacher makes.

    The optimiser's steps alternate, see [`DistillationObjective.phase`]: a step gives gradients to the student or to
    the fake score, and the loop's optimiser leaves the other one alone. The average of the weights is the student's.

    Args:
        student (`UltraFlashSRTransformer`): those of its parameters that require gradients are trained; see
            [`sparse_student`].
        teacher (`UltraFlashSRTransformer`): the real score, a multi-step network, frozen; sees whole clips as it is,
            dense and bidirectional or sparse.
        fake_score (`UltraFlashSRTransformer`): the teacher's copy that tracks the student, trained as the student is;
            see [`fake_score_of`].
        upsampler (`CausalLatentUpsampler`): frozen.
        autoencoder (`HRAutoencoder`): frozen, but perhaps for the decoder; with an encoder.
        prompts (`Prompts`): embeddings of the clips' texts.
        objective (`DistillationObjective`): what is learnt; noise in the condition and dropouts should be what the
            teacher knows.
        reward (`Reward`, *optional*): frozen; with a weight of 0 it is measured in validation only.
        perceptual (`PerceptualLoss`, *optional*): frozen.

    Raises:
        ValueError: a student that is not sparse, networks that do not belong together, a weight for a reward or a
            perceptual loss that is not there.
    """

    objective: DistillationObjective

    def __init__(
        self,
        student: UltraFlashSRTransformer,
        teacher: UltraFlashSRTransformer,
        fake_score: UltraFlashSRTransformer,
        upsampler: CausalLatentUpsampler,
        autoencoder: HRAutoencoder,
        prompts: Prompts,
        objective: DistillationObjective,
        reward: Reward | None = None,
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        check_networks(student, teacher)
        if objective.reward_weight > 0 and reward is None:
            raise ValueError(f"`reward_weight` is {objective.reward_weight}, but `reward` is None")
        super().__init__(student, upsampler, autoencoder, prompts, objective, perceptual)
        warn_of_other_noise("the teacher", teacher, objective)
        self.teacher = teacher.requires_grad_(False)
        self.fake_score = fake_score
        self.reward = reward
        self._frozen += [network for network in (teacher, reward) if isinstance(network, nn.Module)]
        for network in self._frozen:
            network.requires_grad_(False)
        self._phase = objective.phase(0)

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        tracking = [parameter for parameter in self.fake_score.parameters() if parameter.requires_grad]
        given = self.objective.fake_learning_rate
        rate = learning_rate if given is None else given
        return [*super().parameter_groups(learning_rate), {"params": tracking, "lr": rate}]

    def averaged_parameters(self) -> list[nn.Parameter]:
        """The student's, and the decoder's where it is trained."""
        student = [parameter for parameter in self.transformer.parameters() if parameter.requires_grad]
        return student + decoder_parameters(self.autoencoder) if self.objective.decoder.train_decoder else student

    @property
    def heaviest_step(self) -> int:
        """The student's first."""
        return self.objective.regression_steps + self.objective.fake_updates

    def begin_step(self, step: int, generator: torch.Generator) -> None:
        super().begin_step(step, generator)
        self._phase = self.objective.phase(step)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if self._phase == "student" and self._reconstructs:
            return self._without_transformer("reconstruction", batch.encode_high(self.encoder), batch)
        inputs = self._inputs(self.condition(batch), batch.texts, generator)
        if self._phase == "fake_score":
            return self._track(*inputs, generator)
        if self._phase == "regression":
            loss = weighted_mse(self._denoised(*inputs), self._taught(*inputs), self.channel_weights)
            return loss, {"regression": loss}
        return self._distil(batch, *inputs, generator)

    def _track(
        self, noise: torch.Tensor, condition: torch.Tensor, prompt_embeds: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The fake score's step: it learns the distribution of what the student makes now."""
        with torch.no_grad():
            latents = self._denoised(noise, condition, prompt_embeds)
        fake = _flow(self.fake_score, condition, prompt_embeds)
        loss = self.objective.matching.fake_score_loss(latents, fake, generator, self._predicts, self.channel_weights)
        return loss, {"fake_score": loss}

    def _distil(
        self,
        batch: Batch,
        noise: torch.Tensor,
        condition: torch.Tensor,
        prompt_embeds: torch.Tensor,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The student's step."""
        objective = self.objective
        latents = self._denoised(noise, condition, prompt_embeds)
        real = _flow(self.teacher, condition, prompt_embeds)
        fake = _flow(self.fake_score, condition, prompt_embeds)
        unconditional = self._unconditional(condition, prompt_embeds)
        gradient = objective.matching.gradient(latents.detach(), real, fake, unconditional, generator)
        if self.channel_weights is not None:
            gradient = self.channel_weights * gradient
        terms = {"matching": objective.matching_weight * surrogate_loss(latents, gradient)}
        measured: dict[str, torch.Tensor] = {}
        judged = objective.perceptual_weight > 0 or objective.reward_weight > 0
        if judged or not objective.pixel_loss.is_empty:
            decoded, shown = self._decode(latents, batch)
            terms |= objective.pixel_loss(decoded, shown.high, shown.flow, shown.low)
            if judged:
                judgement, measured = self._judgement(decoded, shown, generator)
                terms |= judgement
        return torch.stack(list(terms.values())).sum(), terms | measured

    def _judgement(
        self, decoded: torch.Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Perceptual loss and reward of some frames: the weighted terms, and the plain score."""
        result, target = self._judged(decoded, batch, generator)
        terms, measured = {}, {}
        if self.perceptual is not None and self.objective.perceptual_weight > 0:
            terms["perceptual"] = self.objective.perceptual_weight * self.perceptual(result, target)
        if self.reward is not None and self.objective.reward_weight > 0:
            measured["reward"] = _score(self.reward, result)
            terms["reward_loss"] = -self.objective.reward_weight * measured["reward"]
        return terms, measured

    def _unconditional(self, condition: torch.Tensor, prompt_embeds: torch.Tensor) -> Flow:
        if self.objective.guidance_drops in ("condition", "both"):
            condition = torch.zeros_like(condition)
        if self.objective.guidance_drops in ("text", "both"):
            prompt_embeds = self.prompts([""] * len(condition)).to(condition)
        return _flow(self.teacher, condition, prompt_embeds)

    def _taught(self, noise: torch.Tensor, condition: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """The teacher's multi-step result, with guidance."""
        conditional = _flow(self.teacher, condition, prompt_embeds)
        unconditional = self._unconditional(condition, prompt_embeds)
        flow = guided(conditional, unconditional, self.objective.matching.guidance_scale)
        return integrate(flow, noise, sampler(self.objective.teacher_steps, self.objective.flow_shift).sigmas.tolist())

    def validate(self, batch: Batch) -> Mapping[str, float | torch.Tensor]:
        """The streamed student's measures, and how near it comes to the teacher from the same noise."""
        condition = self.condition(batch)
        inputs = self._validation_inputs(condition, batch.texts)
        decoded = self.autoencoder.decode(self._restored(*inputs)).sample
        shown = self._shown(decoded, batch)
        taught = self.autoencoder.decode(self._taught(*inputs)).sample
        result, taught = shown["result"], self.corrected(taught, batch)
        measures = {
            **self._measured(decoded, condition, batch),
            "psnr_to_teacher": psnr(result, taught).item(),
            "psnr_of_teacher": psnr(taught, batch.high).item(),
            "detail_of_teacher": detail_ratio(taught, batch.high).item(),
        }
        if self.reward is not None:
            measures["reward"] = _score(self.reward, result).item()
            measures["reward_of_teacher"] = _score(self.reward, taught).item()
        return {**measures, "input": shown["input"], "result": result, "teacher": taught, "truth": shown["truth"]}


@dataclass(frozen=True)
class DistillationNetworks:
    """What a distillation needs: see [`DistillationTraining`]."""

    student: UltraFlashSRTransformer
    teacher: UltraFlashSRTransformer
    fake_score: UltraFlashSRTransformer
    upsampler: CausalLatentUpsampler
    autoencoder: HRAutoencoder

    @property
    def transformers(self) -> tuple[UltraFlashSRTransformer, UltraFlashSRTransformer, UltraFlashSRTransformer]:
        """Student, teacher and fake score."""
        return self.student, self.teacher, self.fake_score

    @property
    def around(self) -> tuple[CausalLatentUpsampler, HRAutoencoder]:
        """Upsampler and autoencoder."""
        return self.upsampler, self.autoencoder


def load_networks(arguments: argparse.Namespace) -> DistillationNetworks:
    """Loads or makes them.

    Args:
        arguments (`argparse.Namespace`): of `training/distill_sr.py`.
    """
    autoencoder = load_network(HRAutoencoder, arguments.autoencoder, "autoencoder")
    check_linear_shortcut(arguments, arguments.autoencoder, autoencoder)
    upsampler = load_network(CausalLatentUpsampler, arguments.latent_upsampler, "latent_upsampler")
    student, teacher, fake_score = _load_transformers(arguments)
    if arguments.gradient_checkpointing:
        for network in (student, fake_score, autoencoder):
            network.enable_gradient_checkpointing()
    return DistillationNetworks(student, teacher, fake_score, upsampler, autoencoder)


def _load_transformers(
    arguments: argparse.Namespace,
) -> tuple[UltraFlashSRTransformer, UltraFlashSRTransformer, UltraFlashSRTransformer]:
    """The student, the teacher and the fake score."""
    teacher = load_network(UltraFlashSRTransformer, arguments.teacher, "transformer")
    lora, shares = lora_of(arguments), may_share(arguments)
    if arguments.pretrained_model_name_or_path is None:
        student = sparse_student(teacher, lora, shares)
    else:
        student = load_network(UltraFlashSRTransformer, arguments.pretrained_model_name_or_path, "transformer")
        choose_trained(student, lora)
    check_networks(student, teacher)
    return student, teacher, fake_score_of(teacher, lora, shares)


def check_networks(student: UltraFlashSRTransformer, teacher: UltraFlashSRTransformer) -> None:
    """Checks that a student can learn from a teacher.

    Raises:
        ValueError: a dense student, or a teacher of other latents, texts or predictions.
    """
    if not student.config.use_sparse_attention:
        raise ValueError(
            "`student` has dense attention, which is not causal: it needs `use_sparse_attention=True`, as "
            "`sparse_student` gives a teacher's copy"
        )
    for name in _SHARED_SETTINGS:
        ours, theirs = (network.config[name] for network in (student, teacher))
        if name == "patch_size":  # a list where it comes from a file
            ours, theirs = tuple(ours), tuple(theirs)
        if ours != theirs:
            raise ValueError(f"`student` has {name} {ours!r}, `teacher` {theirs!r}: they must be the same")


def sparse_student(
    teacher: UltraFlashSRTransformer, lora: LoraLayers | None = None, shares: bool = True
) -> UltraFlashSRTransformer:
    """A copy of the teacher with block-sparse, causal attention: with what the student starts.

    Block size, window and number of kept pairs are those of the teacher's configuration; a dense network has them too.

    Args:
        teacher (`UltraFlashSRTransformer`): the multi-step network; frozen by this.
        lora (`LoraLayers`, *optional*): see [`fake_score_of`].
        shares (`bool`, *optional*, defaults to `True`): see [`fake_score_of`].
    """
    student = fake_score_of(teacher, lora, shares)
    student.register_to_config(use_sparse_attention=True)
    return student


def fake_score_of(
    teacher: UltraFlashSRTransformer, lora: LoraLayers | None = None, shares: bool = True
) -> UltraFlashSRTransformer:
    """A copy of the teacher that is to track the student.

    Args:
        teacher (`UltraFlashSRTransformer`): the multi-step network; frozen by this.
        lora (`LoraLayers`, *optional*): trains LoRA layers; `None` trains a whole copy.
        shares (`bool`, *optional*, defaults to `True`): see [`tuned_copy`].
    """
    return tuned_copy(teacher.requires_grad_(False), lora, shares)


def _flow(network: UltraFlashSRTransformer, condition: torch.Tensor, prompt_embeds: torch.Tensor) -> Flow:
    """What a network says of noisy latents in the light of a condition and a text."""

    def flow(noisy: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        return network(torch.cat([noisy, condition], dim=1), 1000 * sigmas, prompt_embeds).sample.float()

    return flow


def _score(reward: Reward, pixels: torch.Tensor) -> torch.Tensor:
    """The mean reward of the frames of `[batch, 3, frames, height, width]`, nominally in [-1, 1]."""
    frames = pixels.transpose(1, 2).flatten(0, 1)
    return reward(to_unit(frames).clamp(0, 1)).mean()
