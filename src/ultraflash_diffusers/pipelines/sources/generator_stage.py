# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A chunk of the streaming text-to-video generator: `chunk, state = stage(text, state)`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ...models.causal_wan_state import CausalWanStreamState
from ...models.hr_autoencoder import HRAutoencoder
from ...models.stream_state import StreamState
from ..cache_management import DynamicCacheManagement
from ..execution.calls import GeneratorCalls, Text
from ..execution.compilation import GuardedCalls
from ..execution.devices import execution_device, send
from ..execution.timing import StageTimings, stage_timer
from ..samplers import sample_chunk
from .base import FrameNoise, SourceChunk
from .generator_schedule import GeneratorSchedule


@dataclass
class TextGeneratorState(StreamState):
    """State of a [`TextGeneratorSource`] after a chunk; the stream that goes on writes into its cache: `clone` it.

    Args:
        network (`CausalWanStreamState`): the transformer's.
        chunk (`int`): chunks that were generated; given first frames do not count.
        latent_frames (`int`): latent frames so far, given ones included.
        frames (`int`): pixel frames that were passed on.
        given (`torch.Tensor`, *optional*): first latents that are still to be passed on.
        recent (`torch.Tensor`, *optional*): the last clean latents, as many as the cache holds, where a new prompt has
            their keys and values computed again.
        prompt_number (`int`): the last change of the prompt that was made.
    """

    network: CausalWanStreamState
    chunk: int = 0
    latent_frames: int = 0
    frames: int = 0
    given: torch.Tensor | None = None
    recent: torch.Tensor | None = None
    prompt_number: int = 0


