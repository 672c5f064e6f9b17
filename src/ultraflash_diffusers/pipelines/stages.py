# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The stages of the cascade between a source and its frames.

Each stage holds its networks, its settings and the state that it carries from group to group of *one* stream. What
goes from stage to stage is a [`LatentSegment`].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers import SchedulerMixin

from ..models.causal_latent_upsampler import CausalLatentUpsampler
from ..models.hr_autoencoder import HRAutoencoder
from ..models.stream_state import StreamState
from ..models.ultraflash_sr_transformer import SRStreamState, UltraFlashSRTransformer
from ..models.wan_layers import TextKeyValues
from .cache_management import DynamicCacheManagement
from .color_correction import wavelet_color_correction
from .execution.compilation import GuardedCalls
from .execution.cuda_graphs import CapturedStep
from .execution.devices import DeferredFlag, execution_device, send
from .noise import SeededFrameNoise
from .pipeline_output import to_levels
from .sources.base import Source, SourceChunk, StageTimings, stage_timer

OutputType = Literal["pil", "np", "pt", "uint8", "latent"]
StepCallback = Callable[[int, torch.Tensor, dict[str, torch.Tensor | None]], dict[str, torch.Tensor]]

# groups of a clip in which networks are compiled and tuned, which cannot be captured
_FIRST_GROUPS = 2


