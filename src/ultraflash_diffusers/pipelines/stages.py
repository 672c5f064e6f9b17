# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The stages of the cascade between a source and its frames, each of them `output, state = stage(input, state)`.

A stage holds its networks and settings and nothing of a stream: called again from the same state it gives the same
again (but for the one-step states of the SR transformer, which are good for one call; see [`SRStreamState`]).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from diffusers import SchedulerMixin

from ..models.causal_latent_upsampler import CausalLatentUpsampler
from ..models.hr_autoencoder import HRAutoencoder
from ..models.stream_state import StreamState
from ..models.ultraflash_sr_transformer import SRStreamState
from ..pixels import to_levels
from .color_correction import wavelet_color_correction
from .detail import DetailSettings, DetailState, settle_detail
from .execution.calls import SRCalls
from .execution.compilation import GuardedCalls
from .execution.devices import execution_device, send
from .execution.timing import StageTimings, stage_timer
from .finite import all_finite
from .noise import SeededFrameNoise
from .samplers import PreparedPrompts, sample_group, sr_timesteps
from .segments import LatentSegment

StepCallback = Callable[[int, torch.Tensor, dict[str, torch.Tensor | None]], dict[str, torch.Tensor]]


class UpsampleStage:
    """Low-resolution latents to the high-resolution condition.

    Args:
        upsampler ([`CausalLatentUpsampler`]): the network.
        calls ([`GuardedCalls`]): the stream's guard of its calls.
    """

    def __init__(self, upsampler: CausalLatentUpsampler, calls: GuardedCalls) -> None:
        self._upsampler = upsampler
        self._calls = calls
        self.device = execution_device(upsampler)

    def __call__(self, segment: LatentSegment, state: StreamState | None) -> tuple[torch.Tensor, StreamState]:
        """Upsamples the segment that follows `state`, `None` where a clip starts.

        Returns:
            `tuple`: the condition, `[batch, channels, frames, scale * height, scale * width]`, and the state after it.
        """
        # contiguous, since compiled networks tell apart how their input lies in what it was cut from
        latents = segment.latents.to(self.device, self._upsampler.dtype).contiguous()
        with self._calls((len(segment), state is None)):
            output = self._upsampler(latents, state=state)
        return output.sample, output.state


@dataclass(frozen=True)
class SRSettings:
    """How the SR transformer refines a group.

    Args:
        group_frames (`int`): latent frames that the network takes at once.
        num_inference_steps (`int`): denoising steps.
        guidance_scale (`float`): classifier-free guidance where above 1.
        condition_noise (`float`): share `s` of noise in the condition, `(1 - s) * condition + s * noise`.
        kv_cache_blocks (`int`): temporal blocks of the past that a group attends to.
        fills_groups (`bool`, *optional*, defaults to `True`): whether shorter groups are filled by repeating the last
            frame, so that the network sees one shape.
    """

    group_frames: int
    num_inference_steps: int
    guidance_scale: float
    condition_noise: float
    kv_cache_blocks: int
    fills_groups: bool = True


@dataclass(frozen=True)
class SRGroup:
    """A group in front of the SR transformer.

    Args:
        condition (`torch.Tensor`): `[batch, channels, frames, height, width]`, at most `group_frames` frames.
        start (`int`): absolute index of its first latent frame.
        noise ([`SeededFrameNoise`]): the stream's noise.
        prompts ([`PreparedPrompts`]): the prompt and, with guidance, the negative one.
        kv_cache_blocks (`int`): temporal blocks of the cache to use from this group on.
    """

    condition: torch.Tensor
    start: int
    noise: SeededFrameNoise
    prompts: PreparedPrompts
    kv_cache_blocks: int


