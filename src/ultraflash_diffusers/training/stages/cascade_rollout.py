# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Rolling out the streaming cascade for training (paper, "Phase II"): what inference meets, drift and all.

It is the pipeline's own stages with their caches and states, taken apart at the SR transformer: one upsampled group
after the other goes to any number of transformers, each of which follows the stream with a cache of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ...models.stream_state import StreamState
from ...models.ultraflash_sr_transformer import SRStreamState, UltraFlashSRTransformer
from ...pipelines.encoding import video_encoder
from ...pipelines.execution.calls import SRCalls
from ...pipelines.execution.compilation import GuardedCalls
from ...pipelines.execution.timing import StageTimings
from ...pipelines.noise import SeededFrameNoise
from ...pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from ...pipelines.samplers import PreparedPrompts
from ...pipelines.segments import LatentSegment, Regrouper
from ...pipelines.sources import Source, make_source
from ...pipelines.stages import SRGroup, SRSettings, SRStage, UpsampleStage
from ...pipelines.stream_start import size_multiple


@dataclass(frozen=True)
class RolloutGroup:
    """A group of a stream, as it comes to the SR transformer.

    Args:
        condition (`torch.Tensor`): `[batch, channels, frames, height, width]`, upsampled latents.
        start (`int`): absolute index of its first latent frame.
    """

    condition: torch.Tensor
    start: int


@torch.no_grad()
def rollout_groups(pipe: UltraFlashStreamingPipeline, source: Source) -> Iterator[RolloutGroup]:
    """Runs the stages in front of the SR transformer over one clip or text, with what they carry.

    Args:
        pipe (`UltraFlashStreamingPipeline`): whose upsampler and group length it is.
        source (`Source`): of [`clip_source`] or [`text_source`].
    """
    ratio = pipe.autoencoder.temporal_compression_ratio
    regrouper = Regrouper(source, pipe.config.group_frames, ratio, pipe.config.first_group_frames)
    upsample, start = UpsampleStage(pipe.latent_upsampler, GuardedCalls()), 0
    waiting: list[LatentSegment] = []
    state: StreamState | None = None
    while waiting := regrouper.fill(waiting, start == 0, StageTimings(), {}):
        segment, waiting = regrouper.take(waiting)
        condition, state = upsample(segment, None if segment.starts_clip else state)
        yield RolloutGroup(condition, start)
        start += len(segment)


@torch.no_grad()
def clip_source(pipe: UltraFlashStreamingPipeline, low: torch.Tensor) -> Source:
    """A source of low-resolution clips.

    Args:
        pipe (`UltraFlashStreamingPipeline`): whose encoder, or else autoencoder, encodes them.
        low (`torch.Tensor`): `[batch, 3, frames, height, width]` in [-1, 1], one frame more than a multiple of the
            temporal compression.
    """
    encoder = video_encoder(pipe)
    latents = encoder.encode(low.to(encoder.dtype)).latents
    return make_source(latents, **_source_settings(pipe))


def text_source(
    pipe: UltraFlashStreamingPipeline,
    prompt_embeds: torch.Tensor,
    noise: SeededFrameNoise,
    num_frames: int,
    height: int,
    width: int,
) -> Source:
    """The pipeline's streaming generator, on prompts.

    Args:
        pipe (`UltraFlashStreamingPipeline`): with a generator.
        prompt_embeds (`torch.Tensor`): `[batch, length, text_dim]`.
        noise (`SeededFrameNoise`): of the stream.
        num_frames (`int`): pixel frames.
        height, width (`int`): of the stream's high-resolution frames.
    """
    scale = pipe.latent_upsampler.config.scale
    return make_source(
        None,
        generator=pipe.generator_transformer,
        prompt_embeds=prompt_embeds,
        noise=noise,
        height=height // scale,
        width=width // scale,
        num_frames=num_frames,
        **_source_settings(pipe),
    )


