# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pictures of the small world at any size: skies, hills, grounds, and the things in front of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from .world_things import KINDS, THING_CODE_SIZE, Array, Light, Standing, Thing, blend, choice, coverage

Window = tuple[slice, slice]
Spec = tuple[str, str | None, str | None]

GROUNDS = ("grass", "sand", "snow", "water")
SKIES = ("day", "sunset", "night", "cloudy")

# rows as in SKIES: top of the sky, its lower end, sun or moon, their glow, light, what is lit without them
_TOP = np.array([(0.24, 0.50, 0.86), (0.30, 0.26, 0.52), (0.02, 0.03, 0.11), (0.55, 0.60, 0.67)])
_LOW = np.array([(0.80, 0.90, 0.97), (0.99, 0.62, 0.36), (0.14, 0.17, 0.34), (0.84, 0.86, 0.88)])
_SUN = np.array([(1.0, 0.97, 0.86), (1.0, 0.78, 0.46), (0.86, 0.89, 0.98), (0.95, 0.95, 0.94)])
_GLOW = np.array([0.28, 0.38, 0.20, 0.12])
_LIGHT = np.array([(1.0, 0.99, 0.95), (1.0, 0.80, 0.62), (0.48, 0.55, 0.80), (0.86, 0.88, 0.91)])
_AMBIENT = np.array([0.46, 0.44, 0.42, 0.62])
_DISC = np.array([1.0, 1.0, 1.0, 0.0])
_CLOUDS = np.array([0.30, 0.24, 0.03, 0.16])
# rows as in GROUNDS: far and near, and how they mirror the sun
_FAR = np.array([(0.50, 0.66, 0.32), (0.90, 0.79, 0.58), (0.90, 0.93, 0.97), (0.40, 0.62, 0.72)])
_NEAR = np.array([(0.22, 0.44, 0.14), (0.80, 0.63, 0.40), (0.76, 0.83, 0.91), (0.08, 0.27, 0.42)])
_MIRROR = np.array([0.05, 0.07, 0.10, 0.30])
_HILL = np.array((0.17, 0.28, 0.24))
_SWELL = 0.32  # of hills, as a share of their height

# where in the code the things' own numbers begin, and which of them is to the left
_FIRST, _SECOND, _SIDE = 22, 32, 41
_ABSENT: Spec = ("ball", None, None)


