# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What generated videos do wrong over time (the paper's first stage); the parameters follow smooth trajectories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from .per_frame import FrameFunction, FrameTransform
from .ranges import Range, bounds, check_clip, check_range, draw
from .trajectory import smooth_trajectory

# pixels of a frame for one of the grid on which warps are made
_COARSER = 8


@dataclass(frozen=True)
class TemporalMorph:
    """Blends each frame with a neighbour: ghosts, as where a generator moves between two states.

    Frame t becomes `alpha_t frame_t + (1 - alpha_t) frame_{t + 1}`, or with `t - 1` in the whole clip, drawn evenly.
    The frame that has no such neighbour stays.

    Args:
        alpha (`float` or pair of `float`, *optional*, defaults to `(0.2, 0.9)`): the frame's own weight, in [0, 1],
            which moves between the two bounds.
    """

    alpha: Range = (0.2, 0.9)

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0, 1)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        alphas = smooth_trajectory(rng, len(frames), *bounds(self.alpha))
        step = 1 if rng.random() < 0.5 else -1
        numbers = np.clip(np.arange(len(frames)) + step, 0, len(frames) - 1)
        pairs = zip(frames, frames[numbers], alphas, strict=True)
        return np.stack([cv2.addWeighted(one, alpha, other, 1 - alpha, 0) for one, other, alpha in pairs])


@dataclass(frozen=True)
class FrameDrop:
    """Loses frames at random and fills the gaps by linear interpolation: motion that stalls and fades.

    The first and the last frame are never lost.

    Args:
        probability (`float` or pair of `float`, *optional*, defaults to `(0.1, 0.4)`): of each frame to be lost, in
            [0, 1]; drawn once a clip.
        longest (`int`, *optional*, defaults to 3): frames that are lost in a row, at most.
    """

    probability: Range = (0.1, 0.4)
    longest: int = 3

    def __post_init__(self) -> None:
        check_range("probability", self.probability, 0, 1)
        check_range("longest", self.longest, 1)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        kept = self._kept(len(frames), rng)
        filled = frames.copy()
        for before, after in zip(kept[:-1], kept[1:], strict=True):
            for t in range(before + 1, after):
                weight = (t - before) / (after - before)
                filled[t] = cv2.addWeighted(frames[before], 1 - weight, frames[after], weight, 0)
        return filled

    def _kept(self, count: int, rng: np.random.Generator) -> list[int]:
        """The numbers of the frames that are not lost."""
        lost = rng.random(count) < draw(rng, self.probability)
        kept = [0]
        for t in range(1, count):
            if t == count - 1 or not lost[t] or t - kept[-1] > self.longest:
                kept.append(t)
        return kept


@dataclass(frozen=True)
class MotionBlur(FrameTransform):
    """Blurs along a line whose direction and length change smoothly, as a moving camera would.

    Args:
        length (`float` or pair of `float`, *optional*, defaults to `(1.0, 15.0)`): of the line in pixels, 1 (no blur)
            or more, which moves between the two bounds.
        turn (`float`, *optional*, defaults to 45.0): degrees by which the direction, any at first, moves to either
            side.
    """

    length: Range = (1.0, 15.0)
    turn: float = 45.0

    def __post_init__(self) -> None:
        check_range("length", self.length, 1)
        check_range("turn", self.turn, 0)

    def drawn(self, shape: tuple[int, int, int], rng: np.random.Generator) -> list[FrameFunction]:
        """See [`FrameTransform`]."""
        lengths = smooth_trajectory(rng, shape[0], *bounds(self.length))
        angles = rng.uniform(0, 180) + smooth_trajectory(rng, shape[0], -self.turn, self.turn)
        lines = [line_kernel(length, angle) for length, angle in zip(lengths, angles, strict=True)]
        return [lambda frame, t: cv2.filter2D(frame, -1, lines[t])]


