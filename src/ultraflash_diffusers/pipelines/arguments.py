# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Checks of a stream's arguments, and what those that were left out come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ..models.video_decoder import missing_of_a_decoder
from .argument_kinds import check_type, checked_whole, optional_whole, shown
from .finite import all_finite
from .noise import draw_seeds
from .pipeline_state import PipelineStreamState
from .stages import StepCallback

StepEndCallback = Callable[..., dict[str, Any]]

LONGEST_SIDE = 2**16
"""Pixels: no video format has a longer side."""
MOST_STEPS = 1000
"""Steps: the networks tell so many noise levels apart."""
MOST_VIDEOS = 1024
"""Videos of one prompt: they are made at once."""


def check_components(pipe: DiffusionPipeline) -> None:
    """Checks that the networks of an [`UltraFlashStreamingPipeline`] are there and fit each other.

    Raises:
        ValueError: one is missing, or they do not share a latent space.
    """
    required = ("transformer", "latent_upsampler", "autoencoder", "scheduler")
    missing = [name for name in required if getattr(pipe, name) is None]
    if missing:
        raise ValueError(f"the pipeline was loaded without {', '.join(missing)}")
    check_scheduler(pipe.scheduler)
    if lacking := missing_of_a_decoder(pipe.autoencoder):
        kind = type(pipe.autoencoder).__name__
        raise ValueError(f"`autoencoder` is a {kind} without {', '.join(lacking)}, expected what a VideoDecoder has")
    upsampler = pipe.latent_upsampler.config
    channels = {
        "transformer": pipe.transformer.config.out_channels,
        "latent_upsampler": upsampler.out_channels,
        "latent_upsampler's input": upsampler.in_channels,
        "autoencoder": pipe.autoencoder.config.latent_channels,
    }
    if len(set(channels.values())) > 1:
        raise ValueError(f"the networks do not share a latent space, their latent channels are {channels}")
    if upsampler.temporal_scale != 1:
        raise ValueError(f"`latent_upsampler` has temporal_scale {upsampler.temporal_scale}, expected 1")
    for name in ("group_frames", "kv_cache_blocks"):
        checked_whole(name, pipe.config[name])
    optional_whole("first_group_frames", pipe.config.first_group_frames)


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Checks that the SR steps can be taken with a scheduler.

    Raises:
        ValueError: it is none of flow matching, or takes no sigmas of ours.
    """
    flows = isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or scheduler.config.get("use_flow_sigmas", False)
    if not flows or "sigmas" not in signature(scheduler.set_timesteps).parameters:
        raise ValueError(
            f"`scheduler` is a {type(scheduler).__name__}, expected one of flow matching that takes sigmas, such as "
            "FlowMatchEulerDiscreteScheduler"
        )
    for name in ("use_dynamic_shifting", "stochastic_sampling"):
        if scheduler.config.get(name, False):
            raise ValueError(f"`scheduler` has {name}=True, which a stream cannot serve: set it to False")


def checked_scale(scale: int | None, available: int) -> int:
    """Returns the scale of the latent upsampler, the only one that may be asked for."""
    scale = optional_whole("scale", scale)
    if scale is not None and scale != available:
        raise ValueError(f"`scale` is {shown(scale)}, but this pipeline's latent upsampler has scale {available}")
    return available


def requested_size(
    height: int | None, width: int | None, state: PipelineStreamState | None, default: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Returns the size that was asked for, by default that of the stream that goes on, or `default`."""
    if (height is None) != (width is None):
        raise ValueError(f"`height` is {height} and `width` is {width}: give both or none")
    if height is None or width is None:
        return default if state is None else state.size
    if state is not None and (height, width) != state.size:
        raise ValueError(f"`height` and `width` are {height} and {width}, those of `state` {state.size}")
    return height, width


def stream_seeds(
    generator: torch.Generator | list[torch.Generator] | None, state: PipelineStreamState | None
) -> list[int]:
    """Draws the seeds of a stream; one that goes on keeps its own."""
    if state is None:
        seeds = draw_seeds(generator)
        if not seeds:
            raise ValueError("`generator` is an empty list, expected one for each video of the batch")
        return seeds
    if generator is not None:
        raise ValueError("`generator` and `state` were both given: a resumed stream keeps its seeds")
    return list(state.seeds)


def step_callback(
    pipe: DiffusionPipeline, callback: StepEndCallback | None, names: Sequence[str]
) -> StepCallback | None:
    """Returns what the SR stage calls after each step: a user's callback in diffusers' form, which gets `names`."""
    if callback is None:
        return None
    if not callable(callback):
        raise TypeError(f"`callback_on_step_end` must be callable, got {shown(callback)}")
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names = callback.tensor_inputs
    check_type("callback_on_step_end_tensor_inputs", names, Sequence)
    unknown = [name for name in names if name not in pipe._callback_tensor_inputs]
    if unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` has {shown(unknown)}, expected some of "
            f"{pipe._callback_tensor_inputs}"
        )
    return partial(_call_back, pipe, callback, tuple(names))


def _call_back(
    pipe: DiffusionPipeline,
    callback: StepEndCallback,
    names: tuple[str, ...],
    step: int,
    timestep: torch.Tensor,
    tensors: dict[str, torch.Tensor | None],
) -> dict[str, Any]:
    changed = callback(pipe, step, timestep, {name: tensors[name] for name in names})
    check_type("callback_on_step_end", changed, Mapping, " (what it returns)")
    for name in tensors.keys() & (changed or {}).keys():
        _check_replacement(name, changed[name], tensors[name])
    return dict(changed or {})


def _check_replacement(name: str, new: Any, old: torch.Tensor | None) -> None:
    if new is old:
        return
    if not isinstance(new, torch.Tensor):
        raise TypeError(f"`callback_on_step_end` returned {shown(new)} as `{name}`, expected a torch.Tensor")
    if old is None or new.shape != old.shape:
        expected = "none without guidance" if old is None else f"shape {tuple(old.shape)}"
        raise ValueError(f"`callback_on_step_end` returned `{name}` of shape {tuple(new.shape)}, expected {expected}")
    # on a GPU that would be waited for; there it is found out behind the network
    if new.device.type == "cpu" and not all_finite(new):
        raise ValueError(f"`callback_on_step_end` returned `{name}` with values that are not finite")
