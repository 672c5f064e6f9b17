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
class Rescale:
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
        height, width = frames.shape[1:3]
        scale = draw(rng, self.scale)
        size = (max(1, round(scale * width)), max(1, round(scale * height)))
        inner = self.inside(_resized(frames, size, rng), rng)
        if inner.shape != (len(frames), size[1], size[0], 3):
            raise ValueError(f"`inside` made a clip {inner.shape} of {len(frames)} frames of {size[1]}x{size[0]}")
        return _resized(inner, (width, height), rng)


@dataclass(frozen=True)
class GaussianBlur:
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

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        sigma = draw(rng, self.sigma)
        size = 0 if self.kernel_size is None else draw_odd(rng, self.kernel_size)
        size = min(size, 2 * math.ceil(4 * sigma) + 1)  # what is farther weighs less than a hundredth of a level
        return np.stack([cv2.GaussianBlur(frame, (size, size), sigma) for frame in frames])


@dataclass(frozen=True)
class UnsharpMask:
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

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        amount, sigma = draw(rng, self.amount), draw(rng, self.sigma)
        blurred = (cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames)
        pairs = zip(frames, blurred, strict=True)
        return np.stack([cv2.addWeighted(frame, 1 + amount, blur, -amount, 0) for frame, blur in pairs])


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
        # whole levels: rounded before it is added to whole levels, noise is what it would be after; and 16 random bits
        # look up a quantile many times as fast as a normal number is computed
        levels = np.rint(draw(rng, self.std) * _QUANTILES)
        table = levels.astype(np.int8 if abs(levels[0]) <= 127 else np.int16)
        # frames take parts of two frames' noise from places of their own, as film grain is made: no two have the same
        # noise at the same pixel, unless they draw one of millions of places
        count, size = len(frames), frames[0].size
        noise = table[np.frombuffer(rng.bytes(2 * size * min(count, 2)), np.uint16)]
        places = rng.integers(len(noise) - size + 1, size=count) if count > 2 else size * np.arange(count)
        noisy = np.empty(frames.shape, np.uint8)
        for t, (frame, place) in enumerate(zip(frames, places, strict=True)):
            cv2.add(frame, noise[place : place + size].reshape(frame.shape), noisy[t], dtype=cv2.CV_8U)
        return noisy


def _resized(frames: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Frames of `size`, width first."""
    # enlarged "by area means", pixels would become squares; made smaller, the other two alias, as other software does
    interpolations = (*_SMOOTH, cv2.INTER_AREA) if size[0] < frames.shape[2] else _SMOOTH
    interpolation = interpolations[rng.integers(len(interpolations))]
    return np.stack([cv2.resize(frame, size, interpolation=interpolation) for frame in frames])