@dataclass(frozen=True)
class GridWarp(FrameTransform):
    """Warps a drifting soft ellipse by a slowly changing field of low frequency: shapes that melt.

    Args:
        displacement (`float` or pair of `float`, *optional*, defaults to `(2.0, 14.0)`): how far pixels move at most,
            in pixels, 0 or above; drawn once a clip.
        radius (`float` or pair of `float`, *optional*, defaults to `(0.2, 0.6)`): of the ellipse, as shares of the
            height and of the width, above 0; each drawn once a clip.
        cells (pair of `int`, *optional*, defaults to `(4, 6)`): rows and columns of the grid of random vectors between
            which the field is interpolated.
    """

    displacement: Range = (2.0, 14.0)
    radius: Range = (0.2, 0.6)
    cells: tuple[int, int] = (4, 6)

    def __post_init__(self) -> None:
        check_range("displacement", self.displacement, 0)
        check_range("radius", self.radius, 1e-3)
        check_range("cells", (min(self.cells), max(self.cells)), 2)

    def drawn(self, shape: tuple[int, int, int], rng: np.random.Generator) -> list[FrameFunction]:
        """See [`FrameTransform`]."""
        count, height, width = shape
        farthest = draw(rng, self.displacement)
        # fields and ellipses are smooth: they are made on a coarser grid, and interpolated where they move something
        coarse = (max(self.cells[0], height // _COARSER), max(self.cells[1], width // _COARSER))
        fields, masks = list(self._fields(count, coarse, rng)), list(self._masks(count, coarse, rng))
        columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))

        def warp(frame: np.ndarray, t: int) -> np.ndarray:
            moves = cv2.resize(farthest * masks[t][..., None] * fields[t], (width, height))
            box = _box_of(masks[t], (height, width))
            x, y = columns[box] + moves[box][..., 0], rows[box] + moves[box][..., 1]
            warped = frame.copy()
            # BORDER_REFLECT_101, OpenCV's usual one, never comes back from frames of one row or column
            warped[box] = cv2.remap(frame, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
            return warped

        return [warp]

    def _fields(self, count: int, size: tuple[int, int], rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Vectors no longer than 1, float32 `[height, width, 2]`, for each frame."""
        rows, columns = self.cells
        components = smooth_trajectory(rng, count, count=rows * columns * 2).astype(np.float32)
        for grid in components.T.reshape(count, rows, columns, 2):
            field = cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC)
            yield field / np.maximum(1, np.linalg.norm(field, axis=-1, keepdims=True))

    def _masks(self, count: int, size: tuple[int, int], rng: np.random.Generator) -> Iterator[np.ndarray]:
        """1 in the middle of the ellipse, falling to 0 at its edge, float32 `[height, width]`, for each frame."""
        radii = [draw(rng, self.radius) * length for length in size]
        centres = smooth_trajectory(rng, count, 0.2, 0.8, count=2).T * size
        for centre in centres:
            down, across = (
                (np.arange(length, dtype=np.float32) - middle) / radius
                for length, middle, radius in zip(size, centre.astype(np.float32), radii, strict=True)
            )
            inside = np.clip(2 - 2 * np.sqrt(down[:, None] ** 2 + across**2), 0, 1)
            yield (inside * inside * (3 - 2 * inside)).astype(np.float32)


def _box_of(mask: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of a frame of this size where a coarser mask is not 0, and a cell more on each side."""
    slices = []
    for axis, (length, cells) in enumerate(zip(size, mask.shape, strict=True)):
        there = np.flatnonzero(mask.any(axis=1 - axis))
        first, last = (there[0], there[-1]) if len(there) else (0, -2)
        slices.append(slice(max(0, (first - 1) * length // cells), max(0, -(-(last + 2) * length // cells))))
    return slices[0], slices[1]


def line_kernel(length: float, degrees: float) -> np.ndarray:
    """Makes a filter that averages along a line through its centre.

    Args:
        length (`float`): of the line in pixels, 1 or more; 1 leaves a picture as it is.
        degrees (`float`): its direction, from the right towards below.

    Returns:
        `np.ndarray`: float32, square, of odd size and of sum 1.
    """
    reach = int(np.ceil((length - 1) / 2)) + 1
    along = np.linspace(-(length - 1) / 2, (length - 1) / 2, 4 * int(np.ceil(length)) + 1)
    x, y = (reach + along * turn(np.radians(degrees)) for turn in (np.cos, np.sin))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    # each point of the line is shared out among the four pixels around it
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weights = (1 - abs(np.floor(y) + down - y)) * (1 - abs(np.floor(x) + right - x))
        rows, columns = np.floor(y).astype(int) + down, np.floor(x).astype(int) + right
        np.add.at(kernel, (rows, columns), weights)
    return kernel / kernel.sum()
