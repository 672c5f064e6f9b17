# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Transforms of pixels, and how transforms combine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from .compression import H264
from .ranges import Range, check_clip, check_range, draw, draw_integer

_FILTERS = {"area": Image.Resampling.BOX, "bicubic": Image.Resampling.BICUBIC}


class Transform(Protocol):
    """Anything that turns a clip, uint8 `[frames, height, width, 3]`, into another one."""

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray: ...


@dataclass(frozen=True)
class Compose:
    """Applies transforms one after the other.

    Args:
        transforms (`Transform`, any number): in their order.
    """

    transforms: tuple[Transform, ...]

    def __init__(self, *transforms: Transform) -> None:
        object.__setattr__(self, "transforms", transforms)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        for transform in self.transforms:
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
class Sometimes:
    """Applies a transform with a probability.

    Args:
        transform (`Transform`): what is applied, or not.
        probability (`float`): in [0, 1].
    """

    transform: Transform
    probability: float

    def __post_init__(self) -> None:
        check_range("probability", self.probability, 0, 1)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        return self.transform(frames, rng) if rng.random() < self.probability else frames


@dataclass(frozen=True)
class Downscale:
    """Makes the frames smaller by a whole factor, without aliasing.

    Args:
        scale (`int` or pair of `int`, *optional*, defaults to 2): the factor, from 2 to 4; it must divide the height
            and the width.
        method (`str`, *optional*, defaults to `"area"`): `"area"` (the mean of the pixels that become one) or
            `"bicubic"`.
    """

    scale: Range = 2
    method: str = "area"

    def __post_init__(self) -> None:
        check_range("scale", self.scale, 2, 4)
        if self.method not in _FILTERS:
            raise ValueError(f"`method` must be one of {sorted(_FILTERS)}, got {self.method!r}")

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        scale = draw_integer(rng, self.scale)
        height, width = frames.shape[1:3]
        if height % scale or width % scale:
            raise ValueError(f"`frames` of {height}x{width} pixels cannot be made smaller by a whole {scale} times")
        size = (width // scale, height // scale)
        return np.stack([np.asarray(Image.fromarray(frame).resize(size, _FILTERS[self.method])) for frame in frames])


@dataclass(frozen=True)
class GaussianBlur:
    """Blurs each frame with the same kernel.

    Args:
        sigma (`float` or pair of `float`, *optional*, defaults to `(0.2, 2.0)`): width of the kernel in pixels, above
            0.
    """

    sigma: Range = (0.2, 2.0)

    def __post_init__(self) -> None:
        check_range("sigma", self.sigma, 1e-3)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        sigma = draw(rng, self.sigma)
        return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


@dataclass(frozen=True)
class GaussianNoise:
    """Adds white noise, other noise on every frame.

    Args:
        std (`float` or pair of `float`, *optional*, defaults to `(1.0, 10.0)`): standard deviation in grey levels of
            255.
    """

    std: Range = (1.0, 10.0)

    def __post_init__(self) -> None:
        check_range("std", self.std, 0)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        noise = rng.standard_normal(frames.shape, dtype=np.float32) * np.float32(draw(rng, self.std))
        return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)


def low_resolution(scale: int = 2, crf: tuple[int, int] = (20, 32), clean: float = 0.2) -> Compose:
    """The default degradation: a smaller clip, most often through H.264.

    Args:
        scale (`int`, *optional*, defaults to 2): the factor, 2 to 4.
        crf (pair of `int`, *optional*, defaults to `(20, 32)`): rate factors of the compressed clips.
        clean (`float`, *optional*, defaults to 0.2): share of clips that are not compressed.
    """
    return Compose(
        OneOf(Downscale(scale, "area"), Downscale(scale, "bicubic")),
        Sometimes(H264(crf), probability=1 - clean),
    )
