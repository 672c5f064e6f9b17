# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Transforms of each frame's pixels, the same for all frames of a clip (the paper's second stage)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from .combining import Compose, Transform
from .per_frame import FrameFunction, FrameTransform, each_frame, is_per_frame
from .ranges import Range, check_clip, check_odd, check_range, draw, draw_integer, draw_odd

_METHODS = ("area", "bicubic")
_SMOOTH = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)


# of 65,536 equal shares of a normal distribution, the middle ones
_QUANTILES = np.array([NormalDist().inv_cdf((number + 0.5) / 2**16) for number in range(2**16)])


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
        if self.method not in _METHODS:
            raise ValueError(f"`method` must be one of {list(_METHODS)}, got {self.method!r}")

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        scale = draw_integer(rng, self.scale)
        height, width = frames.shape[1:3]
        if height % scale or width % scale:
            raise ValueError(f"`frames` of {height}x{width} pixels cannot be made smaller by a whole {scale} times")
        size = (height // scale, width // scale)
        if self.method == "area":
            return np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in frames])
        # Pillow's filter, to a level in a hundred thousand pixels, at a third of its time
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        small = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        return small.permute(0, 2, 3, 1).contiguous().numpy()


@dataclass(frozen=True)
class Rescale(FrameTransform):
    """Changes the size, applies a transform at that size, and changes it back.

    Each of the two changes is bilinear or bicubic, or, where it makes frames smaller, by area means; drawn evenly.

    Args:
        scale (`float` or pair of `float`, *optional*, defaults to `(0.15, 1.5)`): of the height and of the width,
            above 0.
        inside (`Transform`, *optional*): what happens at that size, nothing by default; it may not change it.
    """

    scale: Range = (0.15, 1.5)
    inside: Transform = field(default_factory=Compose)

    def __post_init__(self) -> None:
        check_range("scale", self.scale, 1e-3)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        if self.per_frame:
            return super().__call__(frames, rng)
        height, width = frames.shape[1:3]
        size = self._size(height, width, rng)
        inner = self.inside(each_frame(frames, [_resizing(width, size, rng)]), rng)
        if inner.shape != (len(frames), size[1], size[0], 3):
            raise ValueError(f"`inside` made a clip {inner.shape} of {len(frames)} frames of {size[1]}x{size[0]}")
        return each_frame(inner, [_resizing(size[0], (width, height), rng)])

    @property
    def per_frame(self) -> bool:
        """Whether what happens inside treats each frame by itself."""
        return is_per_frame(self.inside)

    def drawn(self, shape: tuple[int, int, int], rng: np.random.Generator) -> list[FrameFunction]:
        """See [`FrameTransform`]."""
        assert is_per_frame(self.inside)  # else nobody asks
        count, height, width = shape
        size = self._size(height, width, rng)
        there = _resizing(width, size, rng)
        inside = self.inside.drawn((count, size[1], size[0]), rng)
        return [there, *inside, _resizing(size[0], (width, height), rng)]

    def _size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """Width and height inside."""
        scale = draw(rng, self.scale)
        return max(1, round(scale * width)), max(1, round(scale * height))


@dataclass(frozen=True)
class GaussianBlur(FrameTransform):
    """Blurs each frame with the same kernel.

    Args:
        sigma (`float` or pair of `float`, *optional*, defaults to `(0.2, 2.0)`): width of the kernel in pixels, above
            0.
        kernel_size (`int` or pair of `int`, *optional*): where the kernel is cut off, in pixels; only odd sizes are
            drawn. By default where it is next to nothing.
    """

    sigma: Range = (0.2, 2.0)
    kernel_size: Range | None = None

    def __post_init__(self) -> None:
        check_range("sigma", self.sigma, 1e-3)
        if self.kernel_size is not None:
            check_range("kernel_size", self.kernel_size, 1)
            check_odd("kernel_size", self.kernel_size)

    def drawn(self, shape: tuple[int, int, int], rng: np.random.Generator) -> list[FrameFunction]:
        """See [`FrameTransform`]."""
        sigma = draw(rng, self.sigma)
        size = 0 if self.kernel_size is None else draw_odd(rng, self.kernel_size)
        size = min(size, 2 * math.ceil(4 * sigma) + 1)  # what is farther weighs less than a hundredth of a level
        return [lambda frame, _: cv2.GaussianBlur(frame, (size, size), sigma)]


@dataclass(frozen=True)
class UnsharpMask(FrameTransform):
    """Sharpens each frame: adds what a blur would take away, and with it halos along edges.

    Args:
        amount (`float` or pair of `float`, *optional*, defaults to `(0.0, 1.0)`): how much of it, 0 or above.
        sigma (`float` or pair of `float`, *optional*, defaults to `(0.5, 3.0)`): width of the blur in pixels, above 0.
    """

    amount: Range = (0.0, 1.0)
    sigma: Range = (0.5, 3.0)

    def __post_init__(self) -> None:
        check_range("amount", self.amount, 0)
        check_range("sigma", self.sigma, 1e-3)

    def drawn(self, shape: tuple[int, int, int], rng: np.random.Generator) -> list[FrameFunction]:
        """See [`FrameTransform`]."""
        amount, sigma = draw(rng, self.amount), draw(rng, self.sigma)

        def sharpen(frame: np.ndarray, _: int) -> np.ndarray:
            return cv2.addWeighted(frame, 1 + amount, cv2.GaussianBlur(frame, (0, 0), sigma), -amount, 0)

        return [sharpen]


@dataclass(frozen=True)
class GaussianNoise(FrameTransform):
    """Adds white noise, other noise on every frame.

    Args:
        std (`float` or pair of `float`, *optional*, defaults to `(1.0, 10.0)`): standard deviation in grey levels of
            255.
    """

    std: Range = (1.0, 10.0)

    def __post_init__(self) -> None:
        check_range("std", self.std, 0)

    def drawn(self, shape: tuple[int, int, int], rng: np.random.Generator) -> list[FrameFunction]:
        """See [`FrameTransform`]."""
        # whole levels: rounded before it is added to whole levels, noise is what it would be after; and 16 random bits
        # look up a quantile many times as fast as a normal number is computed
        levels = np.rint(draw(rng, self.std) * _QUANTILES)
        table = levels.astype(np.int8 if abs(levels[0]) <= 127 else np.int16)
        # frames take parts of two frames' noise from places of their own, as film grain is made: no two have the same
        # noise at the same pixel, unless they draw one of millions of places
        count, size = shape[0], 3 * shape[1] * shape[2]
        noise: np.ndarray = table[np.frombuffer(rng.bytes(2 * size * min(count, 2)), np.uint16)]
        places = rng.integers(len(noise) - size + 1, size=count) if count > 2 else size * np.arange(count)

        def add(frame: np.ndarray, t: int) -> np.ndarray:
            part: np.ndarray = noise[int(places[t]) :][:size].reshape(frame.shape)
            return cv2.add(frame, part, dtype=cv2.CV_8U)

        return [add]


def _resizing(width: int, size: tuple[int, int], rng: np.random.Generator) -> FrameFunction:
    """Changes the size of frames of a width to `size`, width first, by an interpolation that is drawn."""
    # enlarged "by area means", pixels would become squares; made smaller, the other two alias, as other software does
    interpolations = (*_SMOOTH, cv2.INTER_AREA) if size[0] < width else _SMOOTH
    interpolation = interpolations[rng.integers(len(interpolations))]
    return lambda frame, _: cv2.resize(frame, size, interpolation=interpolation)
