# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The streaming text-to-video generator (Self-Forcing, LongLive): a few latent frames at a time, each in few steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.utils import logging

from ...models.causal_wan_state import CausalWanStreamState
from ...models.causal_wan_transformer import CausalWanTransformer
from ...models.hr_autoencoder import HRAutoencoder
from ...models.video_encoder import VideoEncoder
from ..argument_kinds import check_choice
from ..cache_management import DynamicCacheManagement
from ..execution.calls import GeneratorCalls, Text
from ..execution.compilation import GuardedCalls
from ..execution.devices import execution_device
from ..execution.plan import ExecutionPlan
from ..execution.timing import StageTimings
from ..finite import all_finite
from ..resampling import RESIZE_MODES, ResizeMode, fitted
from .base import FrameNoise, Source, SourceChunk, padded_size
from .frames import frames_to_pixels
from .generator_schedule import GeneratorSchedule
from .generator_stage import TextGeneratorStage, TextGeneratorState

logger = logging.get_logger(__name__)

_UNNOTICED_STRETCH = 0.02  # of the aspect: sides that are no multiples of anything are rounded


class _PromptChange(NamedTuple):
    number: int
    at_frame: int
    text: Text


class TextGeneratorSource(Source):
    """Generates low-resolution latents from text, chunk by chunk, without end if wanted.

    See [`TextGeneratorStage`] for how a chunk is made.

    Args:
        generator ([`CausalWanTransformer`]): the network.
        autoencoder ([`HRAutoencoder`]): the stream's, in whose latent space `generator` works.
        prompt_embeds (`torch.Tensor`): `[batch, up to text_length, text_dim]`.
        noise ([`FrameNoise`]): normal noise by role, `"generator"` for a chunk's start and `"generator_renoise_N"` for
            what is mixed in after its step N (from 0); `"seed_code"` for the seed code of a generator that has one.
        height, width (`int`): pixels as the user sees them; generated at the next larger size that `multiple_of` and
            the generator's own patch divide.
        multiple_of (`int`): pixels, see above.
        num_frames (`int`, *optional*): pixel frames wanted. `None` goes on until closed, which needs a rolling window.
        first_frames (*optional*): the frames that the video starts with, `t n + 1` of them: one picture, or whatever
            [`frames_to_pixels`] takes, of any size.
        resize_mode (`str`, *optional*, defaults to `"default"`): what becomes of `first_frames` of another size, in
            diffusers' words: `"default"` brings them to `height` x `width` as they are, with a warning where that
            changes their aspect; `"crop"` keeps it and cuts what is over at both ends.
        first_latents (`torch.Tensor`, *optional*): the same as normalised latents `[batch or 1, channels, frames,
            height, width]`, at the padded size.
        frames_per_chunk (`int`, *optional*): frames (temporal patches of the generator) of a chunk; by default, as for
            all that follow, the generator's own, which its weights were distilled for.
        first_chunk_frames (`int`, *optional*): those of the first chunk; of all chunks by default where the former is
            given.
        denoising_steps (`Sequence[float]`, *optional*): timesteps before the shift, decreasing.
        first_chunk_denoising_steps (`Sequence[float]`, *optional*): those of the first generated chunk.
        flow_shift (`float`, *optional*): warps them: 5 brings 1000, 750, 500, 250 to 1000, 937.5, 833.3, 625.
        context_noise (`float`, *optional*): timestep, in [0, 1000), of the pass over a finished chunk.
        recompute_on_prompt_change (`bool`, *optional*): whether a new prompt has the cache computed again.
        recompute_sink (`bool`, *optional*): whether that replaces the sink, too, once the window has rolled.
        window_frames (`int`, *optional*): latent frames of the rolling window, sink and current chunk included; by
            default the generator's own, which may be none (a global cache).
        sink_frames (`int`, *optional*): the stream's first latent frames, which stay in the rolling window; by default
            the generator's own.
        cache_management ([`DynamicCacheManagement`], *optional*): fewer steps, skipped context passes.
        state ([`TextGeneratorState`], *optional*): goes on from there; first frames are then not needed again.
        plan ([`ExecutionPlan`], *optional*): of the pipeline.
        encoder ([`VideoEncoder`], *optional*): encodes `first_frames`; the autoencoder by default.

    Raises:
        ValueError: networks, sizes, steps or first frames that do not fit, an endless stream without a window.
    """

    def __init__(
        self,
        generator: CausalWanTransformer,
        autoencoder: HRAutoencoder,
        prompt_embeds: torch.Tensor,
        noise: FrameNoise,
        *,
        height: int,
        width: int,
        multiple_of: int,
        num_frames: int | None = None,
        first_frames: Any = None,
        resize_mode: ResizeMode = "default",
        first_latents: torch.Tensor | None = None,
        frames_per_chunk: int | None = None,
        first_chunk_frames: int | None = None,
        denoising_steps: Sequence[float] | None = None,
        first_chunk_denoising_steps: Sequence[float] | None = None,
        flow_shift: float | None = None,
        context_noise: float | None = None,
        recompute_on_prompt_change: bool | None = None,
        recompute_sink: bool | None = None,
        window_frames: int | None = None,
        sink_frames: int | None = None,
        cache_management: DynamicCacheManagement | None = None,
        state: TextGeneratorState | None = None,
        plan: ExecutionPlan | None = None,
        encoder: VideoEncoder | None = None,
    ) -> None:
        channels, latent_channels = generator.config.in_channels, autoencoder.config.latent_channels
        if channels != latent_channels:
            raise ValueError(f"`generator` makes latents of {channels} channels, `autoencoder` has {latent_channels}")
        self._generator = generator
        self._autoencoder = autoencoder
        self._encoder = encoder or autoencoder
        self._schedule = GeneratorSchedule.of(
            generator,
            frames_per_chunk=frames_per_chunk,
            first_chunk_frames=first_chunk_frames,
            denoising_steps=denoising_steps,
            first_chunk_denoising_steps=first_chunk_denoising_steps,
            flow_shift=flow_shift,
            context_noise=context_noise,
            recompute_on_prompt_change=recompute_on_prompt_change,
            recompute_sink=recompute_sink,
        )
        policy = cache_management or DynamicCacheManagement.off()
        self._calls, self._guard = GeneratorCalls(generator, plan), GuardedCalls()
        self.height, self.width, self.num_frames = height, width, num_frames
        self._text = self._prepared(prompt_embeds)
        self._changes: list[_PromptChange] = []
        self.batch_size = prompt_embeds.shape[0]
        self._shape = (channels, *self._latent_size(height, width, multiple_of))
        trained = generator.config.sample_size
        if trained is not None and tuple(trained) != self._shape[1:]:
            rows, columns = (autoencoder.spatial_compression_ratio * side for side in trained)
            logger.warning(f"the text generator was trained on {rows}x{columns} frames alone, not on {height}x{width}")
        if state is None:
            given = self._given_latents(first_frames, resize_mode, first_latents, prompt_embeds.shape[0])
            # a scorer commits a chunk twice where it is not good enough, a new prompt the whole window
            whole = given is None or self._schedule.frames_until(given.shape[2]) == given.shape[2]
            whole = whole and self._schedule.has_chunks_of(generator)
            single_use = whole and policy.quality_scorer is None and not self._schedule.recomputes
            network = self._new_stream(window_frames, sink_frames, single_use)
            network = replace(network, seed_code=self._seed_code(noise))
            state = TextGeneratorState(network, given=given)
        elif state.network.single_use and policy.quality_scorer is not None:
            raise ValueError("`quality_scorer` commits chunks twice, but `state` is of a stream without one")
        self._state = state.to(self._calls.device)
        self._stage = TextGeneratorStage(
            self._calls, autoencoder, self._guard, noise, self._schedule, policy, self._shape, num_frames
        )

    def state(self) -> TextGeneratorState:
        return self._state

    def change_prompt(self, number: int, prompt_embeds: torch.Tensor, at_frame: int = 0) -> None:
        text = self._prepared(prompt_embeds)
        if number <= self._state.prompt_number:
            self._text = text
        else:
            self._changes.append(_PromptChange(number, at_frame, text))

    def _prepared(self, prompt_embeds: torch.Tensor) -> Text:
        batch = self.batch_size or prompt_embeds.shape[0]
        expected = (batch, self._generator.config.text_dim)
        if prompt_embeds.ndim != 3 or (prompt_embeds.shape[0], prompt_embeds.shape[2]) != expected:
            raise ValueError(
                f"`prompt_embeds` must have shape [{batch}, length, {expected[1]}], got {tuple(prompt_embeds.shape)}"
            )
        return self._calls.prepare_text(prompt_embeds)

    def _chunks(self) -> Iterator[SourceChunk]:
        while not self._stage.is_done(self._state):
            timings = StageTimings()
            self._take_changes(timings)
            chunk, self._state = self._stage(self._text, self._state)
            timings.merge(chunk.timings)
            yield replace(chunk, timings=timings)

    def _take_changes(self, timings: StageTimings) -> None:
        """Goes on to the newest prompt that is due."""
        due = [change for change in self._changes if change.at_frame <= self._state.frames]
        if due:
            self._changes = [change for change in self._changes if change.at_frame > self._state.frames]
            self._text = due[-1].text
            self._state = self._stage.turn_to(self._text, self._state, due[-1].number, timings)

    def _latent_size(self, height: int, width: int, multiple_of: int) -> tuple[int, int]:
        ratio = self._autoencoder.spatial_compression_ratio
        _, patch_height, patch_width = self._generator.config.patch_size
        unit = math.lcm(multiple_of, ratio * patch_height, ratio * patch_width)
        height, width = padded_size(height, width, unit)
        return height // ratio, width // ratio

    def _new_stream(
        self, window_frames: int | None, sink_frames: int | None, single_use: bool
    ) -> CausalWanStreamState:
        """Makes the network's state: a rolling cache where there is a window, else one that holds the whole video."""
        config = self._generator.config
        window = window_frames or config.window_frames
        sink = config.sink_frames if sink_frames is None else sink_frames
        if window is not None:
            patch, schedule = config.patch_size[0], self._schedule
            chunk = max(schedule.chunk_frames, schedule.first_chunk_frames) // patch
            if not 0 <= sink <= window - chunk:
                raise ValueError(
                    f"`window_frames` {window} must hold `sink_frames` {sink} and a chunk of {chunk} frames: at least "
                    f"{sink + chunk}"
                )
            if window_frames is not None and self.num_frames is not None:  # longer than the video nothing is kept
                window = min(window, max(self._latent_frames(self.num_frames), config.frames_per_chunk))
            return replace(
                self._generator.new_stream(),
                cache_frames=window,
                sink_frames=min(sink, window - config.frames_per_chunk),
                rolling=True,
                single_use=single_use,
                room_frames=config.frames_per_chunk if self._calls.plan.chunk_room else 0,
            )
        if sink:
            raise ValueError(f"`sink_frames` is {sink}, but there is no `window_frames` that rolls")
        if self.num_frames is None:
            raise ValueError(
                "`num_frames` is None, but the generator has a global cache, which holds a whole video: set "
                "`window_frames` (LongLive: 12, with `sink_frames` 3) for a stream without end"
            )
        return self._generator.new_stream(cache_frames=self._latent_frames(self.num_frames))

    def _latent_frames(self, num_frames: int) -> int:
        """How many frames, in patches, a whole video has at most."""
        ratio = self._autoencoder.temporal_compression_ratio
        latent_frames = self._schedule.frames_until(-(-(num_frames - 1) // ratio) + 1)
        # one chunk more, since given first frames need not fill whole chunks
        return (latent_frames + self._schedule.chunk_frames) // self._generator.config.patch_size[0]

    def _seed_code(self, noise: FrameNoise) -> torch.Tensor | None:
        """All that the stream's seed decides beside the text, `[batch, seed_code_dim]`."""
        size = self._generator.config.seed_code_dim
        return noise("seed_code", 0, 1, (size, 1, 1)).flatten(1) if size else None

    def _given_latents(
        self, first_frames: Any, resize_mode: ResizeMode, first_latents: torch.Tensor | None, batch_size: int
    ) -> torch.Tensor | None:
        check_choice("resize_mode", resize_mode, RESIZE_MODES)
        if first_frames is not None and first_latents is not None:
            raise ValueError("`first_frames` and `first_latents` were both given: pass one of them")
        if not (self._generator.config.reads_latents or first_frames is first_latents):
            raise ValueError("`first_frames` or `first_latents` was given, but the generator does not read latents")
        if first_frames is not None:
            first_latents = self._encoded(frames_to_pixels(first_frames, "first_frames"), resize_mode)
        if first_latents is None:
            return None
        expected = (batch_size, *self._shape)
        frames = first_latents.shape[2] if first_latents.ndim == 5 else 0
        if frames and first_latents.shape[0] == 1:
            first_latents = first_latents.expand(batch_size, -1, -1, -1, -1)
        if not frames or (first_latents.shape[0], first_latents.shape[1], *first_latents.shape[3:]) != expected:
            raise ValueError(
                f"`first_latents` of shape {tuple(first_latents.shape)} do not fit batch, channels, height and width "
                f"{expected}"
            )
        if not all_finite(first_latents):
            raise ValueError("`first_latents` holds values that are not finite")
        patch, ratio = self._generator.config.patch_size[0], self._autoencoder.temporal_compression_ratio
        if frames % patch:
            raise ValueError(
                f"`first_{'latents' if first_frames is None else 'frames'}` come to {frames} latent frames, but this "
                f"generator works on {patch} at a time, which stand for {ratio * (patch - 1) + 1} frames"
            )
        return first_latents.to(execution_device(self._generator), torch.float32)

    @torch.no_grad()
    def _encoded(self, pixels: torch.Tensor, resize_mode: ResizeMode) -> torch.Tensor:
        frames, height, width = pixels.shape[2:]
        ratio = self._autoencoder.temporal_compression_ratio
        if not self._encoder.has_encoder:
            raise ValueError(
                "`first_frames` cannot be encoded: `autoencoder` is a decoder alone, and no `encoder` there"
            )
        if (frames - 1) % ratio:
            raise ValueError(f"`first_frames` are {frames}, expected {ratio} n + 1 of them")
        wanted = (self.height or height, self.width or width)
        if resize_mode == "default" and abs(height * wanted[1] / (width * wanted[0]) - 1) > _UNNOTICED_STRETCH:
            logger.warning(
                f"`first_frames` of {height}x{width} are stretched to {wanted[0]}x{wanted[1]}; resize_mode='crop' "
                "keeps their aspect"
            )
        pixels = fitted(pixels, *wanted, resize_mode)
        spatial = self._autoencoder.spatial_compression_ratio
        bottom, right = self._shape[1] * spatial - wanted[0], self._shape[2] * spatial - wanted[1]
        pixels = pixels.to(execution_device(self._encoder), self._encoder.dtype)
        with self._guard("first_frames"):
            return self._encoder.encode(F.pad(pixels, (0, right, 0, bottom, 0, 0), mode="replicate")).latents
