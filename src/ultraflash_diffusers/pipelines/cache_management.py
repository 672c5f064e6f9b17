# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Dynamic cache management (paper, section of this name): three ways to spend less on a stream that runs well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F

from ..pixels import to_unit
from .argument_kinds import checked_number, checked_whole, optional_whole, shown
from .finite import all_finite

SCORED_SIZE = 224
"""Height and width, in pixels, of the frames that a quality scorer sees."""


@dataclass(frozen=True)
class DynamicCacheManagement:
    """The paper's dynamic cache management as one policy; each part can be switched off.

    Without a policy (`None`, the default of the pipeline) a stream runs as the published short-video script does: all
    generator steps, a context pass for each chunk, the whole SR cache. A policy object switches on what the published
    long-video script uses.

    (ii) is told in two ways: the paper looks at the *previous* chunk's score, the published script at that of the
    chunk itself. This is the latter, the fresher of the two, and it costs no additional pass: the keys and values of
    the last denoising step are always computed, so they are kept if the score is good, and only otherwise the context
    pass runs and replaces them. The videos of a batch share their passes, so the worst of them decides.

    Args:
        first_chunk_steps (`int`, *optional*): part (i), generator steps of the first chunk. `None` means all.
        later_chunk_steps (`int`, *optional*, defaults to 3): part (i), generator steps of every later chunk. `None`
            means all, which switches the part off.
        quality_scorer (`Callable`, *optional*): part (ii), takes frames `[batch, 3, 224, 224]` in [0, 1] and returns
            one score for each, `[batch]`, higher is better (CLIP-IQA+ in the paper). `None` switches the part off.
        quality_threshold (`float`, *optional*, defaults to 0.62): part (ii), the context pass is skipped where the
            score is above this. 0.62 is the published script's value, the paper says 0.65.
        sr_warmup_groups (`int`, *optional*, defaults to 2): part (iii), so many groups after the first one keep the
            whole SR cache before it shrinks by one block a group. `None` switches the part off.
        sr_min_blocks (`int`, *optional*, defaults to 1): part (iii), the smallest SR cache, in temporal blocks.

    Raises:
        TypeError, ValueError: a step or block count below 1, a negative warm-up, a threshold that is not finite, a
            scorer that cannot be called.
    """

    first_chunk_steps: int | None = None
    later_chunk_steps: int | None = 3
    quality_scorer: Callable[[torch.Tensor], torch.Tensor] | None = None
    quality_threshold: float = 0.62
    sr_warmup_groups: int | None = 2
    sr_min_blocks: int = 1

    @classmethod
    def off(cls) -> Self:
        """Returns the policy that changes nothing."""
        return cls(later_chunk_steps=None, sr_warmup_groups=None)

    def __post_init__(self) -> None:
        least = {"first_chunk_steps": 1, "later_chunk_steps": 1, "sr_warmup_groups": 0}
        numbers: dict[str, Any] = {name: optional_whole(name, getattr(self, name), least[name]) for name in least}
        numbers["sr_min_blocks"] = checked_whole("sr_min_blocks", self.sr_min_blocks)
        numbers["quality_threshold"] = checked_number("quality_threshold", self.quality_threshold)
        for name, number in numbers.items():
            object.__setattr__(self, name, number)
        if self.quality_scorer is not None and not callable(self.quality_scorer):
            raise TypeError(f"`quality_scorer` must be callable, got {shown(self.quality_scorer)}")

    def generator_steps(self, chunk: int, num_steps: int) -> list[int]:
        """Part (i): which of the generator's `num_steps` denoising steps chunk number `chunk` (from 0) runs.

        Raises:
            ValueError: the policy asks for more steps than the generator has.
        """
        name = "first_chunk_steps" if chunk == 0 else "later_chunk_steps"
        count = getattr(self, name)
        if count is None:
            count = num_steps
        if count > num_steps:
            raise ValueError(f"`{name}` is {count}, but the generator has {num_steps} steps")
        return [round(index) for index in torch.linspace(0, num_steps - 1, count, dtype=torch.float64).tolist()]

    @torch.no_grad()
    def quality(self, frames: torch.Tensor) -> float:
        """Part (ii): the lowest score among `frames`, `[batch, 3, height, width]` in [-1, 1].

        Raises:
            ValueError: there is no scorer, or it did not return one finite score for each frame.
        """
        if self.quality_scorer is None:
            raise ValueError("`quality_scorer` is None: there is nothing to score frames with")
        frames = to_unit(frames.float()).clamp(0, 1)
        frames = F.interpolate(frames, size=(SCORED_SIZE, SCORED_SIZE), mode="bilinear", antialias=True)
        scores = self.quality_scorer(frames)
        is_tensor = isinstance(scores, torch.Tensor)
        if not is_tensor or scores.shape != frames.shape[:1] or not all_finite(scores):
            raise ValueError(
                f"`quality_scorer` must return one finite score for each of the {len(frames)} frames, got "
                f"{shown(scores)}"
            )
        return scores.min().item()

    def skips_context_pass(self, quality: float) -> bool:
        """Part (ii): whether a chunk of this quality keeps the keys and values of its last denoising step."""
        return quality > self.quality_threshold

    def sr_kv_cache_blocks(self, group: int, kv_cache_blocks: int) -> int:
        """Part (iii): temporal blocks of the SR cache that group number `group` (from 0) attends to."""
        if self.sr_warmup_groups is None:
            return kv_cache_blocks
        return min(kv_cache_blocks, max(self.sr_min_blocks, kv_cache_blocks - max(0, group - self.sr_warmup_groups)))