class TextGeneratorStage:
    """Passes first frames on that were given, and then generates chunk after chunk.

    Each chunk starts from noise and takes a few steps, see [`sample_chunk`]. A last pass over the clean chunk at
    timestep 0 writes the keys and values that later chunks attend to (Self-Forcing, as published).

    Args:
        calls ([`GeneratorCalls`]): the network, as the stream calls it.
        autoencoder ([`HRAutoencoder`]): in whose latent space it works, and that decodes what is scored.
        scoring ([`GuardedCalls`]): the stream's guard of that decoding.
        noise ([`FrameNoise`]): by role, `"generator"` for a chunk's start and `"generator_renoise_N"` for what is
            mixed in after its step N (from 0).
        schedule ([`GeneratorSchedule`]): frames and noise levels of the chunks.
        policy ([`DynamicCacheManagement`]): fewer steps, skipped context passes.
        shape (`tuple[int, int, int]`): channels, height and width of a latent frame.
        num_frames (`int`, *optional*): pixel frames wanted; `None` goes on without end.
    """

    def __init__(
        self,
        calls: GeneratorCalls,
        autoencoder: HRAutoencoder,
        scoring: GuardedCalls,
        noise: FrameNoise,
        schedule: GeneratorSchedule,
        policy: DynamicCacheManagement,
        shape: tuple[int, int, int],
        num_frames: int | None,
    ) -> None:
        self._calls = calls
        self._autoencoder = autoencoder
        self._scoring = scoring
        self._noise = noise
        self._schedule = schedule
        self._policy = policy
        self._shape = shape
        self._num_frames = num_frames

    def is_done(self, state: TextGeneratorState) -> bool:
        """Whether all frames that are wanted were made."""
        return self._num_frames is not None and state.frames >= self._num_frames

    @torch.no_grad()
    def __call__(self, text: Text, state: TextGeneratorState) -> tuple[SourceChunk, TextGeneratorState]:
        """Makes the next chunk under a prompt, from [`GeneratorCalls.prepare_text`]."""
        timings = StageTimings()
        if state.given is not None:
            frames = self._schedule.frames_at(state.latent_frames)
            latents, network, statistics = self._take_given(text, state.given[:, :, :frames], state.network, timings)
            rest = state.given[:, :, frames:]
            given, generated = rest if rest.shape[2] else None, 0
        else:
            latents, network, statistics = self._generate(text, state, timings)
            given, generated = None, 1
        ratio = self._autoencoder.temporal_compression_ratio
        surplus = ratio - 1 if state.latent_frames == 0 else 0  # the first latent stands for one frame
        num_frames = ratio * latents.shape[2] - surplus
        if self._num_frames is not None:
            num_frames = min(num_frames, self._num_frames - state.frames)
        wanted = -(-(num_frames + surplus) // ratio)
        after = replace(
            state,
            network=network,
            chunk=state.chunk + generated,
            latent_frames=state.latent_frames + latents.shape[2],
            frames=state.frames + num_frames,
            given=given,
            recent=self._recent(state, latents),
        )
        return SourceChunk(latents[:, :, :wanted], num_frames, timings=timings, statistics=statistics), after

    @torch.no_grad()
    def turn_to(self, text: Text, state: TextGeneratorState, number: int, timings: StageTimings) -> TextGeneratorState:
        """Goes on under another prompt, change `number` of the stream.

        Where the schedule says so, the cached frames' keys and values are computed anew under it (LongLive, arXiv
        2509.22622, "KV recache"): their clean latents go through the network once, all together, with bidirectional
        attention, at their positions. Once the window has rolled, the sink stays as it is, or the oldest of these
        frames are the new one.
        """
        if not self._schedule.recomputes or state.recent is None:
            return replace(state, prompt_number=number)
        network, latents, patch = state.network, state.recent, self._calls.network.config.patch_size[0]
        keep_sink = state.latent_frames > patch * network.cache_frames and not self._schedule.recomputes_sink
        if keep_sink:
            latents = latents[:, :, patch * network.sink_frames :]
        network = self._calls.network.rewind(network, latents.shape[2] // patch, keep_sink)
        with stage_timer(timings, "prompt_change", self._calls.device):
            _, network = self._calls(latents, self._schedule.context_sigma, text, network, commit=True)
        return replace(state, network=network, prompt_number=number)

    def _recent(self, state: TextGeneratorState, latents: torch.Tensor) -> torch.Tensor | None:
        if not self._schedule.recomputes:
            return None
        held = latents if state.recent is None else torch.cat([state.recent, latents], dim=2)
        return held[:, :, -state.network.cache_frames * self._calls.network.config.patch_size[0] :]

    def _take_given(
        self, text: Text, latents: torch.Tensor, network: CausalWanStreamState, timings: StageTimings
    ) -> tuple[torch.Tensor, CausalWanStreamState, dict[str, Any]]:
        with stage_timer(timings, "context_pass", self._calls.device):
            _, network = self._calls(latents, self._schedule.context_sigma, text, network, commit=True)
        return latents, network, {"generator_passes": 1}

    def _generate(
        self, text: Text, state: TextGeneratorState, timings: StageTimings
    ) -> tuple[torch.Tensor, CausalWanStreamState, dict[str, Any]]:
        """Denoises a chunk and commits its keys and values: those of the last step if they are good enough, or if the
        network does not read latents, so that noisy and clean ones make no difference."""
        sigmas = self._schedule.sigmas_of(state.chunk)
        sigmas = [sigmas[step] for step in self._policy.generator_steps(state.chunk, len(sigmas))]
        scores, reads = self._policy.quality_scorer is not None, self._calls.network.config.reads_latents
        noise = partial(self._fresh_noise, state.latent_frames)
        with stage_timer(timings, "generator_steps", self._calls.device):
            latents, network = sample_chunk(
                self._calls, noise, sigmas, text, state.network, commit=scores or not reads
            )
        statistics: dict[str, Any] = {"generator_passes": len(sigmas)}
        if scores:
            quality = self._quality(latents)
            statistics["generator_quality"] = quality
            statistics["skipped_context_passes"] = int(self._policy.skips_context_pass(quality))
        if reads and not statistics.get("skipped_context_passes"):
            # from the state before the chunk, so that this replaces what the last step may have committed
            with stage_timer(timings, "context_pass", self._calls.device):
                _, network = self._calls(latents, self._schedule.context_sigma, text, state.network, commit=True)
            statistics["generator_passes"] += 1
        return latents, network, statistics

    def _fresh_noise(self, start: int, step: int) -> torch.Tensor:
        role = "generator" if step == 0 else f"generator_renoise_{step - 1}"
        return send(self._noise(role, start, self._schedule.frames_at(start), self._shape), self._calls.device)

    def _quality(self, latents: torch.Tensor) -> float:
        """Scores the chunk's last latent frame, decoded by itself."""
        last = latents[:, :, -1:].to(execution_device(self._autoencoder), self._autoencoder.dtype)
        with self._scoring("quality"):
            frames = self._autoencoder.decode(last).sample
        return self._policy.quality(frames[:, :, -1])
