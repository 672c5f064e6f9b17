# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The things of the small world: where they are at each moment, and how they look."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

COLORS = {
    "red": (0.86, 0.13, 0.12),
    "orange": (0.95, 0.48, 0.08),
    "yellow": (0.96, 0.82, 0.16),
    "green": (0.13, 0.62, 0.25),
    "blue": (0.13, 0.33, 0.88),
    "purple": (0.52, 0.20, 0.76),
    "pink": (0.95, 0.47, 0.66),
    "white": (0.93, 0.93, 0.94),
}
KINDS = ("ball", "cube", "cone")
MOTIONS = ("left", "right", "bounces", "floats", "sways", "still")

THING_CODE_SIZE = 9  # numbers of a code that a thing takes
_BLEND = 0.06  # share of a choice's range in which neighbours blend
_SINE, _COSINE = math.sin(0.36), math.cos(0.36)  # of the angle at which things are seen from above
_REACH = 1.4  # half of the side of the square about a thing, in radii
_SHADOW_REACH = 1.8  # likewise of its shadow, in the shadow's own size


@dataclass(frozen=True)
class Light:
    """What falls on things.

    Args:
        color (`np.ndarray`): `[3]`, of the light.
        glare (`np.ndarray`): `[3]`, of what gloss mirrors.
        ambient (`float`): brightness of what is turned away.
        toward (`np.ndarray`): `[3]`, to the right, up and to the viewer.
    """

    color: Array
    glare: Array
    ambient: float
    toward: Array


@dataclass(frozen=True)
class Standing:
    """Where a thing belongs.

    Args:
        middle (`float`): column about which it stays, if it stays.
        depth (`float`): how near, in [0, 1].
        horizon (`float`): row of the horizon.
        phase (`float`): by how much of the period it is ahead.
    """

    middle: float
    depth: float
    horizon: float
    phase: float


