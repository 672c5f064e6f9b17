# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Rewards by name, as commands and configurations ask for them."""

from __future__ import annotations

from collections.abc import Sequence

from .pyiqa_reward import PYIQA_METRICS, PyIQAReward
from .quality_scorer import QualityScorer, packaged_quality_scorer
from .reward import HybridReward, Reward

PACKAGED = "packaged"


def load_reward(names: str | Sequence[str], weights: Sequence[float] | None = None) -> Reward:
    """Loads a reward, or the weighted mean of several, on the CPU and frozen.

    Args:
        names (`str` or sequence of `str`): `"packaged"` (the [`QualityScorer`] that ships), `"clip_iqa_plus"`,
            `"musiq"`, `"laion_aesthetic"` (see [`PyIQAReward`]), or a folder or Hub repository of a [`QualityScorer`].
        weights (sequence of `float`, *optional*): one a name; equal by default. Only their ratios count.

    Raises:
        ValueError: no names, a name twice, or not one weight a name.
        ImportError, RuntimeError: see [`PyIQAReward`].
        OSError: no such folder or repository.
    """
    if isinstance(names, str):
        names = [names]
    if len(set(names)) != len(names):
        raise ValueError(f"`names` has a name twice: {list(names)}")
    if weights is not None and len(weights) != len(names):
        raise ValueError(f"`weights` must be {len(names)} numbers, one a name, got {list(weights)}")
    if len(names) == 1:
        return _load(names[0])
    by_name = None if weights is None else dict(zip(names, weights, strict=True))
    return HybridReward({name: _load(name) for name in names}, by_name)


def _load(name: str) -> Reward:
    if name == PACKAGED:
        return packaged_quality_scorer()
    if name in PYIQA_METRICS:
        return PyIQAReward(name)
    return QualityScorer.from_pretrained(name).eval().requires_grad_(False)
