# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Checks of a stream's arguments, and what those that were left out come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from numbers import Integral
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from .noise import draw_seeds
from .pipeline_state import PipelineStreamState
from .stages import StepCallback

StepEndCallback = Callable[..., dict[str, Any]]


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


def check_positive(**numbers: int | None) -> None:
    """Checks that numbers, by the names of their arguments, are positive integers or `None`."""
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, Integral) or value < 1):
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}")


def plain_integer(value: Any) -> Any:
    """Returns NumPy's integers, which users compute with, as Python's; all else as it is."""
    return int(value) if isinstance(value, Integral) else value


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Checks that the argument `name` is one of its choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")


def checked_scale(scale: int | None, available: int) -> int:
    """Returns the scale of the latent upsampler, the only one that may be asked for."""
    if scale is not None and scale != available:
        raise ValueError(f"`scale` is {scale}, but this pipeline's latent upsampler has scale {available}")
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
        return draw_seeds(generator)
    if generator is not None:
        raise ValueError("`generator` and `state` were both given: a resumed stream keeps its seeds")
    return list(state.seeds)


def step_callback(
    pipe: DiffusionPipeline, callback: StepEndCallback | None, names: Sequence[str]
) -> StepCallback | None:
    """Returns what the SR stage calls after each step: a user's callback in diffusers' form, which gets `names`."""
    if callback is None:
        return None
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names = callback.tensor_inputs
    unknown = [name for name in names if name not in pipe._callback_tensor_inputs]
    if unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` has {unknown}, expected some of {pipe._callback_tensor_inputs}"
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
    return callback(pipe, step, timestep, {name: tensors[name] for name in names}) or {}