class Picture:
    """A scene at a size: lengths are in heights of the frame, columns count from the middle, rows from the top.

    Args:
        code (`np.ndarray`): normal values.
        specs (`Sequence`): kind, colour and motion of each thing, the nearest first.
        ground, sky (`str`, *optional*): one of `GROUNDS`, `SKIES`; by the code where `None`.
        height, width (`int`): pixels.
        window (`tuple[slice, slice]`, *optional*): rows and columns that are wanted.
    """

    def __init__(
        self,
        code: Array,
        specs: Sequence[Spec],
        ground: str | None,
        sky: str | None,
        height: int,
        width: int,
        window: Window | None = None,
    ) -> None:
        v = torch.erf(torch.as_tensor(code, dtype=torch.float64) / 2**0.5).float().numpy()  # in (-1, 1)
        self.size, self.pixel, self.v = (height, width), np.float32(1 / max(height, 1)), v
        self.window = window or (slice(None), slice(None))
        self.x = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) * self.pixel)[self.window[1]]
        self.y = ((np.arange(height, dtype=np.float32) + 0.5) * self.pixel)[self.window[0]]
        self.skies, self.grounds = choice(sky, SKIES, v[18]), choice(ground, GROUNDS, v[19])
        self.horizon = 0.50 + 0.06 * float(v[2])
        self.sun = (0.62 * float(v[3]), self.horizon * (0.46 + 0.22 * float(v[4])))
        self.sun_radius = 0.052 + 0.012 * float(v[5])
        self.tint = np.array((0.05, 0.0, -0.05)) * v[14]
        self.low = self.skies @ _LOW + self.tint
        direction = np.array((0.75 * v[3], 0.62, 0.5))
        toward = (direction / np.linalg.norm(direction)).astype(np.float32)
        self.sun_color = self.skies @ _SUN
        self.light = Light(self.skies @ _LIGHT, self.sun_color, float(self.skies @ _AMBIENT), toward)
        self.count = len(specs)
        self.things = self._things([*specs, _ABSENT][:2])

    def _things(self, specs: Sequence[Spec]) -> list[Thing]:
        """Both things, the nearer one first; with a second, each has a side and a depth of its own."""
        codes = [self.v[start : start + THING_CODE_SIZE] for start in (_FIRST, _SECOND)]
        side = float(np.clip(4 * self.v[_SIDE], -1, 1))
        middles = [float(0.28 * own * side + 0.17 * code[0]) for own, code in zip((-1, 1), codes, strict=True)]
        depths = [float(0.78 + 0.22 * codes[0][1]), float(0.2 + 0.2 * codes[1][1])]
        if self.count == 1:
            middles[0], depths[0] = 0.45 * float(codes[0][0]), 0.5 + 0.5 * float(codes[0][1])
        places = zip(middles, depths, (0.0, 0.5), strict=True)
        standing = [Standing(middle, depth, self.horizon, phase) for middle, depth, phase in places]
        made = zip(specs, codes, standing, strict=True)
        return [Thing(*spec, code, self.light, where, float(self.pixel)) for spec, code, where in made]

    def frames(self, phases: Array) -> Array:
        """Draws frames, see [`~world.WorldScene.render`]."""
        frames = np.tile(self._background(), (len(phases), 1, 1, 1))
        there, y = self.things[: self.count], self.y[:, None]
        for frame, phase in zip(frames, phases, strict=True):
            for thing in there:
                thing.draw_shadow(frame, self.x, y, float(phase))
            for thing in reversed(there):
                thing.draw(frame, self.x, y, float(phase))
        return np.clip(frames, 0, 1, out=frames)

    def anchors(self, phase: float) -> Array:
        """Places at a moment, see [`~world.WorldScene.anchors`]."""
        things = [thing.anchor(phase) for thing in self.things]
        shadows = [thing.shadow_anchor(phase) for thing in self.things]
        places = np.array([*things, *shadows, (*self.sun, 1.25 * self.sun_radius)])
        return np.concatenate([places[:, :2], np.log(places[:, 2:])], axis=1)

    def ridges(self) -> Array:
        """Lines over the width, from far to near, see [`~world.WorldScene.ridges`]."""
        hills = [[self.horizon - height, *(-height * _SWELL * waves)] for height, _, waves in self._hills()]
        return np.array([*hills, [self.horizon, 0, 0, 0, 0]])

    def looks(self) -> Array:
        """What there is to see, see [`~world.WorldScene.looks`]."""
        parts: list[Array] = [self.skies, self.grounds, np.array([self.count - 1.0])]
        for number, thing in enumerate(self.things):
            there = float(number < self.count)
            parts += [thing.motion, there * choice(thing.kind, KINDS, 0.0), there * thing.color]
        return np.concatenate(parts)

    def _hills(self) -> list[tuple[float, float, Array]]:
        """Far and near ones: height, strength of their colour, and their waves."""
        return [(0.085, 0.42, self.v[6:10]), (0.045, 0.72, self.v[10:14])]

    def _background(self) -> Array:
        picture = np.zeros((len(self.y), len(self.x), 3), np.float32)
        above = picture[: np.searchsorted(self.y, self.horizon + self.pixel)]
        self._draw_sky(above, self.y[: len(above), None])
        self._draw_hills(above, self.y[: len(above), None])
        start = np.searchsorted(self.y, self.horizon - self.pixel)
        below, y = picture[start:], self.y[start:, None]
        edge = below[:2].copy()  # where the horizon lies between two rows
        below[:] = self._ground(y)
        blend(below[:2], self._cover(y[:2] - self.horizon), edge)
        return picture

    def _draw_sky(self, picture: Array, y: Array) -> None:
        x, v, horizon, sky = self.x, self.v, self.horizon, self.skies
        top = sky @ _TOP + self.tint + 0.03 * v[15]
        picture[:] = top + (np.clip(y / horizon, 0, 1) ** 1.3)[..., None] * (self.low - top)
        haze = np.clip(0.55 + 0.3 * v[20] * np.cos(2.6 * x) + 0.3 * v[21] * np.sin(2.6 * x), 0, 1)
        clouds = (sky @ _CLOUDS) * _bell(y, horizon * (0.42 + 0.15 * v[31]), 0.075) * haze
        blend(picture, clouds, self.low + 0.25 * (1 - self.low))
        glow = (sky @ _GLOW) * _bell(y, self.sun[1], 0.24) * _bell(x, self.sun[0], 0.30)
        blend(picture, glow, self.sun_color)
        if sky[2] > 0:
            picture += (np.float32(sky[2]) * _stars(*self.size)[self.window][: len(picture)])[..., None]
        near = np.s_[slice(*np.searchsorted(x, (self.sun[0] - 0.1, self.sun[0] + 0.1)))]
        disc = self._cover(np.hypot(x[near] - self.sun[0], y - self.sun[1]) - self.sun_radius)
        blend(picture[:, near], disc * (sky @ _DISC), np.minimum(self.sun_color * 1.05, 1))

    def _draw_hills(self, picture: Array, y: Array) -> None:
        x = self.x
        dusk = 0.35 + 0.65 * self.light.color.mean()
        start = np.searchsorted(y[:, 0], self.horizon - 0.20)
        picture, y = picture[start:], y[start:]
        for height, strength, waves in self._hills():
            slow = waves[0] * np.cos(2 * x) + waves[1] * np.sin(2 * x)
            shape = slow + waves[2] * np.cos(4 * x) + waves[3] * np.sin(4 * x)
            crest = self.horizon - height * (1 + _SWELL * shape)
            blend(picture, self._cover(crest - y), self.low + strength * (dusk * _HILL - self.low))

    def _ground(self, y: Array) -> Array:
        ground, v = self.grounds, self.v
        tone = 1 + 0.10 * v[16] + 0.05 * np.array((v[17], 0, -v[17]))
        lit = self.light.color * (0.75 + 0.25 * self.light.color.mean())
        far, near = (ground @ _FAR) * tone * lit, (ground @ _NEAR) * tone * lit
        far = far + 0.40 * (self.low - far)
        share = np.clip((y - self.horizon) / (1 - self.horizon), 0, 1) ** 0.7
        rows = (far + share[..., None] * (near - far)).astype(np.float32)
        mirror = (ground @ _MIRROR) * _bell(self.x, self.sun[0], 0.22) * (1 - 0.6 * share)
        return rows + mirror[..., None].astype(np.float32) * (self.sun_color.astype(np.float32) - rows)

    def _cover(self, distance: Array) -> Array:
        return coverage(distance, float(self.pixel))


def _bell(values: Array, middle: float, width: float) -> Array:
    return np.exp(-0.5 * ((values - np.float32(middle)) / width) ** 2)


@lru_cache(maxsize=4)
def _stars(height: int, width: int) -> Array:
    x = ((np.arange(width) + 0.5) - width / 2) / height
    y = ((np.arange(height) + 0.5) / height)[:, None]
    rng = np.random.default_rng(5)
    field = np.zeros((height, width))
    for _ in range(26):
        column, row, bright = rng.uniform(-0.9, 0.9), rng.uniform(0.02, 0.42), rng.uniform(0.25, 0.8)
        field += bright * np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * 0.0055**2))
    return field.astype(np.float32)
