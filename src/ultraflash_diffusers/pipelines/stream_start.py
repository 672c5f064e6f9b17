# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From a call's settings to a running stream: its source, its stages and how they run."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..models.hr_autoencoder import HRAutoencoder
from ..models.ultraflash_sr_transformer import UltraFlashSRTransformer
from .encoding import video_encoder
from .execution.calls import SRCalls
from .execution.compilation import GuardedCalls
from .execution.devices import execution_device
from .execution.workers import Worker, borrow_worker
from .group_maker import GroupMaker, PromptTurn, StreamSettings
from .noise import SeededFrameNoise
from .pipeline_output import postprocess
from .pipeline_state import PipelineStreamState, PromptChange
from .segments import Regrouper
from .sources import Source, make_source
from .stages import DecodeStage, SRStage, StepCallback, UpsampleStage
from .video_stream import StreamHost, VideoStream


def size_multiple(transformer: UltraFlashSRTransformer, autoencoder: HRAutoencoder, scale: int) -> int:
    """Low-resolution pixels of which height and width must be multiples for every network to divide them."""
    _, *patch = transformer.config.patch_size
    latents = math.lcm(*(side // math.gcd(side, scale) for side in patch))
    return latents * autoencoder.spatial_compression_ratio


def starting_state(
    state: PipelineStreamState | None, seeds: list[int], prompt_embeds: list[torch.Tensor], settings: StreamSettings
) -> PipelineStreamState:
    """Makes the state that a stream starts from: a copy of the one given, which is written into.

    Another prompt than it had last is a change of the prompt.

    Raises:
        ValueError: the stream of `state` was another one than `settings` ask for.
    """
    if state is None:
        return PipelineStreamState(seeds, prompt_embeds, group_frames=settings.sr.group_frames)
    _check_fits(state, settings)
    newest, changes = state.newest_prompt, state.prompt_changes
    if len(newest.prompt_embeds) != len(prompt_embeds) or not all(map(_equal, newest.prompt_embeds, prompt_embeds)):
        changes = [*changes, PromptChange(newest.number + 1, 0, prompt_embeds)]
    return replace(state, prompt_changes=changes).clone()


def _check_fits(state: PipelineStreamState, settings: StreamSettings) -> None:
    groups, blocks = settings.sr.group_frames, settings.sr.kv_cache_blocks
    if state.group_frames not in (None, groups):
        raise ValueError(
            f"`state` is of a stream with `group_frames` {state.group_frames}, this pipeline has {groups}"
        )
    for each in state.sr or []:
        if each.allocated_blocks != blocks:
            raise ValueError(
                f"`state` is of a stream with `kv_cache_blocks` {each.allocated_blocks}, this pipeline has {blocks}"
            )
    if settings.num_frames is not None and settings.num_frames < state.frames_done:
        raise ValueError(
            f"`num_frames` is {settings.num_frames}, but the stream of `state` has made {state.frames_done}: it "
            "counts the whole video"
        )


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other.to(one))


def open_source(
    pipe: DiffusionPipeline,
    source: Any,
    prompt: str | list[str] | None,
    settings: StreamSettings,
    state: PipelineStreamState,
    source_kwargs: dict[str, Any] | None,
) -> Source:
    """Makes the source that the user asked for, see [`make_source`], of the size and the seeds of a stream."""
    source_kwargs = dict(source_kwargs or {})
    height, width = settings.size or (None, None)
    if isinstance(source, DiffusionPipeline) and "generator" in inspect.signature(source.__call__).parameters:
        # from our seeds, so that running it again, for a saved stream, gives the same video
        generators = [torch.Generator().manual_seed(seed) for seed in state.seeds]
        source_kwargs.setdefault("generator", generators[0] if len(generators) == 1 else generators)
    prompt_embeds = state.prompt_embeds[0]
    return make_source(
        source,
        autoencoder=pipe.autoencoder,
        encoder=video_encoder(pipe),
        multiple_of=size_multiple(pipe.transformer, pipe.autoencoder, settings.scale),
        latent_frames=settings.sr.group_frames,
        generator=pipe.generator_transformer,
        plan=pipe.execution_plan,
        prompt=prompt,
        prompt_embeds=prompt_embeds,
        noise=SeededFrameNoise(state.seeds, prompt_embeds.shape[0]) if source is None else None,
        height=None if height is None else -(-height // settings.scale),
        width=None if width is None else -(-width // settings.scale),
        num_frames=settings.num_frames,
        cache_management=settings.cache_management,
        state=state.source,
        source_kwargs=source_kwargs,
    )


def start_stream(
    pipe: DiffusionPipeline,
    source: Source,
    settings: StreamSettings,
    state: PipelineStreamState,
    on_step: StepCallback | None,
) -> VideoStream:
    """Makes a stream of its own stages on the networks of an [`UltraFlashStreamingPipeline`].

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): it.
        source ([`Source`]): from [`open_source`].
        settings ([`StreamSettings`]): see there.
        state ([`PipelineStreamState`]): to start from, which the stream writes into.
        on_step (`Callable`, *optional*): see [`SRStage`].

    Raises:
        ValueError: `state` is of a stream that ran otherwise.
    """
    calls = SRCalls(pipe.transformer, pipe.execution_plan)
    upsample = UpsampleStage(pipe.latent_upsampler, GuardedCalls())
    refine = SRStage(calls, pipe.scheduler, settings.sr, on_step)
    refine.check_states(state.sr)
    rounds = settings.output_type == "uint8"
    decode = DecodeStage(pipe.autoencoder, GuardedCalls(), settings.correction_levels, settings.detail, rounds)
    state = _on_devices(state, upsample, refine, decode)
    overlaps = settings.output_type != "latent" and pipe.can_overlap_decoding
    worker = borrow_worker(refine.device) if overlaps else None
    making_stream, decoding_stream = _cuda_streams(worker, decode.device)
    ratio = pipe.autoencoder.temporal_compression_ratio
    regrouper = Regrouper(source, settings.sr.group_frames, ratio, pipe.config.first_group_frames)
    number = state.prompt_number
    maker = GroupMaker(regrouper, upsample, refine, calls, decode.device, settings, number, making_stream)
    turns = [PromptTurn(number, 0, maker.prepare(state.prompt_embeds))]
    turns += [
        PromptTurn(each.number, each.at_frame, maker.prepare(each.prompt_embeds)) for each in state.prompt_changes
    ]
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    host = StreamHost(
        encode_prompt=pipe.encode_prompt,
        postprocess=partial(postprocess, output_type=settings.output_type, processor=pipe.video_processor),
        progress_bar=pipe.progress_bar(total=settings.num_frames, iterable=None if settings.num_frames else iter(())),
        on_close=pipe.maybe_free_model_hooks,
        devices={execution_device(network) for network in networks},
        interrupted=lambda: pipe.interrupt,
    )
    return VideoStream(source, maker, decode, turns, settings, state, host, worker, decoding_stream)


def _on_devices(
    state: PipelineStreamState, upsample: UpsampleStage, refine: SRStage, decode: DecodeStage
) -> PipelineStreamState:
    """Brings what a saved stream carried to where it is needed."""
    return replace(
        state,
        upsampler=None if state.upsampler is None else state.upsampler.to(upsample.device),
        sr=None if state.sr is None else [each.to(refine.device) for each in state.sr],
        decoder=None if state.decoder is None else state.decoder.to(decode.device),
        detail=None if state.detail is None else state.detail.to(decode.device),
        undecoded=[segment.to(decode.device) for segment in state.undecoded],
    )


def _cuda_streams(
    worker: Worker | None, decoding: torch.device
) -> tuple[torch.cuda.Stream | None, torch.cuda.Stream | None]:
    """The CUDA streams that groups are made and decoded on: two, where both are done by one GPU."""
    if worker is None or worker.device.type != "cuda":
        return None, None
    current = torch.cuda.current_stream(worker.device)
    if worker.decoding_stream is None or decoding != worker.device:
        return current, None
    worker.decoding_stream.wait_stream(current)
    return current, worker.decoding_stream
