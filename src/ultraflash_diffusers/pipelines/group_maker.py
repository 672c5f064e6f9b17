# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One group after the other, from the source to clean high-resolution latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .cache_management import DynamicCacheManagement
from .detail import DetailSettings
from .execution.calls import SRCalls
from .execution.devices import on_cuda_stream
from .execution.timing import StageTimings, stage_timer
from .finite import FiniteCheck
from .noise import SeededFrameNoise
from .pipeline_output import OutputType
from .pipeline_state import CurrentState
from .samplers import PreparedPrompts
from .segments import LatentSegment, Regrouper
from .stages import SRGroup, SRSettings, SRStage, UpsampleStage


@dataclass(frozen=True)
class StreamSettings:
    """What the arguments of a call come to; see [`UltraFlashStreamingPipeline.stream`]."""

    sr: SRSettings
    scale: int
    size: tuple[int, int] | None
    num_frames: int | None
    frames_per_chunk: int | None
    first_chunk_frames: int | None
    output_type: OutputType
    correction_levels: int | None
    detail: DetailSettings
    cache_management: DynamicCacheManagement | None

    def chunk_latents(self, begins: bool, waiting: Sequence[LatentSegment]) -> int | None:
        """Latent frames whose pixels a chunk holds; `None` for those of a group, where these differ in length.

        Args:
            begins (`bool`): whether it is the first one of the video.
            waiting (sequence of [`LatentSegment`]): groups, or what is left of them, that are still to be decoded.
        """
        if self.first_chunk_frames is not None and (begins or waiting):
            return self.first_chunk_frames if begins else len(waiting[0])
        return self.frames_per_chunk or (self.sr.group_frames if self.sr.fills_groups else None)


@dataclass(frozen=True)
class PromptTurn:
    """A prompt, and from where on it counts; see [`PromptChange`]."""

    number: int
    at_frame: int
    prompts: PreparedPrompts


@dataclass
class RefinedGroup:
    """High-resolution latents, and what they took.

    Args:
        segment ([`LatentSegment`]): them.
        timings ([`StageTimings`]): seconds by stage.
        statistics (`dict[str, Any]`): counts.
        checks (`list[FiniteCheck]`): whether they are finite, and what they were made of.
        ready (`torch.cuda.Event`, *optional*): on a GPU, what whoever reads the latents has to wait for.
    """

    segment: LatentSegment
    timings: StageTimings
    statistics: dict[str, Any]
    checks: list[FiniteCheck]
    ready: torch.cuda.Event | None = None


