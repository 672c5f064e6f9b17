# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where the winners and losers of preference optimisation come from (paper, "Phase II")."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from ...models.hr_autoencoder import AutoencoderStreamState
from ...models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ...pipelines.noise import SeededFrameNoise
from ...pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from ...pixels import to_unit
from ...rewards import Reward, load_reward
from ..settings import Count, NonNegative, Settings, Share, read_settings
from ..starting_points.networks import load_network
from .cascade_rollout import ResampledNoise, RolloutGroup, SRStream

# of multi-step transformers
PAPER_CONDITION_NOISE = 0.5


@dataclass(frozen=True)
class PairSettings(Settings):
    """Which results are preferred.

    Args:
        preferred (`str`, *optional*, defaults to `"teacher"`): a stronger model's result over ours, or the best of
            ours over the worst, as a reward sees them.
        teacher_steps (`int`, *optional*, defaults to 20): denoising steps of the teacher.
        teacher_guidance_scale (`float`, *optional*, defaults to 1.0): of the teacher, against the empty prompt; above
            1 with guidance.
        teacher_condition_noise (`float`, *optional*): share of noise in the teacher's condition; by default what it
            was trained with, 0.5 (paper) where that is not recorded.
        num_candidates (`int`, *optional*, defaults to 4): results that best_of chooses from.

    Raises:
        ValueError: one candidate.
    """

    preferred: Literal["teacher", "best_of"] = "teacher"
    teacher_steps: Count = 20
    teacher_guidance_scale: NonNegative[float] = 1.0
    teacher_condition_noise: Share | None = None
    num_candidates: Count = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preferred == "best_of" and self.num_candidates < 2:
            raise ValueError(f"`num_candidates` must be 2 or more, got {self.num_candidates}: one cannot be better")


@dataclass(frozen=True)
class Pair:
    """Two results for one group of a stream, with the same past and the same condition.

    Args:
        winner (`torch.Tensor`): `[batch, channels, frames, height, width]`, the preferred clean latents.
        loser (`torch.Tensor`): the same shape, the rejected ones.
        measured (`dict[str, torch.Tensor]`): numbers to log.
    """

    winner: torch.Tensor
    loser: torch.Tensor
    measured: dict[str, torch.Tensor] = field(default_factory=dict)


class PairStream(ABC):
    """Follows one rollout, and makes the pair of its last group."""

    @abstractmethod
    def follow(self, group: RolloutGroup, latents: torch.Tensor) -> None:
        """Goes past a group that the trained transformer made `latents` of."""

    @abstractmethod
    def pair(self, group: RolloutGroup, own: SRStream) -> Pair:
        """Makes the pair of a group in front of which `own`, the trained transformer, stands and stays."""


class PairMaker(nn.Module, ABC):
    """What prefers: holds the networks that this takes, all of them frozen."""

    @abstractmethod
    def start(
        self,
        pipe: UltraFlashStreamingPipeline,
        noise: SeededFrameNoise,
        seeds: Sequence[int],
        prompt_embeds: Sequence[torch.Tensor],
    ) -> PairStream:
        """Begins a rollout.

        Args:
            pipe (`UltraFlashStreamingPipeline`): the cascade that is rolled out.
            noise (`SeededFrameNoise`): of the stream.
            seeds (sequence of `int`): one a sample, the stream's own.
            prompt_embeds (sequence of `torch.Tensor`): `[batch, length, text_dim]` of the prompt and of the empty one.
        """


class TeacherPairs(PairMaker):
    """Preferred: the result of a stronger, multi-step model on the same stream. Rejected: our own.

    Args:
        teacher (`UltraFlashSRTransformer`): refines latents of the same space; it streams with a cache of its own.
        num_inference_steps (`int`, *optional*, defaults to 20): its steps.
        guidance_scale (`float`, *optional*, defaults to 1.0): its classifier-free guidance, against the empty prompt.
        condition_noise (`float`, *optional*, defaults to 0.5): share of noise in its condition (paper: 0.5 for the
            multi-step model).

    Raises:
        ValueError: less than one step.
    """

    def __init__(
        self,
        teacher: UltraFlashSRTransformer,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.0,
        condition_noise: float = 0.5,
    ) -> None:
        super().__init__()
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be at least 1, got {num_inference_steps}")
        self.teacher = teacher.requires_grad_(False)
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.condition_noise = condition_noise

    def start(
        self,
        pipe: UltraFlashStreamingPipeline,
        noise: SeededFrameNoise,
        seeds: Sequence[int],
        prompt_embeds: Sequence[torch.Tensor],
    ) -> PairStream:
        settings = (self.num_inference_steps, self.guidance_scale, self.condition_noise)
        return _TeacherStream(SRStream(pipe, self.teacher, noise, prompt_embeds, *settings))


