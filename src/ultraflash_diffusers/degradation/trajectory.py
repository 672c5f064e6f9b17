# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How a parameter changes over the frames of a clip: slowly, so that nothing flickers by accident."""

from __future__ import annotations

import numpy as np

SINUSOIDS = 3


def smooth_trajectory(
    rng: np.random.Generator, frames: int, low: float = -1.0, high: float = 1.0, count: int = 1, period: float = 24.0
) -> np.ndarray:
    """Draws smooth curves in a range: sums of three slow sinusoids of random rates, phases and amplitudes.

    Args:
        rng (`np.random.Generator`): draws the sinusoids.
        frames (`int`): length of the curves.
        low (`float`, *optional*, defaults to -1.0), high (`float`, *optional*, defaults to 1.0): what they stay in.
        count (`int`, *optional*, defaults to 1): how many, independent of each other.
        period (`float`, *optional*, defaults to 24.0): frames of the fastest sinusoid's cycle; from one frame to the
            next a curve moves by at most `pi / period` of its range.

    Returns:
        `np.ndarray`: float64 `[frames]` for one curve, else `[count, frames]`.
    """
    rates = rng.uniform(0, 1 / period, (count, SINUSOIDS, 1))
    phases = rng.uniform(0, 2 * np.pi, (count, SINUSOIDS, 1))
    amplitudes = rng.uniform(0, 1, (count, SINUSOIDS, 1))
    waves = amplitudes / amplitudes.sum(axis=1, keepdims=True) * np.sin(2 * np.pi * rates * np.arange(frames) + phases)
    curves = low + (high - low) * (1 + waves.sum(axis=1)) / 2
    return curves[0] if count == 1 else curves
