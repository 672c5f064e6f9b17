# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the configuration of a [`CausalWanTransformer`] may be, and what its calls may be given."""

from __future__ import annotations

import math
from typing import Any

import torch

from .checks import check_denoising_steps
from .state_chain import shapes_are_static


def check_causal_wan_config(config: Any) -> None:
    """Checks that a configuration makes sense.

    Args:
        config (`FrozenDict`): of a [`CausalWanTransformer`], with all its arguments.

    Raises:
        ValueError: a setting that there is not, or two that contradict each other.
    """
    if config.prediction_type not in ("flow", "sample"):
        raise ValueError(f"`prediction_type` must be 'flow' or 'sample', got {config.prediction_type!r}")
    _check_frames(config)
    check_denoising_steps("denoising_steps", config.denoising_steps)
    if config.first_chunk_denoising_steps is not None:
        check_denoising_steps("first_chunk_denoising_steps", config.first_chunk_denoising_steps)
    if not (math.isfinite(config.flow_shift) and config.flow_shift > 0):
        raise ValueError(f"`flow_shift` must be positive and finite, got {config.flow_shift}")
    if not 0 <= config.context_noise < 1000:
        raise ValueError(f"`context_noise` must be a timestep in [0, 1000), got {config.context_noise}")
    _check_seed_code(config)
    _check_head(config)


def _check_frames(config: Any) -> None:
    frames, sink, window = config.frames_per_chunk, config.sink_frames, config.window_frames
    if frames < 1:
        raise ValueError(f"`frames_per_chunk` must be positive, got {frames}")
    if sink < 0 or (window is None and sink):
        raise ValueError(f"`sink_frames` must be 0 without `window_frames` and never negative, got {sink}")
    if window is not None and window - sink < frames:
        raise ValueError(
            f"`window_frames` must hold `sink_frames` {sink} and a chunk of `frames_per_chunk` {frames}, got {window}"
        )
    first = config.first_chunk_frames
    if first is None:
        return
    if first < 1:
        raise ValueError(f"`first_chunk_frames` must be positive or None, got {first}")
    if window is not None and window - sink < first:
        raise ValueError(
            f"`window_frames` must hold `sink_frames` {sink} and a first chunk of `first_chunk_frames` {first}, got "
            f"{window}"
        )


def _check_seed_code(config: Any) -> None:
    if config.seed_code_dim < 0 or config.seed_code_dim == 1:
        raise ValueError(f"`seed_code_dim` must be 0 or at least 2, got {config.seed_code_dim}")
    if not (math.isfinite(config.seed_code_period) and config.seed_code_period > 0):
        raise ValueError(f"`seed_code_period` must be positive and finite, got {config.seed_code_period}")
    for name in ("seed_code_blocks", "seed_code_harmonics"):
        if getattr(config, name) < 0:
            raise ValueError(f"`{name}` must not be negative, got {getattr(config, name)}")
    if not config.reads_latents and not config.seed_code_dim:
        raise ValueError("`reads_latents` is False, but without `seed_code_dim` nothing else tells videos apart")


def _check_head(config: Any) -> None:
    if config.head_channels < 0:
        raise ValueError(f"`head_channels` must be 0 or positive, got {config.head_channels}")
    if not config.head_channels:
        return
    if not config.seed_code_dim or config.sample_size is None or config.patch_size[0] != 1:
        raise ValueError(
            f"`head_channels` {config.head_channels} needs `seed_code_dim`, `sample_size` and `patch_size` (1, ...), "
            f"got {config.seed_code_dim}, {config.sample_size} and {tuple(config.patch_size)}"
        )
    for name in ("head_layers", "head_moments", "head_pixels", "head_ridges", "head_patterns"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be positive, got {getattr(config, name)}")
    sides = tuple(config.head_sprites)
    if not sides or any(side < 8 or side & (side - 1) for side in sides):
        raise ValueError(f"`head_sprites` must be powers of 2 from 8 on, got {sides}")
    if not 0 <= config.head_far_sprites <= len(sides):
        raise ValueError(
            f"`head_far_sprites` must be from 0 to the number of `head_sprites`, got {config.head_far_sprites}"
        )


def check_seed_code(size: int, seed_code: torch.Tensor | None, batch: int) -> None:
    """Checks what a call is given against `seed_code_dim`.

    Raises:
        ValueError: a seed code where there is none, none where there is one, or one of another shape.
    """
    if size == 0:
        if seed_code is not None:
            raise ValueError("`seed_code` was given, but the network has none (`seed_code_dim` is 0)")
    elif seed_code is None or list(seed_code.shape) != [batch, size]:
        found = None if seed_code is None else list(seed_code.shape)
        raise ValueError(f"`seed_code` must have shape {[batch, size]}, got {found}")


def check_room(state: Any, frames: int) -> None:
    """Checks that a stream's cache takes `frames` more.

    Args:
        state (`CausalWanStreamState`): of the stream.
        frames (`int`): temporal patches of the call.

    Raises:
        ValueError: they are more than the rolling window or the global cache holds.
    """
    if state.rolling:
        room = state.cache_frames - state.sink_frames
        # an empty cache, of a stream that begins or was rewound, takes what will be its sink in the same call; whether
        # it is one is asked only where it matters, since compiled code would depend on it
        if frames > room and state.cache is not None and state.cache.committed == 0:
            room = state.cache_frames
        if frames > room:
            raise ValueError(f"`hidden_states` has {frames} frames, more than the {room} of the rolling window")
        return
    if shapes_are_static():
        return
    known = 0 if state.cache is None else state.cache.committed
    done = int(state.position) if known is None else known
    if done + frames > state.cache_frames:
        raise ValueError(
            f"`hidden_states` has {frames} frames after {done} committed ones, but the global cache "
            f"holds `cache_frames` {state.cache_frames}: pass more to `new_stream`, or use a network that has "
            "`window_frames`"
        )


def check_single_use(config: Any, frames: int, gradient_checkpointing: bool) -> None:
    """Checks a call with a state for a single use.

    Args:
        config (`FrozenDict`): of the network.
        frames (`int`): temporal patches of the call.
        gradient_checkpointing (`bool`): whether the network recomputes its layers for gradients.

    Raises:
        ValueError: no whole chunk, or layers that would run twice.
    """
    if frames not in (config.frames_per_chunk, config.first_chunk_frames):
        raise ValueError(
            f"`hidden_states` has {frames} frames, a state for a single use takes chunks of `frames_per_chunk` "
            f"{config.frames_per_chunk}"
        )
    if gradient_checkpointing and torch.is_grad_enabled():
        raise ValueError("`state` is for a single use, but gradient checkpointing runs the layers again")
