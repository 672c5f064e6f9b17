# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Clips and parameters of transforms: the checks, and how a parameter is drawn."""

from __future__ import annotations

import numpy as np

# a fixed value, or the bounds (both included) between which it is drawn evenly
Range = float | tuple[float, float]


def check_range(name: str, value: Range, lowest: float, highest: float = float("inf")) -> None:
    """Checks that a parameter lies in `[lowest, highest]` and that its bounds are in order.

    Raises:
        ValueError: it does not.
    """
    low, high = bounds(value)
    if not lowest <= low <= high <= highest:
        raise ValueError(f"`{name}` must be a value or an ordered pair in [{lowest}, {highest}], got {value!r}")


def draw(rng: np.random.Generator, value: Range) -> float:
    """Draws a parameter evenly from its range."""
    return rng.uniform(*bounds(value))


def draw_integer(rng: np.random.Generator, value: Range) -> int:
    """Draws a whole-numbered parameter evenly from its range, both bounds included."""
    low, high = bounds(value)
    return int(rng.integers(int(low), int(high), endpoint=True))


def check_odd(name: str, value: Range) -> None:
    """Checks that there is an odd number in a range.

    Raises:
        ValueError: there is none.
    """
    low, high = bounds(value)
    if int(low) // 2 > (int(high) - 1) // 2:
        raise ValueError(f"`{name}` must be an odd number or a pair with one between its bounds, got {value!r}")


def draw_odd(rng: np.random.Generator, value: Range) -> int:
    """Draws an odd parameter evenly from its range, both bounds included."""
    low, high = bounds(value)
    return 2 * int(rng.integers(int(low) // 2, (int(high) - 1) // 2, endpoint=True)) + 1


def check_clip(frames: np.ndarray) -> None:
    """Checks that `frames` is uint8 `[frames, height, width, 3]` and not empty.

    Raises:
        ValueError: it is not.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"`frames` must be uint8 [frames, height, width, 3] and not empty, got {frames.dtype} {frames.shape}"
        )


def bounds(value: Range) -> tuple[float, float]:
    """Returns the lower and the upper bound, which are equal for a fixed value."""
    return (value[0], value[1]) if isinstance(value, tuple) else (value, value)
