# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Input checks that all networks share: each names the argument, what it was and what was expected."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from numbers import Real

import torch


def check_video_tensor(name: str, value: torch.Tensor, channels: int, dtype: torch.dtype) -> None:
    """Checks that `value` is a `[batch, channels, frames, height, width]` tensor of the network's dtype.

    Raises:
        TypeError: `value` is no tensor.
        ValueError: wrong rank, channel count, an empty dimension, or another dtype than the network's weights.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}")
    shape = tuple(value.shape)
    if value.ndim != 5:
        raise ValueError(f"`{name}` must have shape [batch, {channels}, frames, height, width], got {shape}")
    if value.shape[1] != channels:
        raise ValueError(f"`{name}` must have {channels} channels, got {value.shape[1]} (shape {shape})")
    if 0 in shape:
        raise ValueError(f"`{name}` is empty: shape {shape}")
    if value.dtype != dtype:
        raise ValueError(f"`{name}` has dtype {value.dtype}, the network has {dtype}")


def check_divisible(name: str, value: torch.Tensor, divisor: int, why: str) -> None:
    """Checks that the height and width of a video tensor are multiples of `divisor`."""
    height, width = value.shape[-2:]
    if height % divisor or width % divisor:
        raise ValueError(
            f"`{name}` has height {height} and width {width}; both must be multiples of {divisor} ({why})"
        )


def check_denoising_steps(name: str, steps: Sequence[float]) -> None:
    """Checks that `steps` are timesteps that decrease inside (0, 1000].

    Raises:
        ValueError: they are no numbers, there are none, or they leave the range or do not decrease.
    """
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not all(isinstance(step, Real) for step in steps):
        raise ValueError(f"`{name}` must be a list of timesteps, got {steps!r}")
    decrease = all(before > after for before, after in itertools.pairwise(steps))
    if not steps or not decrease or not 0 < steps[-1] <= steps[0] <= 1000:
        raise ValueError(f"`{name}` must decrease inside (0, 1000], got {tuple(steps)}")