class SRStage:
    """Noise and the condition to clean high-resolution latents.

    Args:
        calls ([`SRCalls`]): the network, as the stream calls it.
        scheduler (`SchedulerMixin`): a flow-matching scheduler; each group works on a copy of its own.
        settings ([`SRSettings`]): see there.
        on_step (`Callable`, *optional*): called after each step with its index, the timestep and the tensors
            `latents`, `condition`, `prompt_embeds` and `negative_prompt_embeds`; what it returns replaces them.
    """

    def __init__(
        self, calls: SRCalls, scheduler: SchedulerMixin, settings: SRSettings, on_step: StepCallback | None = None
    ) -> None:
        self._calls = calls
        self._scheduler = scheduler
        self._settings = settings
        self._on_step = on_step
        self.device = calls.device
        # a callback may fail or stop a group, after which the state before it is still to be good
        self._single_use = settings.num_inference_steps == 1 and on_step is None

    def check_states(self, states: list[SRStreamState] | None) -> None:
        """Checks that the stage can go on from what a saved stream carried.

        Raises:
            ValueError: several steps after states for a single use.
        """
        if not self._single_use and any(state.single_use for state in states or []):
            raise ValueError(
                "`state` is of a stream of one SR step without `callback_on_step_end` and can only go on so, got "
                f"`num_inference_steps` {self._settings.num_inference_steps} and "
                f"{'no' if self._on_step is None else 'a'} callback"
            )

    def __call__(self, group: SRGroup, states: list[SRStreamState] | None) -> tuple[torch.Tensor, list[SRStreamState]]:
        """Refines the group that follows `states`, one for each prompt; `None` where a clip starts.

        Returns:
            `tuple`: clean latents `[batch, channels, frames, height, width]`, and the states after them.
        """
        latents, condition = self.inputs(group)
        if states is None:
            states = self._new_states(condition, len(group.prompts.texts))
        if group.kv_cache_blocks < self._settings.kv_cache_blocks:
            states = [state.with_kv_cache_blocks(group.kv_cache_blocks) for state in states]
        latents, after = sample_group(
            self._calls,
            sr_timesteps(self._scheduler, self._settings.num_inference_steps),
            latents,
            condition,
            group.prompts,
            states,
            self._settings.guidance_scale,
            None if self._on_step is None else self._call_back,
        )
        return latents[:, :, : group.condition.shape[2]], cast(list[SRStreamState], after)

    def inputs(self, group: SRGroup) -> tuple[torch.Tensor, torch.Tensor]:
        """The noise that a group starts from, and its condition: filled up, with its share of noise; both float32."""
        condition = self._filled(group.condition.to(self.device, torch.float32))
        shape, count = (condition.shape[1], *condition.shape[3:]), condition.shape[2]
        latents = send(group.noise("sr", group.start, count, shape), self.device)
        share = self._settings.condition_noise
        if share > 0:
            noise = send(group.noise("condition", group.start, count, shape), self.device)
            condition = (1 - share) * condition + share * noise
        return latents, condition

    def _filled(self, condition: torch.Tensor) -> torch.Tensor:
        missing = self._settings.group_frames - condition.shape[2] if self._settings.fills_groups else 0
        return torch.cat([condition, condition[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)

    def _new_states(self, condition: torch.Tensor, count: int) -> list[SRStreamState]:
        batch, _, _, height, width = condition.shape
        frames = self._settings.group_frames
        sizes = (self._settings.kv_cache_blocks, batch, frames, height, width, self.device)
        return [self._calls.network.new_stream(*sizes, single_use=self._single_use) for _ in range(count)]

    def _call_back(
        self,
        step: int,
        timestep: torch.Tensor,
        latents: torch.Tensor,
        condition: torch.Tensor,
        prompts: PreparedPrompts,
    ) -> tuple[torch.Tensor, torch.Tensor, PreparedPrompts]:
        assert self._on_step is not None
        names = ("prompt_embeds", "negative_prompt_embeds")[: len(prompts.embeds)]
        embeds = [each.expand(latents.shape[0], -1, -1) for each in prompts.embeds]
        given: dict[str, torch.Tensor | None] = {"latents": latents, "condition": condition}
        given |= {"negative_prompt_embeds": None} | dict(zip(names, embeds, strict=True))
        changed = self._on_step(step, timestep, given)
        if any(changed.get(name, given[name]) is not given[name] for name in names):
            prompts = PreparedPrompts.of(self._calls, [changed.get(n, e) for n, e in zip(names, embeds, strict=True)])
        return changed.get("latents", latents), changed.get("condition", condition), prompts


@dataclass
class FrameState(StreamState):
    """What frames leave to the next ones.

    Args:
        decoder (`StreamState`, *optional*): of the network.
        detail ([`DetailState`], *optional*): of what it adds to the source.
    """

    decoder: StreamState | None = None
    detail: DetailState | None = None


class DecodeStage:
    """High-resolution latents to frames, one latent frame after the other.

    So the frames do not depend on how many are asked for at a time, and memory is what one latent frame takes.

    Args:
        autoencoder ([`HRAutoencoder`]): the network.
        calls ([`GuardedCalls`]): the stream's guard of its calls.
        correction_levels (`int`, *optional*): of [`wavelet_color_correction`]; `None` leaves the colours alone.
        detail ([`DetailSettings`]): how much of what is not in the source's pixels is shown, where it brings pixels.
        rounds (`bool`): whether frames become 8-bit levels at once, each latent frame's before the next.
    """

    def __init__(
        self,
        autoencoder: HRAutoencoder,
        calls: GuardedCalls,
        correction_levels: int | None,
        detail: DetailSettings,
        rounds: bool,
    ) -> None:
        self._autoencoder = autoencoder
        self._calls = calls
        self._correction_levels = correction_levels
        self._detail = detail
        self._rounds = rounds
        self.device = execution_device(autoencoder)

    def __call__(
        self,
        segment: LatentSegment,
        state: FrameState,
        size: tuple[int, int],
        timings: StageTimings,
        finite: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, FrameState]:
        """Decodes the segment that follows `state`.

        Args:
            segment ([`LatentSegment`]): high-resolution latents.
            state ([`FrameState`]): of the frames before; not asked for where a clip starts.
            size (`tuple[int, int]`): height and width that the frames are cropped to.
            timings ([`StageTimings`]): what this takes is added to them.
            finite (`list[torch.Tensor]`, *optional*): 0-d bools, whether what the network made is finite, are added.

        Returns:
            `tuple`: the frames that belong to the video, `[batch, 3, frames, *size]` in [-1, 1] or, rounded,
            `[batch, frames, *size, 3]`, and the state after them.
        """
        pieces = []
        rest: LatentSegment | None = segment
        while rest is not None:
            latent, rest = rest.split(1)
            state = FrameState() if latent.starts_clip else state
            with stage_timer(timings, "decoder", self.device):
                frames, decoder = self._decode(latent, state.decoder)
                if finite is not None:
                    finite.append(all_finite(frames))
            frames, detail = self._beside_source(frames[:, :, : latent.kept[0]], latent, state.detail, timings)
            state = FrameState(decoder, detail)
            frames = frames[..., : size[0], : size[1]]
            if self._rounds:
                with stage_timer(timings, "output", self.device):
                    frames = to_levels(frames)
            pieces.append(frames)
        return torch.cat(pieces, dim=1 if self._rounds else 2), state

    def _decode(self, latent: LatentSegment, state: StreamState | None) -> tuple[torch.Tensor, StreamState]:
        latents = latent.latents.to(self.device, self._autoencoder.dtype).contiguous()
        with self._calls(latent.starts_clip):
            output = self._autoencoder.decode(latents, state=state)
        return output.sample, output.state

    def _beside_source(
        self, frames: torch.Tensor, latent: LatentSegment, state: DetailState | None, timings: StageTimings
    ) -> tuple[torch.Tensor, DetailState | None]:
        """The frames with the source's colours, and as much of their own detail as is asked for."""
        if latent.pixels is None:
            return frames, state
        source = latent.pixels[:, :, : latent.kept[0]].to(self.device)
        if self._correction_levels is not None:
            with stage_timer(timings, "color_correction", self.device):
                frames = wavelet_color_correction(frames, source, self._correction_levels)
        if not self._detail.changes_frames:
            return frames, state
        with stage_timer(timings, "detail", self.device):
            return settle_detail(frames, source, self._detail, state)