class _TeacherStream(PairStream):
    def __init__(self, teacher: SRStream) -> None:
        self._teacher = teacher

    def follow(self, group: RolloutGroup, latents: torch.Tensor) -> None:
        self._teacher.advance(group)

    def pair(self, group: RolloutGroup, own: SRStream) -> Pair:
        return Pair(self._teacher.preview(group), own.preview(group))


class BestOfPairs(PairMaker):
    """Preferred and rejected: the best and the worst of several results of our own, as a reward sees them.

    They differ in the noise that the group starts from, and share the stream's past: the first one is the stream's own
    result. A result's reward is the mean over the frames of the group, decoded behind what the stream decoded before.

    Args:
        reward (`Reward`): scores frames.
        num_candidates (`int`, *optional*, defaults to 4): results to choose from (paper: 4).

    Raises:
        ValueError: less than two candidates.
    """

    def __init__(self, reward: Reward, num_candidates: int = 4) -> None:
        super().__init__()
        if num_candidates < 2:
            raise ValueError(f"`num_candidates` must be at least 2, got {num_candidates}: one cannot be better")
        self.reward, self.num_candidates = reward, num_candidates
        if isinstance(reward, nn.Module):
            reward.requires_grad_(False)

    def start(
        self,
        pipe: UltraFlashStreamingPipeline,
        noise: SeededFrameNoise,
        seeds: Sequence[int],
        prompt_embeds: Sequence[torch.Tensor],
    ) -> PairStream:
        # noise is drawn from hashes of seeds, so that neighbouring ones are as good as any
        others = [[(seed + number) % 2**63 for seed in seeds] for number in range(1, self.num_candidates)]
        return _BestOfStream(pipe, self.reward, [noise, *(ResampledNoise(noise, each) for each in others)])


class _BestOfStream(PairStream):
    def __init__(self, pipe: UltraFlashStreamingPipeline, reward: Reward, noises: Sequence[SeededFrameNoise]) -> None:
        self._autoencoder, self._reward, self._noises = pipe.autoencoder, reward, noises
        self._decoder: AutoencoderStreamState | None = None

    def follow(self, group: RolloutGroup, latents: torch.Tensor) -> None:
        self._decoder = self._decode(latents)[1]

    @torch.no_grad()
    def pair(self, group: RolloutGroup, own: SRStream) -> Pair:
        candidates = torch.stack([own.preview(group, noise) for noise in self._noises], dim=1)
        scores = torch.stack([self._score(latents) for latents in candidates.unbind(1)], dim=1)
        samples = torch.arange(len(scores), device=scores.device)
        best, worst = scores.argmax(dim=1), scores.argmin(dim=1)
        measured = {"reward": scores[:, 0].mean(), "reward_gap": (scores.amax(1) - scores.amin(1)).mean()}
        return Pair(candidates[samples, best], candidates[samples, worst], measured)

    def _score(self, latents: torch.Tensor) -> torch.Tensor:
        """The mean reward of each sample's frames, `[batch]`."""
        frames = to_unit(self._decode(latents)[0].float()).clamp(0, 1).transpose(1, 2)
        return self._reward(frames.flatten(0, 1)).view(frames.shape[:2]).mean(dim=1)

    @torch.no_grad()
    def _decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, AutoencoderStreamState]:
        output = self._autoencoder.decode(latents.to(self._autoencoder.dtype), state=self._decoder)
        return output.sample, output.state


def load_pairs(arguments: argparse.Namespace, pipe: UltraFlashStreamingPipeline) -> PairMaker:
    """What says which result is better.

    Args:
        arguments (`argparse.Namespace`): of `training/train_cascade_dpo.py`.
        pipe (`UltraFlashStreamingPipeline`): whose latents and texts a teacher must share.

    Raises:
        ValueError: a teacher of another kind.
    """
    settings = read_settings(arguments, PairSettings)
    if settings.preferred == "best_of":
        with torch.device("cpu"):  # judges are small, and loaded for a plan as well
            reward = load_reward(arguments.reward, arguments.reward_weights)
        return BestOfPairs(reward, settings.num_candidates)
    teacher = load_network(UltraFlashSRTransformer, arguments.teacher, "transformer").float()
    for name in ("out_channels", "text_dim", "text_length"):
        theirs, ours = teacher.config[name], pipe.transformer.config[name]
        if theirs != ours:
            raise ValueError(f"--teacher {arguments.teacher!r} has `{name}` {theirs}, the transformer {ours}")
    recorded = teacher.config.condition_noise
    usual = PAPER_CONDITION_NOISE if recorded is None else recorded
    noise = usual if settings.teacher_condition_noise is None else settings.teacher_condition_noise
    return TeacherPairs(teacher, settings.teacher_steps, settings.teacher_guidance_scale, noise)