def _source_settings(pipe: UltraFlashStreamingPipeline) -> dict:
    return {
        "autoencoder": pipe.autoencoder,
        "multiple_of": size_multiple(pipe.transformer, pipe.autoencoder, pipe.latent_upsampler.config.scale),
        "latent_frames": pipe.config.group_frames,
    }


class SRStream:
    """An SR transformer that follows a rollout with its own cache, as it does in the pipeline.

    Args:
        pipe (`UltraFlashStreamingPipeline`): whose scheduler, cache length and group length it is.
        transformer (`UltraFlashSRTransformer`): any that refines the pipeline's latents.
        noise (`SeededFrameNoise`): of the stream.
        prompt_embeds (list of `torch.Tensor`): `[batch, length, text_dim]` of the prompt and, with guidance, of the
            negative prompt.
        num_inference_steps (`int`, *optional*, defaults to 1): denoising steps.
        guidance_scale (`float`, *optional*, defaults to 1.0): classifier-free guidance where above 1.
        condition_noise (`float`, *optional*): share of noise in the condition; by default what the transformer was
            trained with, the pipeline's where that is not recorded.
    """

    def __init__(
        self,
        pipe: UltraFlashStreamingPipeline,
        transformer: UltraFlashSRTransformer,
        noise: SeededFrameNoise,
        prompt_embeds: Sequence[torch.Tensor],
        num_inference_steps: int = 1,
        guidance_scale: float = 1.0,
        condition_noise: float | None = None,
    ) -> None:
        self._noise, self._blocks = noise, pipe.config.kv_cache_blocks
        recorded = transformer.config.condition_noise
        usual = pipe.config.condition_noise if recorded is None else recorded
        settings = SRSettings(
            group_frames=pipe.config.group_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            condition_noise=usual if condition_noise is None else condition_noise,
            kv_cache_blocks=self._blocks,
        )
        calls = SRCalls(transformer)
        self._stage = SRStage(calls, pipe.scheduler, settings)
        self._prompts = PreparedPrompts.of(calls, prompt_embeds[: 1 + (guidance_scale > 1)])
        # without buffers yet: the first group allocates them, in the dtype that mixed precision then has
        self._states = [transformer.new_stream(self._blocks) for _ in self._prompts.texts]

    @property
    def state(self) -> SRStreamState:
        """What the transformer carries to the next group, for the prompt."""
        return self._states[0]

    @torch.no_grad()
    def condition(self, group: RolloutGroup) -> torch.Tensor:
        """What the transformer is given for a group: noise mixed in, and a short group filled up."""
        return self._stage.inputs(self._input(group, self._noise))[1]

    @torch.no_grad()
    def preview(self, group: RolloutGroup, noise: SeededFrameNoise | None = None) -> torch.Tensor:
        """Refines a group and stays in front of it.

        Args:
            group (`RolloutGroup`): the next one.
            noise (`SeededFrameNoise`, *optional*): instead of the stream's own.

        Returns:
            `torch.Tensor`: `[batch, channels, frames, height, width]`.
        """
        return self._stage(self._input(group, noise or self._noise), self._states)[0]

    @torch.no_grad()
    def advance(self, group: RolloutGroup) -> torch.Tensor:
        """Refines a group, as [`preview`] does, and goes on behind it."""
        latents, self._states = self._stage(self._input(group, self._noise), self._states)
        return latents

    def _input(self, group: RolloutGroup, noise: SeededFrameNoise) -> SRGroup:
        return SRGroup(group.condition, group.start, noise, self._prompts, self._blocks)


class ResampledNoise(SeededFrameNoise):
    """A stream's noise, but for another start of the SR steps.

    Args:
        noise (`SeededFrameNoise`): of the stream.
        seeds (sequence of `int`): one a sample, of what is different.
    """

    def __init__(self, noise: SeededFrameNoise, seeds: Sequence[int]) -> None:
        super().__init__(seeds, len(seeds))
        self._noise = noise

    def __call__(self, role: str, start: int, frames: int, shape: tuple[int, int, int]) -> torch.Tensor:
        if role == "sr":
            return super().__call__(role, start, frames, shape)
        return self._noise(role, start, frames, shape)
