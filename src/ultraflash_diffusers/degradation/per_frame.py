# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Transforms of each frame by itself: a frame goes through all of a row of them before the next one does.

It stays near the processor meanwhile, and no clip is written between two of them, of which clips of full size cost a
fifth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeGuard

import numpy as np

from .ranges import check_clip

# of a frame, uint8 [height, width, 3], and its number in the clip; what it is given stays as it is
FrameFunction = Callable[[np.ndarray, int], np.ndarray]


class FrameTransform:
    """A transform whose choices depend on the clip's size alone, and which leaves the size as it is."""

    @property
    def per_frame(self) -> bool:
        """Whether it is one: made of others, it may not be."""
        return True

    def drawn(self, shape: tuple[int, int, int], rng: np.random.Generator) -> list[FrameFunction]:
        """Makes all choices for a clip.

        Args:
            shape (`tuple[int, int, int]`): its frames, height and width.
            rng (`np.random.Generator`): what they are drawn from.

        Returns:
            `list`: what each frame goes through, one after the other.
        """
        raise NotImplementedError

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        count, height, width = frames.shape[:3]
        return each_frame(frames, self.drawn((count, height, width), rng))


def is_per_frame(transform: object) -> TypeGuard[FrameTransform]:
    """Whether a transform treats each frame by itself."""
    return isinstance(transform, FrameTransform) and transform.per_frame


def each_frame(frames: np.ndarray, functions: Sequence[FrameFunction]) -> np.ndarray:
    """Takes the frames of a clip through functions; without any it is returned as it is."""
    if not functions:
        return frames
    result: np.ndarray | None = None
    for number, frame in enumerate(frames):
        for function in functions:
            frame = function(frame, number)
        if result is None:
            result = np.empty((len(frames), *frame.shape), np.uint8)
        result[number] = frame
    assert result is not None  # clips have frames
    return result