class GroupMaker:
    """The stages in front of the decoder.

    Args:
        regrouper ([`Regrouper`]): where the groups come from.
        upsample ([`UpsampleStage`]): makes their condition.
        refine ([`SRStage`]): makes their latents.
        calls ([`SRCalls`]): those of `refine`, which are told where a group begins.
        device (`torch.device`): where the latents go.
        settings ([`StreamSettings`]): see there.
        prompt_number (`int`): the prompt that the source was made with.
        cuda_stream (`torch.cuda.Stream`, *optional*): to work on; by default the current one.
    """

    def __init__(
        self,
        regrouper: Regrouper,
        upsample: UpsampleStage,
        refine: SRStage,
        calls: SRCalls,
        device: torch.device,
        settings: StreamSettings,
        prompt_number: int,
        cuda_stream: torch.cuda.Stream | None = None,
    ) -> None:
        self._regrouper = regrouper
        self._upsample = upsample
        self._refine = refine
        self._calls = calls
        self._device = device
        self._settings = settings
        self._source_prompt = prompt_number
        self._cuda_stream = cuda_stream

    def prepare(self, prompt_embeds: list[torch.Tensor]) -> PreparedPrompts:
        """Prepares embeddings `[prompts, length, text_dim]` of the prompt and, with guidance, of the negative one."""
        with torch.no_grad(), on_cuda_stream(self._cuda_stream):
            return PreparedPrompts.of(self._calls, prompt_embeds)

    @torch.no_grad()
    def __call__(self, current: CurrentState, turns: Sequence[PromptTurn]) -> RefinedGroup | None:
        """Makes the next group, `None` after the last one.

        Args:
            current ([`CurrentState`]): the stream's, which goes on to what was read, and then to what was made of it.
            turns (sequence of [`PromptTurn`]): the prompt of the last group, and all that were asked for since.
        """
        timings, statistics = StageTimings(), dict[str, Any]()
        with on_cuda_stream(self._cuda_stream):
            for turn in turns:
                if turn.number > self._source_prompt:
                    self._regrouper.source.change_prompt(turn.number, turn.prompts.embeds[0], turn.at_frame)
                    self._source_prompt = turn.number
            self._read(current, timings, statistics)
            if not current.now.waiting:
                return None
            refined, checks = self._make(current, turns, timings, statistics)
            ready = None
            if self._device.type == "cuda":
                ready = torch.cuda.current_stream(self._device).record_event()
        return RefinedGroup(refined, timings, statistics, self._regrouper.take_checks() + checks, ready)

    def _read(self, current: CurrentState, timings: StageTimings, statistics: dict[str, Any]) -> None:
        """Reading cannot be undone: the state goes on even if what follows fails."""
        waiting = current.now.waiting
        starts = current.now.latents_done == 0 and not waiting
        current.replace(waiting=self._regrouper.fill(waiting, starts, timings, statistics))

    def _make(
        self, current: CurrentState, turns: Sequence[PromptTurn], timings: StageTimings, statistics: dict[str, Any]
    ) -> tuple[LatentSegment, list[FiniteCheck]]:
        segment, waiting = self._regrouper.take(current.now.waiting)
        turn = self._turn_at(current.now.latents_done, turns)
        prompts = turn.prompts
        self._check_pixels(segment)
        size = self._checked_size(segment.latents.shape[0], prompts, current.now.size)
        self._calls.begin_group(segment.starts_clip)
        if segment.starts_clip:
            # not needed any more, even if this group fails; their memory serves the new clip
            current.replace(upsampler=None, sr=None, groups_done=0)
        with stage_timer(timings, "upsampler", self._upsample.device):
            condition, upsampler = self._upsample(segment, current.now.upsampler)
        group = self._sr_group(condition, current, prompts)
        with stage_timer(timings, "transformer", self._refine.device):
            latents, sr = self._refine(group, current.now.sr)
            latents = latents.to(self._device)
        where = f"the group that begins at latent frame {group.start}"
        checks = [
            FiniteCheck.of("`latent_upsampler` made latents", where, condition),
            FiniteCheck.of("`transformer` made latents", where, latents),
        ]
        statistics["sr_kv_cache_blocks"] = [group.kv_cache_blocks]
        current.replace(
            size=size,
            waiting=waiting,
            upsampler=upsampler,
            sr=sr,
            latents_done=group.start + len(segment),
            groups_done=current.now.groups_done + 1,
            prompt_embeds=prompts.embeds,
            prompt_number=turn.number,
        )
        return replace(segment, latents=latents), checks

    def _turn_at(self, latents_done: int, turns: Sequence[PromptTurn]) -> PromptTurn:
        """The newest prompt that counts for the group that begins there."""
        ratio = self._regrouper.ratio
        frame = ratio * (latents_done - 1) + 1 if latents_done else 0
        return [turn for turn in turns if turn.at_frame <= frame or turn is turns[0]][-1]

    def _sr_group(self, condition: torch.Tensor, current: CurrentState, prompts: PreparedPrompts) -> SRGroup:
        state, blocks = current.now, self._settings.sr.kv_cache_blocks
        if self._settings.cache_management is not None:
            blocks = self._settings.cache_management.sr_kv_cache_blocks(state.groups_done, blocks)
        noise = SeededFrameNoise(state.seeds, condition.shape[0])
        return SRGroup(condition, state.latents_done, noise, prompts, blocks)

    def _check_pixels(self, segment: LatentSegment) -> None:
        strength = self._settings.detail.strength
        if strength != 1 and segment.pixels is None:
            raise ValueError(f"`strength` is {strength}, but `source` gives latents: only pixels can be gone back to")

    def _checked_size(
        self, batch_size: int, prompts: PreparedPrompts, known: tuple[int, int] | None
    ) -> tuple[int, int]:
        """Compares what was asked for with what the source turned out to give; returns the size of the frames."""
        number = prompts.embeds[0].shape[0]
        if number not in (1, batch_size):
            raise ValueError(f"`prompt` holds {number} prompts, `source` gives a batch of {batch_size}")
        if known is not None:
            return known
        source, scale = self._regrouper.source, self._settings.scale
        if source.height is None or source.width is None:
            raise ValueError(f"`source`, a {type(source).__name__}, gave a chunk, but no height and width")
        natural = (source.height * scale, source.width * scale)
        size = self._settings.size or natural
        if any(-(-asked // scale) * scale != side for asked, side in zip(size, natural, strict=True)):
            raise ValueError(
                f"`height` and `width` are {size}, but `source` has frames of {source.height} x {source.width}, which "
                f"scale {scale} brings to {natural}"
            )
        return size
