# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a transform is, and how transforms combine."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np

from .per_frame import FrameFunction, FrameTransform, each_frame, is_per_frame
from .ranges import Range, check_clip, check_range, draw


class Transform(Protocol):
    """Anything that turns a clip, uint8 `[frames, height, width, 3]`, into another one."""

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray: ...


@dataclass(frozen=True)
class Compose(FrameTransform):
    """Applies transforms one after the other.

    Args:
        transforms (`Transform`, any number): in their order; none leaves the clip as it is.
    """

    transforms: tuple[Transform, ...]

    def __init__(self, *transforms: Transform) -> None:
        object.__setattr__(self, "transforms", transforms)

    @property
    def per_frame(self) -> bool:
        """Whether all of them treat each frame by itself."""
        return all(map(is_per_frame, self.transforms))

    def drawn(self, shape: tuple[int, int, int], rng: np.random.Generator) -> list[FrameFunction]:
        """See [`FrameTransform`]."""
        parts = filter(is_per_frame, self.transforms)
        return [function for transform in parts for function in transform.drawn(shape, rng)]

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        for together, transforms in groupby(self.transforms, is_per_frame):
            if together:
                count, height, width = frames.shape[:3]
                frames = each_frame(frames, Compose(*transforms).drawn((count, height, width), rng))
            else:
                for transform in transforms:
                    frames = transform(frames, rng)
        return frames


@dataclass(frozen=True)
class OneOf:
    """Applies one transform, drawn evenly.

    Args:
        transforms (`Transform`, one or more): what to choose from.
    """

    transforms: tuple[Transform, ...]

    def __init__(self, *transforms: Transform) -> None:
        if not transforms:
            raise ValueError("`transforms` is empty: there is nothing to choose from")
        object.__setattr__(self, "transforms", transforms)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.transforms[rng.integers(len(self.transforms))](frames, rng)


@dataclass(frozen=True)
class Sometimes(FrameTransform):
    """Applies a transform with a probability.

    Args:
        transform (`Transform`): what is applied, or not.
        probability (`float`): in [0, 1].
    """

    transform: Transform
    probability: float

    def __post_init__(self) -> None:
        check_range("probability", self.probability, 0, 1)

    @property
    def per_frame(self) -> bool:
        """Whether what is applied treats each frame by itself."""
        return is_per_frame(self.transform)

    def drawn(self, shape: tuple[int, int, int], rng: np.random.Generator) -> list[FrameFunction]:
        """See [`FrameTransform`]."""
        happens = rng.random() < self.probability
        return self.transform.drawn(shape, rng) if happens and is_per_frame(self.transform) else []

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        return self.transform(frames, rng) if rng.random() < self.probability else frames


@dataclass(frozen=True)
class CutMix:
    """Puts a box of one branch's result, in space and time, into the other branch's.

    Which of the two is inside is drawn evenly.

    Args:
        first (`Transform`), second (`Transform`): the branches, both applied to the same clip; neither may change its
            size.
        share (`float` or pair of `float`, *optional*, defaults to `(0.3, 0.9)`): of the frames, of the height and of
            the width that the box takes, each drawn by itself; in [0, 1].
    """

    first: Transform
    second: Transform
    share: Range = (0.3, 0.9)

    def __post_init__(self) -> None:
        check_range("share", self.share, 0, 1)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        outer, inner = self.first(frames, rng), self.second(frames, rng)
        if not outer.shape == inner.shape == frames.shape:
            raise ValueError(f"`first` and `second` made clips {outer.shape} and {inner.shape} of one {frames.shape}")
        if rng.random() < 0.5:
            outer, inner = inner, outer
        box = []
        for size in frames.shape[:3]:
            length = max(1, round(draw(rng, self.share) * size))
            start = int(rng.integers(size - length + 1))
            box.append(slice(start, start + length))
        mixed = outer.copy()
        mixed[tuple(box)] = inner[tuple(box)]
        return mixed