class Thing:
    """A thing: lengths are in heights of the frame, columns count from the middle, rows from the top.

    Args:
        kind (`str`): one of `KINDS`.
        color, motion (`str`, *optional*): one of `COLORS`, `MOTIONS`; by the code where `None`.
        code (`np.ndarray`): `[THING_CODE_SIZE]` in (-1, 1).
        light (`Light`): that falls on it.
        standing (`Standing`): where it belongs.
        pixel (`float`): side of a pixel.
    """

    def __init__(
        self,
        kind: str,
        color: str | None,
        motion: str | None,
        code: Array,
        light: Light,
        standing: Standing,
        pixel: float,
    ) -> None:
        self.kind, self.light, self.standing, self.code, self.pixel = kind, light, standing, code, pixel
        self.motion = choice(motion, MOTIONS, code[8])
        self.turn, self.depth = float(code[5]), standing.depth
        self.floor = standing.horizon + (1 - standing.horizon) * (0.34 + 0.40 * self.depth)
        self.radius = float((0.12 + 0.03 * code[2]) * (0.75 + 0.5 * self.depth))
        hue = 0.05 * np.array((code[3], -0.5 * code[3], 0.6 * code[4]))
        self.color = np.clip(choice(color, COLORS, code[7]) @ np.array(list(COLORS.values())) + hue, 0.02, 1)

    def place(self, phase: float) -> tuple[float, float]:
        """Column of the thing and its height over the ground."""
        phase = (phase + self.standing.phase) % 1
        middle, way = self.standing.middle, 1.15 * (1 - 2 * phase)
        turn, hop = np.sin(4 * np.pi * phase), (4 * phase) % 1
        columns = np.array((way, -way, middle, middle, middle + 0.16 * turn, middle))
        reach = 0.75 + 0.5 * self.depth
        high, hover = (0.17 + 0.05 * self.code[6]) * reach, (0.09 + 0.045 * turn) * reach
        heights = np.array((0, 0, 4 * high * hop * (1 - hop), hover, 0, 0))
        return float(self.motion @ columns), float(self.motion @ heights)

    def anchor(self, phase: float) -> tuple[float, float, float]:
        """Column and row of the middle, and half of the side of a square about it."""
        column, height = self.place(phase)
        return column, self.floor - height - self.radius, _REACH * self.radius

    def shadow_anchor(self, phase: float) -> tuple[float, float, float]:
        """Likewise of its shadow."""
        column, row, spread = self._shadow(*self.place(phase))
        return column, row, _SHADOW_REACH * spread

    def draw_shadow(self, frame: Array, x: Array, y: Array, phase: float) -> None:
        """Darkens a frame `[rows, columns, 3]` whose columns `x` and rows `y` these are."""
        column, height = self.place(phase)
        middle, row, spread = self._shadow(column, height)
        window, x, y = _near(frame, x, y, middle, row, _SHADOW_REACH * spread)
        distance = ((x - middle) / spread) ** 2 + ((y - row) / (0.40 * spread)) ** 2
        dark = 0.55 / (1 + 0.35 * height / self.radius)
        window *= 1 - (dark * np.exp(-0.9 * distance**1.5))[..., None]

    def draw(self, frame: Array, x: Array, y: Array, phase: float) -> None:
        """Draws the thing itself likewise."""
        column, height = self.place(phase)
        window, x, y = _near(frame, x, y, *self.anchor(phase))
        if window.size:
            shape = {"ball": self._ball, "cube": self._cube, "cone": self._cone}[self.kind]
            cover, normal = shape(x - column, y - self.floor + height)
            blend(window, cover, self._shaded(normal))

    def _shadow(self, column: float, height: float) -> tuple[float, float, float]:
        """Column and row of the shadow, and its size."""
        away = float(self.light.toward[0]) * (0.35 * self.radius + 0.5 * height)
        return column - away, self.floor + 0.06 * self.radius, 1.15 * (self.radius + 0.12 * height)

    def _shaded(self, normal: tuple[Array, Array, Array]) -> Array:
        """Colours of a surface by its normals (right, up, to the viewer)."""
        facing = sum(part * toward for part, toward in zip(normal, self.light.toward, strict=True))
        half = self.light.toward + np.array((0, 0, 1), np.float32)
        half /= np.linalg.norm(half)
        gloss = 0.0 if self.kind == "cube" else 0.45
        shine = gloss * np.clip(sum(part * toward for part, toward in zip(normal, half, strict=True)), 0, 1) ** 28
        ambient = float(self.light.ambient) * (0.82 + 0.18 * normal[1])
        brightness = ambient + (1.12 - float(self.light.ambient)) * np.clip(facing, 0, 1)
        paint, glare = self.color * self.light.color, self.light.glare * self.light.color.mean()
        return brightness[..., None] * paint.astype(np.float32) + shine[..., None] * glare.astype(np.float32)

    def _ball(self, x: Array, y: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        r = self.radius
        right, up = np.broadcast_arrays(x / r, -(y + 0.94 * r) / r)
        far = np.hypot(right, up)
        inside = 1 / np.maximum(far, 1)
        right, up = right * inside, up * inside
        return self._cover((far - 1) * r), (right, up, np.sqrt(np.maximum(1 - right**2 - up**2, 0)))

    def _cone(self, x: Array, y: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        r, high = 0.98 * self.radius, 2.2 * self.radius * _COSINE
        flat = r * _SINE  # of the ellipse of its base
        base = np.sqrt((x / r) ** 2 + (y / flat) ** 2) + 1e-6
        to_base = (base - 1) * base / np.sqrt((x / r**2) ** 2 + (y / flat**2) ** 2 + 1e-9)
        touch = flat**2 / high
        slope = r * math.sqrt(1 - (flat / high) ** 2) / (high - touch)
        side = (np.abs(x) - slope * (y + high)) / math.hypot(1, slope)
        to_side = np.maximum(side, y + touch)
        right = np.clip(x / np.maximum(slope * (y + high), 1e-4), -1, 1)
        lean = 0.42
        normal = (right * math.sqrt(1 - lean**2), np.full_like(right, lean), np.sqrt((1 - right**2) * (1 - lean**2)))
        return self._cover(np.minimum(to_base, to_side)), normal

    def _cube(self, x: Array, y: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        half, turn = 0.80 * self.radius, 0.42 * float(self.turn)
        high = 2 * half * _COSINE
        corners = [  # front, right, back, left of the base: columns and rows
            (float(2**0.5 * half * np.cos(angle)), float(-(2**0.5) * half * _SINE * np.sin(angle) - half * 0.5))
            for angle in turn + np.pi * np.array((-0.5, 0.0, 0.5, 1.0))
        ]
        front, right, back, left = corners
        upper = [(column, row - high) for column, row in corners]
        outline = (left, front, right, upper[1], upper[2], upper[3])
        distance = _beyond(x, y, outline)
        on_top = self._cover(_beyond(x, y, (upper[3], upper[0], upper[1]), closed=False))
        on_right = self._cover(front[0] - x) * np.ones_like(y)
        angles = turn + np.pi * np.array((-0.75, -0.25))
        sides = [(float(np.cos(angle)), 0.0, float(-np.sin(angle))) for angle in angles]
        normal = tuple(
            top * on_top + (1 - on_top) * (one + on_right * (two - one))
            for top, one, two in zip((0.0, 1.0, 0.0), *sides, strict=True)
        )
        return self._cover(distance), normal

    def _cover(self, distance: Array) -> Array:
        return coverage(distance, self.pixel)


def choice(name: str | None, options: Mapping[str, object] | tuple[str, ...], value: float) -> Array:
    """How much of each option there is: one that is named, or what `value` in [-1, 1] chooses."""
    if name is not None:
        return np.eye(len(options))[list(options).index(name)]
    place = np.clip((value + 1) / 2 * len(options), 0, len(options) - 1e-6)
    borders = np.arange(1, len(options))
    past = np.clip((place - borders) / (2 * _BLEND) + 0.5, 0, 1)
    past = np.concatenate([[1.0], past * past * (3 - 2 * past), [0.0]])
    return past[:-1] - past[1:]


def coverage(distance: Array, pixel: float) -> Array:
    """Share of each pixel of a side `pixel` that lies inside, of its signed distance to the border."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def blend(picture: Array, share: Array, color: Array) -> None:
    """Lays a colour over a picture `[rows, columns, 3]`, in place."""
    share = np.asarray(share, np.float32)[..., None]
    change = np.asarray(color, np.float32) - picture
    change *= share
    picture += change


def _near(frame: Array, x: Array, y: Array, column: float, row: float, reach: float) -> tuple[Array, Array, Array]:
    """What of a frame lies in a square, with its columns and rows."""
    columns = slice(*np.searchsorted(x, (column - reach, column + reach)))
    rows = slice(*np.searchsorted(y[:, 0], (row - reach, row + reach)))
    return frame[rows, columns], x[columns], y[rows]


def _beyond(x: Array, y: Array, points: tuple, closed: bool = True) -> Array:
    """Signed distance to a convex outline, anticlockwise on the screen, negative inside."""
    ends = points[1:] + points[:1] if closed else points[1:]
    distances = [
        ((x - a[0]) * (a[1] - b[1]) + (y - a[1]) * (b[0] - a[0])) / math.hypot(b[0] - a[0], b[1] - a[1])
        for a, b in zip(points, ends, strict=False)
    ]
    result = distances[0]
    for other in distances[1:]:
        result = np.maximum(result, other)
    return result