@dataclass
class LatentSegment(StreamState):
    """Consecutive latent frames of one clip, and the pixel frames that they stand for.

    Args:
        latents (`torch.Tensor`): `[batch, channels, frames, height, width]`, low or high resolution.
        kept (`list[int]`): for each latent frame, how many of its pixel frames belong to the video: fewer than it
            stands for only at the end of a clip.
        starts_clip (`bool`): whether the first latent starts a clip, and so stands for one pixel frame.
        ratio (`int`): pixel frames that every other latent stands for.
        pixels (`torch.Tensor`, *optional*): `[batch, 3, pixel frames, height, width]`, the source's own frames.
    """

    latents: torch.Tensor
    kept: list[int]
    starts_clip: bool
    ratio: int
    pixels: torch.Tensor | None = None

    @classmethod
    def from_chunk(cls, chunk: SourceChunk, starts_clip: bool, ratio: int) -> LatentSegment:
        """Makes a segment of what a source gave, without latent frames that nothing is kept of."""
        first = 1 if starts_clip else ratio
        kept = [first] + [ratio] * (-(-(chunk.num_frames - first) // ratio))
        kept[-1] -= sum(kept) - chunk.num_frames
        return cls(chunk.latents, kept, starts_clip, ratio, chunk.pixels).split(len(kept))[0]

    def __len__(self) -> int:
        return self.latents.shape[2]

    @property
    def num_frames(self) -> int:
        """Pixel frames that belong to the video."""
        return sum(self.kept)

    def join(self, other: LatentSegment) -> LatentSegment:
        """Appends the segment that follows in the same clip, on whose device the result is."""
        pixels = None
        if self.pixels is not None and other.pixels is not None:
            pixels = torch.cat([self.pixels.to(other.pixels), other.pixels], dim=2)
        latents = torch.cat([self.latents.to(other.latents), other.latents], dim=2)
        return replace(self, latents=latents, kept=self.kept + other.kept, pixels=pixels)

    def split(self, count: int) -> tuple[LatentSegment, LatentSegment | None]:
        """Cuts after `count` latent frames; the second part is `None` where nothing is left."""
        if count >= len(self):
            return self, None
        head_pixels = tail_pixels = None
        if self.pixels is not None:
            boundary = self.ratio * count - (self.ratio - 1 if self.starts_clip else 0)
            head_pixels, tail_pixels = self.pixels[:, :, :boundary], self.pixels[:, :, boundary:]
        return (
            replace(self, latents=self.latents[:, :, :count], kept=self.kept[:count], pixels=head_pixels),
            replace(
                self,
                latents=self.latents[:, :, count:],
                kept=self.kept[count:],
                starts_clip=False,
                pixels=tail_pixels,
            ),
        )


class Regrouper:
    """Cuts what a source gives, in whatever portions, into groups of equal length; a clip's last one may be shorter.

    Args:
        source ([`Source`]): where the chunks come from.
        group_frames (`int`): latent frames a group.
        ratio (`int`): the temporal compression of the latents.
        waiting (`list[LatentSegment]`, *optional*): what a saved stream had read and not yet used.
    """

    def __init__(
        self, source: Source, group_frames: int, ratio: int, waiting: list[LatentSegment] | None = None
    ) -> None:
        self.source = source
        self._chunks: Iterator[SourceChunk] = source.chunks()
        self._group_frames = group_frames
        self._ratio = ratio
        self._ended = False
        self._error: Exception | None = None
        self._chunks_read = 0
        self._at_start = waiting is None
        self._unchecked: list[tuple[int, DeferredFlag]] = []
        # segments of different clips; only the last one can still grow
        self.waiting: list[LatentSegment] = waiting or []

    def next_group(self, timings: StageTimings, statistics: dict[str, Any]) -> LatentSegment | None:
        """Returns the next group, or `None` after the last one. Adds what the source reports to the dictionaries.

        Raises:
            Exception: what the source raised, after all that came before it has been returned.
        """
        while not self._has_group():
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            self._read(timings, statistics)
        group, rest = self.waiting.pop(0).split(self._group_frames)
        if rest is not None:
            self.waiting.insert(0, rest)
        return group

    def _has_group(self) -> bool:
        complete = len(self.waiting) > 1 or (self._ended and len(self.waiting) > 0)
        return complete or any(len(segment) >= self._group_frames for segment in self.waiting)

    def _read(self, timings: StageTimings, statistics: dict[str, Any]) -> None:
        try:
            chunk = next(self._chunks, None)
            if chunk is not None:
                self._check(chunk)
        except Exception as error:
            self._error, self._ended = error, True
            return
        if chunk is None:
            self._ended = True
            return
        segment = LatentSegment.from_chunk(chunk, self._at_start or chunk.restart, self._ratio)
        self._at_start = False
        self._chunks_read += 1
        if self.waiting and not chunk.restart:
            self.waiting[-1] = self.waiting[-1].join(segment)
        else:
            self.waiting.append(segment)
        timings.merge(chunk.timings)
        for name, value in chunk.statistics.items():
            statistics.setdefault(name, []).append(value)

    def take_checks(self) -> list[tuple[int, DeferredFlag]]:
        """Returns the number of each chunk that was read since the last call and whether its latents are finite.

        Those that lie on a CPU have been checked already.
        """
        checks, self._unchecked = self._unchecked, []
        return checks

    def _check(self, chunk: SourceChunk) -> None:
        finite = (self._chunks_read, DeferredFlag(chunk.latents.isfinite().all()))
        if chunk.latents.device.type == "cpu":
            check_finite([finite])
        else:
            self._unchecked.append(finite)


def check_finite(checks: list[tuple[int, DeferredFlag]]) -> None:
    """Checks what [`Regrouper.take_checks`] returned.

    Raises:
        ValueError: a chunk whose latents are not finite.
    """
    for number, finite in checks:
        if not finite:
            raise ValueError(f"`source` gave latents that are not finite in its chunk {number}")


class UpsampleStage:
    """Low-resolution latents to the high-resolution condition.

    Args:
        upsampler ([`CausalLatentUpsampler`]): the network.
        state (`StreamState`, *optional*): what a saved stream carried.
    """

    def __init__(self, upsampler: CausalLatentUpsampler, state: StreamState | None) -> None:
        self._upsampler = upsampler
        self._calls = GuardedCalls()
        self.device = execution_device(upsampler)
        self.state = None if state is None else state.to(self.device)

    def __call__(self, segment: LatentSegment) -> torch.Tensor:
        """Returns the condition, `[batch, channels, frames, scale * height, scale * width]`."""
        state = None if segment.starts_clip else self.state
        # contiguous, since compiled networks tell apart how their input lies in what it was cut from
        latents = segment.latents.to(self.device, self._upsampler.dtype).contiguous()
        with self._calls((len(segment), segment.starts_clip)):
            output = self._upsampler(latents, state=state)
        self.state = output.state
        return output.sample


@dataclass(frozen=True)
class SRSettings:
    """How the SR transformer refines a group.

    Args:
        group_frames (`int`): latent frames that the network takes at once; shorter groups are filled by repeating the
            last frame.
        num_inference_steps (`int`): denoising steps.
        guidance_scale (`float`): classifier-free guidance where above 1.
        condition_noise (`float`): share `s` of noise in the condition, `(1 - s) * condition + s * noise`.
        kv_cache_blocks (`int`): temporal blocks of the past that a group attends to.
    """

    group_frames: int
    num_inference_steps: int
    guidance_scale: float
    condition_noise: float
    kv_cache_blocks: int


class SRStage:
    """Noise and the condition to clean high-resolution latents.

    Args:
        transformer ([`UltraFlashSRTransformer`]): the network.
        scheduler (`SchedulerMixin`): a flow-matching scheduler; the stage works on a copy of its own.
        settings ([`SRSettings`]): see there.
        on_step (`Callable`, *optional*): called after each step with its index, the timestep and the tensors
            `latents`, `condition`, `prompt_embeds` and `negative_prompt_embeds`; what it returns replaces them.
        states (`list[SRStreamState]`, *optional*): what a saved stream carried: one for the prompt and, with guidance,
            one for the negative prompt.

    Raises:
        ValueError: several steps after `states` for a single use.
    """

    def __init__(
        self,
        transformer: UltraFlashSRTransformer,
        scheduler: SchedulerMixin,
        settings: SRSettings,
        on_step: StepCallback | None,
        states: list[SRStreamState] | None,
    ) -> None:
        self._transformer = transformer
        self._scheduler = deepcopy(scheduler)
        self._settings = settings
        self._on_step = on_step
        self.device = execution_device(transformer)
        # a callback may fail or stop a group, after which the state before it is still to be good
        self._single_use = settings.num_inference_steps == 1 and on_step is None
        self.states = None if states is None else [state.to(self.device) for state in states]
        if not self._single_use and any(state.single_use for state in self.states or []):
            raise ValueError(
                "`state` is of a stream of one SR step without `callback_on_step_end` and can only go on so, got "
                f"`num_inference_steps` {settings.num_inference_steps} and {'no' if on_step is None else 'a'} callback"
            )
        # one for each state
        self._graphs: dict[int, CapturedStep] = {}
        self._calls = GuardedCalls()
        self._groups_of_clip = 0
        # the prompts by identity, kept alive here, and what the network takes for them
        self._texts: dict[int, tuple[torch.Tensor, torch.Tensor | TextKeyValues]] = {}

    def __call__(
        self,
        condition: torch.Tensor,
        starts_clip: bool,
        start: int,
        noise: SeededFrameNoise,
        prompt_embeds: list[torch.Tensor],
        kv_cache_blocks: int,
    ) -> torch.Tensor:
        """Refines one group.

        Args:
            condition (`torch.Tensor`): `[batch, channels, frames, height, width]`, at most `group_frames` frames.
            starts_clip (`bool`): whether to forget what was carried.
            start (`int`): absolute index of the first latent frame.
            noise ([`SeededFrameNoise`]): the stream's noise.
            prompt_embeds (`list[torch.Tensor]`): `[batch or 1, length, text_dim]` of the prompt and, with guidance, of
                the negative prompt.
            kv_cache_blocks (`int`): temporal blocks of the cache to use from now on.
        """
        frames = condition.shape[2]
        condition = self._filled(condition.to(self.device, torch.float32))
        shape = (condition.shape[1], *condition.shape[3:])
        count = condition.shape[2]
        latents = send(noise("sr", start, count, shape), self.device)
        share = self._settings.condition_noise
        if share > 0:
            condition = (1 - share) * condition + share * send(noise("condition", start, count, shape), self.device)
        states = self._starting_states(condition, starts_clip, len(prompt_embeds), kv_cache_blocks)
        steps = self._settings.num_inference_steps
        # on the CPU, where to read a sigma or a timestep takes no synchronisation
        self._scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), device="cpu")
        texts = self._texts_of(prompt_embeds, latents.shape[0])
        for index, timestep in enumerate(self._scheduler.timesteps):
            flow, next_states = self._flow(latents, condition, timestep, texts, states)
            latents = self._scheduler.step(flow, timestep, latents, return_dict=False)[0]
            if self._on_step is not None:
                given = [embeds.expand(latents.shape[0], -1, -1) for embeds in prompt_embeds]
                tensors = self._on_step(index, timestep, _step_tensors(latents, condition, given))
                latents, condition = tensors.pop("latents", latents), tensors.pop("condition", condition)
                prompt_embeds = _updated(prompt_embeds, tensors)
                texts = self._texts_of(prompt_embeds, latents.shape[0])
        # only what the last step saw is carried on
        self.states = next_states
        self._groups_of_clip += 1
        return latents[:, :, :frames]

    def _texts_of(self, prompt_embeds: list[torch.Tensor], batch_size: int) -> list[torch.Tensor | TextKeyValues]:
        """The prompts as the network takes them, made anew only where they are others than before."""
        known = self._texts.keys() == {id(embeds) for embeds in prompt_embeds}
        if not known:
            self._texts = {id(embeds): (embeds, self._prepared(embeds)) for embeds in prompt_embeds}
        return [_for_batch(self._texts[id(embeds)][1], batch_size) for embeds in prompt_embeds]

    def _prepared(self, embeds: torch.Tensor) -> torch.Tensor | TextKeyValues:
        with self._calls("text"):
            return self._transformer.prepare_text(embeds.to(self.device, self._transformer.dtype))

    def _filled(self, condition: torch.Tensor) -> torch.Tensor:
        missing = self._settings.group_frames - condition.shape[2]
        return torch.cat([condition, condition[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)

    def _starting_states(
        self, condition: torch.Tensor, starts_clip: bool, count: int, kv_cache_blocks: int
    ) -> list[SRStreamState]:
        if starts_clip or self.states is None:
            batch, _, frames, height, width = condition.shape
            blocks = self._settings.kv_cache_blocks
            sizes = (blocks, batch, frames, height, width, self.device)
            self.states, self._groups_of_clip = None, 0  # their memory serves the new clip
            self._graphs.clear()
            states = [self._transformer.new_stream(*sizes, single_use=self._single_use) for _ in range(count)]
        else:
            states = self.states
        if kv_cache_blocks < self._settings.kv_cache_blocks:
            states = [state.with_kv_cache_blocks(kv_cache_blocks) for state in states]
        return states

    def _flow(
        self,
        latents: torch.Tensor,
        condition: torch.Tensor,
        timestep: torch.Tensor,
        texts: list[torch.Tensor | TextKeyValues],
        states: list[SRStreamState],
    ) -> tuple[torch.Tensor, list[SRStreamState]]:
        inputs = torch.cat([latents, condition], dim=1).to(self._transformer.dtype)
        timesteps = torch.full((latents.shape[0],), float(timestep), device=latents.device)
        with self._calls(min(self._groups_of_clip, _FIRST_GROUPS)):
            outputs = [
                self._step(index, inputs, timesteps, text, state)
                for index, (text, state) in enumerate(zip(texts, states, strict=True))
            ]
        flow = outputs[0][0].float()
        if len(outputs) > 1:
            unguided = outputs[1][0].float()
            flow = unguided + self._settings.guidance_scale * (flow - unguided)
        return flow, [state for _, state in outputs]

    def _step(
        self,
        index: int,
        inputs: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor | TextKeyValues,
        state: SRStreamState,
    ) -> tuple[torch.Tensor, SRStreamState]:
        """Runs the network once from a state, number `index` of the stream's; as a CUDA graph where it is to."""
        if not (self._transformer.cuda_graphs and self._single_use and self._groups_of_clip >= _FIRST_GROUPS):
            output = self._transformer(inputs, timesteps, text, state=state)
            return output.sample, output.state
        graph = self._graphs.get(index)
        if graph is None or not graph.serves(inputs, text, state):
            graph = self._graphs[index] = CapturedStep(self._transformer, inputs, timesteps, text, state)
        return graph(inputs, timesteps, state), graph.state


def _for_batch(text: torch.Tensor | TextKeyValues, batch_size: int) -> torch.Tensor | TextKeyValues:
    return text.expand(batch_size, -1, -1) if isinstance(text, torch.Tensor) else text.expand(batch_size)


def _step_tensors(
    latents: torch.Tensor, condition: torch.Tensor, prompt_embeds: list[torch.Tensor]
) -> dict[str, torch.Tensor | None]:
    negative = prompt_embeds[1] if len(prompt_embeds) > 1 else None
    return {
        "latents": latents,
        "condition": condition,
        "prompt_embeds": prompt_embeds[0],
        "negative_prompt_embeds": negative,
    }


def _updated(prompt_embeds: list[torch.Tensor], tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    names = ("prompt_embeds", "negative_prompt_embeds")
    return [tensors.get(name, embeds) for name, embeds in zip(names, prompt_embeds, strict=False)]


@dataclass(frozen=True)
class StreamSettings:
    """What the arguments of a call come to; see [`UltraFlashStreamingPipeline.stream`]."""

    sr: SRSettings
    scale: int
    size: tuple[int, int] | None
    num_frames: int | None
    frames_per_chunk: int
    output_type: OutputType
    correction_levels: int | None
    cache_management: DynamicCacheManagement | None


@dataclass
class RefinedGroup:
    """High-resolution latents, and what they took.

    Args:
        segment ([`LatentSegment`]): them.
        timings ([`StageTimings`]): seconds by stage.
        statistics (`dict[str, Any]`): counts.
        checks (`list[tuple[int, DeferredFlag]]`): see [`Regrouper.take_checks`].
        ready (`torch.cuda.Event`, *optional*): on a GPU, what whoever reads the latents has to wait for.
    """

    segment: LatentSegment
    timings: StageTimings
    statistics: dict[str, Any]
    checks: list[tuple[int, DeferredFlag]]
    ready: torch.cuda.Event | None = None


class GroupMaker:
    """The stages in front of the decoder: takes one group after the other from the source to clean latents.

    Args:
        regrouper ([`Regrouper`]): where the groups come from.
        upsample ([`UpsampleStage`]): makes their condition.
        refine ([`SRStage`]): makes their latents.
        device (`torch.device`): where these go.
        settings ([`StreamSettings`]): see there.
        seeds (`list[int]`): of the stream's noise.
        prompt_embeds (`list[torch.Tensor]`): what the source was made with.
    """

    def __init__(
        self,
        regrouper: Regrouper,
        upsample: UpsampleStage,
        refine: SRStage,
        device: torch.device,
        settings: StreamSettings,
        seeds: list[int],
        prompt_embeds: list[torch.Tensor],
    ) -> None:
        self.regrouper = regrouper
        self.upsample = upsample
        self.refine = refine
        self._device = device
        self._settings = settings
        self._seeds = seeds
        self._source_prompt_embeds = prompt_embeds
        self.size: tuple[int, int] | None = None
        self.latents_done = 0
        self.groups_done = 0
        self.cuda_stream: torch.cuda.Stream | None = None

    @torch.no_grad()
    def __call__(self, prompt_embeds: list[torch.Tensor]) -> RefinedGroup | None:
        """Makes the next group, `None` after the last one.

        Args:
            prompt_embeds (`list[torch.Tensor]`): `[prompts, length, text_dim]` of the prompt and, with guidance, of
                the negative prompt.
        """
        timings = StageTimings()
        statistics: dict[str, Any] = {}
        with on_cuda_stream(self.cuda_stream):
            if prompt_embeds is not self._source_prompt_embeds:
                self.regrouper.source.set_prompt_embeds(prompt_embeds[0])
                self._source_prompt_embeds = prompt_embeds
            segment = self.regrouper.next_group(timings, statistics)
            if segment is None:
                return None
            upsampler_state = self.upsample.state
            try:
                self._check_source(segment.latents.shape[0], prompt_embeds[0].shape[0])
                refined = self._refined(segment, prompt_embeds, timings, statistics)
            except BaseException:
                # as if it had not been begun: the stream's state may still be asked for
                self.upsample.state = upsampler_state
                self.regrouper.waiting.insert(0, segment)
                raise
            ready = None
            if self._device.type == "cuda":
                ready = torch.cuda.current_stream(self._device).record_event()
        return RefinedGroup(refined, timings, statistics, self.regrouper.take_checks(), ready)

    def _refined(
        self,
        segment: LatentSegment,
        prompt_embeds: list[torch.Tensor],
        timings: StageTimings,
        statistics: dict[str, Any],
    ) -> LatentSegment:
        batch_size = segment.latents.shape[0]
        group = 0 if segment.starts_clip else self.groups_done
        blocks = self._settings.sr.kv_cache_blocks
        if self._settings.cache_management is not None:
            blocks = self._settings.cache_management.sr_kv_cache_blocks(group, blocks)
        with stage_timer(timings, "upsampler", self.upsample.device):
            condition = self.upsample(segment)
        with stage_timer(timings, "transformer", self.refine.device):
            latents = self.refine(
                condition,
                segment.starts_clip,
                self.latents_done,
                SeededFrameNoise(self._seeds, batch_size),
                prompt_embeds,
                blocks,
            ).to(self._device)
        self.latents_done += len(segment)
        self.groups_done = group + 1
        statistics["sr_kv_cache_blocks"] = [blocks]
        return replace(segment, latents=latents)

    def _check_source(self, batch_size: int, prompts: int) -> None:
        """Compares what was asked for with what the source turned out to give."""
        if prompts not in (1, batch_size):
            raise ValueError(f"`prompt` holds {prompts} prompts, `source` gives a batch of {batch_size}")
        if self.size is not None:
            return
        source, scale = self.regrouper.source, self._settings.scale
        if source.height is None or source.width is None:
            raise ValueError(f"`source`, a {type(source).__name__}, gave a chunk, but no height and width")
        natural = (source.height * scale, source.width * scale)
        size = self._settings.size or natural
        if any(-(-asked // scale) * scale != side for asked, side in zip(size, natural, strict=True)):
            raise ValueError(
                f"`height` and `width` are {size}, but `source` has frames of {source.height} x {source.width}, which "
                f"scale {scale} brings to {natural}"
            )
        self.size = size


class DecodeStage:
    """High-resolution latents to frames, one latent frame after the other.

    So the frames do not depend on how many are asked for at a time, and memory is what one latent frame takes.

    Args:
        autoencoder ([`HRAutoencoder`]): the network.
        correction_levels (`int`, *optional*): of [`wavelet_color_correction`]; `None` leaves the colours alone.
        rounds (`bool`): whether frames become 8-bit levels at once, each latent frame's before the next.
        state (`StreamState`, *optional*): what a saved stream carried.
    """

    def __init__(
        self, autoencoder: HRAutoencoder, correction_levels: int | None, rounds: bool, state: StreamState | None
    ) -> None:
        self._autoencoder = autoencoder
        self._correction_levels = correction_levels
        self._rounds = rounds
        self._calls = GuardedCalls()
        self.device = execution_device(autoencoder)
        self.state = None if state is None else state.to(self.device)

    def __call__(self, segment: LatentSegment, size: tuple[int, int], timings: StageTimings) -> torch.Tensor:
        """Returns the frames of `segment` that belong to the video, cropped to `size`.

        They are `[batch, 3, frames, *size]` in [-1, 1] or, rounded, `[batch, frames, *size, 3]`.
        """
        pieces = []
        rest: LatentSegment | None = segment
        while rest is not None:
            latent, rest = rest.split(1)
            frames = self._decode(latent, timings)[:, :, : latent.kept[0]]
            if self._correction_levels is not None and latent.pixels is not None:
                with stage_timer(timings, "color_correction", self.device):
                    source = latent.pixels[:, :, : latent.kept[0]].to(self.device)
                    frames = wavelet_color_correction(frames, source, self._correction_levels)
            frames = frames[..., : size[0], : size[1]]
            if self._rounds:
                with stage_timer(timings, "output", self.device):
                    frames = to_levels(frames)
            pieces.append(frames)
        return torch.cat(pieces, dim=1 if self._rounds else 2)

    def _decode(self, latent: LatentSegment, timings: StageTimings) -> torch.Tensor:
        with stage_timer(timings, "decoder", self.device):
            state = None if latent.starts_clip else self.state
            latents = latent.latents.to(self.device, self._autoencoder.dtype).contiguous()
            with self._calls(latent.starts_clip):
                output = self._autoencoder.decode(latents, state=state)
            self.state = output.state
        return output.sample


def on_cuda_stream(stream: torch.cuda.Stream | None) -> AbstractContextManager:
    """Runs a block on a CUDA stream, or where it would run anyway."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)
