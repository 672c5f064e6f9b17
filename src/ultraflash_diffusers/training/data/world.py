# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A calm little world, drawn exactly at any size: an object under a sky, in front of hills, that moves for ever.

A text names some of it; all that it leaves open follows from a seed code, a vector of normal values, and from the
clock of [`~ultraflash_diffusers.models.seed_code.SeedCodeEmbedding`]. So text, code and time determine each frame, and
a network that is given them has nothing to average over. All values are continuous in the code: where it chooses
between skies or colours, neighbours blend into each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

Array = np.ndarray
Window = tuple[slice, slice]

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
OBJECTS = {"ball": ("ball", "sphere"), "cube": ("cube", "box"), "cone": ("cone",)}
MOTIONS = {
    "left": (
        "moves left",
        "moves to the left",
        "glides to the left",
        "glides left",
        "slides to the left",
        "drifts left",
    ),
    "right": (
        "moves right",
        "moves to the right",
        "glides to the right",
        "glides right",
        "slides to the right",
        "drifts right",
    ),
    "bounces": ("bounces", "bouncing", "bounces up and down", "jumps", "hops"),
    "floats": ("floats", "floats in the air", "hovers", "floating", "rises and falls"),
    "sways": ("sways", "swings", "sways from side to side", "moves from side to side"),
    "still": ("stays still", "rests", "does not move", "stands still"),
}
GROUNDS = {
    "grass": ("over grass", "on grass", "on green grass", "on a meadow", "over a meadow"),
    "sand": ("over sand", "on sand", "in the desert", "on a beach"),
    "snow": ("over snow", "on snow", "in the snow", "on ice"),
    "water": ("over water", "on water", "on the sea", "over the sea"),
}
SKIES = {
    "day": ("by day", "under a blue sky", "on a sunny day", "in the sun"),
    "sunset": ("at sunset", "in the evening", "at dusk", "at dawn"),
    "night": ("at night", "under the stars", "in the moonlight", "under the moon"),
    "cloudy": ("on a cloudy day", "under clouds", "under a grey sky"),
}

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

CODE_SIZE, ANCHORS, RIDGES = 32, 3, 3
_BLEND = 0.06  # share of a choice's range in which neighbours blend
_SINE, _COSINE = math.sin(0.36), math.cos(0.36)  # of the angle at which objects are seen from above


@dataclass(frozen=True)
class WorldScene:
    """What a text says, and the code that settles the rest.

    Args:
        code (`np.ndarray`): `[CODE_SIZE]`, normal values; the first two are the clock's start and pace.
        object (`str`): one of `OBJECTS`.
        color, motion, ground, sky (`str`, *optional*): one of `COLORS`, `MOTIONS`, `GROUNDS`, `SKIES`; chosen by the
            code where `None`.
    """

    code: Array
    object: str
    color: str | None = None
    motion: str | None = None
    ground: str | None = None
    sky: str | None = None

    def text(self, rng: np.random.Generator) -> str:
        """Draws one of the texts that say this."""
        named = [phrases[name] for name, phrases in ((self.motion, MOTIONS), (self.ground, GROUNDS)) if name]
        sky = [SKIES[self.sky]] if self.sky else []
        phrases = [OBJECTS[self.object], *named, *sky]
        words = [options[min(int(rng.exponential(1.2)), len(options) - 1)] for options in phrases]
        start = f"{self.color} {words[0]}" if self.color else words[0]
        return " ".join([f"an {start}" if start[0] in "aeiou" else f"a {start}", *words[1:]])

    def anchors(self, phases: Array) -> Array:
        """Returns `[phases, ANCHORS, 3]`: object, shadow and sun; column, row and logarithm of the size of each."""
        picture = _Picture(self, 0, 0)
        return np.array([picture.anchors(float(phase)) for phase in phases])

    def ridges(self) -> Array:
        """Returns `[RIDGES, 5]`: horizon, far and near hills, see [`~models.seed_code.SeedPlaces`]."""
        return _Picture(self, 0, 0).ridges()

    def render(self, phases: Array, height: int = 192, width: int = 320, window: Window | None = None) -> Array:
        """Draws frames.

        Args:
            phases (`np.ndarray`): for each frame, how much of the clock's period has passed; only its fraction counts.
            height, width (`int`, *optional*, default to 192, 320): pixels.
            window (`tuple[slice, slice]`, *optional*): rows and columns that are wanted; all by default.

        Returns:
            `np.ndarray`: float32 `[frames, height, width, 3]` in [0, 1], of the window if there is one.
        """
        return _Picture(self, height, width, window).frames(phases)


def draw_scene(rng: np.random.Generator) -> WorldScene:
    """Draws a scene; a text names colour, motion, ground and sky, each most of the time."""

    def name(options: Mapping[str, object], share: float) -> str | None:
        return str(rng.choice(list(options))) if rng.random() < share else None

    return WorldScene(
        code=rng.standard_normal(CODE_SIZE),
        object=str(rng.choice(list(OBJECTS))),
        color=name(COLORS, 0.95),
        motion=name(MOTIONS, 0.9),
        ground=name(GROUNDS, 0.8),
        sky=name(SKIES, 0.6),
    )


def vocabulary() -> list[str]:
    """Returns the words of all texts, sorted."""
    phrases = [
        phrase for group in (OBJECTS, MOTIONS, GROUNDS, SKIES) for options in group.values() for phrase in options
    ]
    return sorted({"a", "an", *COLORS, *(word for phrase in phrases for word in phrase.split())})


def _weights(name: str | None, options: Mapping[str, object], value: float) -> Array:
    """How much of each option there is: one that is named, or what `value` in [-1, 1] chooses."""
    if name is not None:
        return np.eye(len(options))[list(options).index(name)]
    place = np.clip((value + 1) / 2 * len(options), 0, len(options) - 1e-6)
    borders = np.arange(1, len(options))
    past = np.clip((place - borders) / (2 * _BLEND) + 0.5, 0, 1)
    past = np.concatenate([[1.0], past * past * (3 - 2 * past), [0.0]])
    return past[:-1] - past[1:]


class _Picture:
    """A scene at a size: lengths are in heights of the frame, columns count from the middle, rows from the top."""

    def __init__(self, scene: WorldScene, height: int, width: int, window: Window | None = None) -> None:
        v = torch.erf(torch.as_tensor(scene.code, dtype=torch.float64) / 2**0.5).float().numpy()  # in (-1, 1)
        self.scene, self.size, self.pixel, self.v = scene, (height, width), np.float32(1 / max(height, 1)), v
        self.window = window or (slice(None), slice(None))
        self.x = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) * self.pixel)[self.window[1]]
        self.y = ((np.arange(height, dtype=np.float32) + 0.5) * self.pixel)[self.window[0]]
        self.motion = _weights(scene.motion, MOTIONS, v[30])
        sky = _weights(scene.sky, SKIES, v[18])
        self.horizon = 0.50 + 0.06 * float(v[2])
        self.sun = (0.62 * float(v[3]), self.horizon * (0.46 + 0.22 * float(v[4])))
        tint = np.array((0.05, 0.0, -0.05)) * v[14]
        self.low = sky @ _LOW + tint
        self.light, self.ambient, self.sun_color = sky @ _LIGHT, sky @ _AMBIENT, sky @ _SUN
        direction = np.array((0.75 * v[3], 0.62, 0.5))  # to the right, up, to the viewer
        self.to_light = (direction / np.linalg.norm(direction)).astype(np.float32)
        self.depth = 0.5 + 0.5 * float(v[23])
        self.floor = self.horizon + (1 - self.horizon) * (0.34 + 0.40 * self.depth)
        self.radius = float((0.12 + 0.03 * v[24]) * (0.75 + 0.5 * self.depth))
        hue = 0.10 * np.array((v[25], -0.5 * v[25], 0.6 * v[26]))
        self.color = np.clip(
            _weights(scene.color, COLORS, v[29]) @ np.array(list(COLORS.values())) + 0.5 * hue, 0.02, 1
        )
        self.sky, self.tint = sky, tint

    def frames(self, phases: Array) -> Array:
        frames = np.tile(self._background(self.sky, self.tint), (len(phases), 1, 1, 1))
        for frame, phase in zip(frames, phases, strict=True):
            self._draw(frame, *self._place(float(phase) % 1))
        return np.clip(frames, 0, 1, out=frames)

    def anchors(self, phase: float) -> Array:
        column, height = self._place(phase % 1)
        shadow = (self._shadow(column, height), self.floor, self.radius * (1 + 0.12 * height / self.radius))
        thing = (column, self.floor - height - self.radius, self.radius)
        places = np.array([thing, shadow, (*self.sun, 0.1)])
        return np.concatenate([places[:, :2], np.log(places[:, 2:])], axis=1)

    def ridges(self) -> Array:
        hills = [[self.horizon - height, *(-height * _SWELL * waves)] for height, _, waves in self._hills()]
        return np.array([[self.horizon, 0, 0, 0, 0], *hills])

    def _hills(self) -> list[tuple[float, float, Array]]:
        """Far and near ones: height, strength of their colour, and their waves."""
        return [(0.085, 0.42, self.v[6:10]), (0.045, 0.72, self.v[10:14])]

    def _shadow(self, column: float, height: float) -> float:
        return column - float(self.to_light[0]) * (0.35 * self.radius + 0.5 * height)

    def _background(self, sky: Array, tint: Array) -> Array:
        picture = np.zeros((len(self.y), len(self.x), 3), np.float32)
        above = picture[: np.searchsorted(self.y, self.horizon + self.pixel)]
        self._draw_sky(above, self.y[: len(above), None], sky, tint)
        self._draw_hills(above, self.y[: len(above), None])
        start = np.searchsorted(self.y, self.horizon - self.pixel)
        below, y = picture[start:], self.y[start:, None]
        edge = below[:2].copy()  # where the horizon lies between two rows
        below[:] = self._ground(y)
        self._blend(below[:2], self._cover(y[:2] - self.horizon), edge)
        return picture

    def _draw_sky(self, picture: Array, y: Array, sky: Array, tint: Array) -> None:
        x, v, horizon = self.x, self.v, self.horizon
        top = sky @ _TOP + tint + 0.03 * v[15]
        picture[:] = top + (np.clip(y / horizon, 0, 1) ** 1.3)[..., None] * (self.low - top)
        haze = np.clip(0.55 + 0.3 * v[20] * np.cos(2.6 * x) + 0.3 * v[21] * np.sin(2.6 * x), 0, 1)
        clouds = (sky @ _CLOUDS) * _bell(y, horizon * (0.42 + 0.15 * v[31]), 0.075) * haze
        self._blend(picture, clouds, self.low + 0.25 * (1 - self.low))
        glow = (sky @ _GLOW) * _bell(y, self.sun[1], 0.24) * _bell(x, self.sun[0], 0.30)
        self._blend(picture, glow, self.sun_color)
        if sky[2] > 0:
            picture += (np.float32(sky[2]) * _stars(*self.size)[self.window][: len(picture)])[..., None]
        radius = 0.052 + 0.012 * v[5]
        near = np.s_[slice(*np.searchsorted(x, (self.sun[0] - 0.1, self.sun[0] + 0.1)))]
        disc = self._cover(np.hypot(x[near] - self.sun[0], y - self.sun[1]) - radius)
        self._blend(picture[:, near], disc * (sky @ _DISC), np.minimum(self.sun_color * 1.05, 1))

    def _draw_hills(self, picture: Array, y: Array) -> None:
        x = self.x
        dusk = 0.35 + 0.65 * self.light.mean()
        start = np.searchsorted(y[:, 0], self.horizon - 0.20)
        picture, y = picture[start:], y[start:]
        for height, strength, waves in self._hills():
            slow = waves[0] * np.cos(2 * x) + waves[1] * np.sin(2 * x)
            shape = slow + waves[2] * np.cos(4 * x) + waves[3] * np.sin(4 * x)
            crest = self.horizon - height * (1 + _SWELL * shape)
            self._blend(picture, self._cover(crest - y), self.low + strength * (dusk * _HILL - self.low))

    def _ground(self, y: Array) -> Array:
        ground, v = _weights(self.scene.ground, GROUNDS, self.v[19]), self.v
        tone = 1 + 0.10 * v[16] + 0.05 * np.array((v[17], 0, -v[17]))
        lit = self.light * (0.75 + 0.25 * self.light.mean())
        far, near = (ground @ _FAR) * tone * lit, (ground @ _NEAR) * tone * lit
        far = far + 0.40 * (self.low - far)
        share = np.clip((y - self.horizon) / (1 - self.horizon), 0, 1) ** 0.7
        rows = (far + share[..., None] * (near - far)).astype(np.float32)
        mirror = (ground @ _MIRROR) * _bell(self.x, self.sun[0], 0.22) * (1 - 0.6 * share)
        return rows + mirror[..., None].astype(np.float32) * (self.sun_color.astype(np.float32) - rows)

    def _place(self, phase: float) -> tuple[float, float]:
        """Column of the object and its height over the ground."""
        v = self.v
        middle, way = 0.45 * v[22], 1.15 * (1 - 2 * phase)
        turn, hop = np.sin(4 * np.pi * phase), (4 * phase) % 1
        columns = np.array((way, -way, middle, middle, middle + 0.16 * turn, middle))
        reach = 0.75 + 0.5 * self.depth
        high, hover = (0.17 + 0.05 * v[28]) * reach, (0.09 + 0.045 * turn) * reach
        heights = np.array((0, 0, 4 * high * hop * (1 - hop), hover, 0, 0))
        return float(self.motion @ columns), float(self.motion @ heights)

    def _draw(self, frame: Array, column: float, height: float) -> None:
        """Draws the object and its shadow into the rows and columns that they reach."""
        r = float(self.radius)
        lift = height / r
        shadow = self._shadow(column, height)
        left, right = min(column, shadow) - 2.2 * r, max(column, shadow) + 2.2 * r
        columns = slice(*np.searchsorted(self.x, (left, right)))
        rows = slice(*np.searchsorted(self.y, (self.floor - height - 2.3 * r, self.floor + 1.2 * r)))
        x, y = self.x[columns], self.y[rows, None]
        if not x.size or not y.size:
            return
        window = frame[rows, columns]
        spread = 1.15 * r * (1 + 0.12 * lift)
        distance = ((x - shadow) / spread) ** 2 + ((y - self.floor - 0.06 * r) / (0.40 * spread)) ** 2
        window *= 1 - (0.55 / (1 + 0.35 * lift) * np.exp(-0.9 * distance**1.5))[..., None]
        cover, normal = getattr(self, f"_{self.scene.object}")(x - column, y - self.floor + height)
        self._blend(window, cover, self._shaded(normal))

    def _shaded(self, normal: tuple[Array, Array, Array]) -> Array:
        """Colours of a surface by its normals (right, up, to the viewer)."""
        facing = sum(part * toward for part, toward in zip(normal, self.to_light, strict=True))
        half = self.to_light + np.array((0, 0, 1), np.float32)
        half /= np.linalg.norm(half)
        gloss = 0.0 if self.scene.object == "cube" else 0.45
        shine = gloss * np.clip(sum(part * toward for part, toward in zip(normal, half, strict=True)), 0, 1) ** 28
        ambient = float(self.ambient) * (0.82 + 0.18 * normal[1])
        brightness = ambient + (1.12 - float(self.ambient)) * np.clip(facing, 0, 1)
        paint, glare = self.color * self.light, self.sun_color * self.light.mean()
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
        half, turn = 0.80 * self.radius, 0.42 * float(self.v[27])
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
        """Share of each pixel that lies inside, of its signed distance to the border."""
        return np.clip(0.5 - distance / self.pixel, 0, 1)

    @staticmethod
    def _blend(picture: Array, share: Array, color: Array) -> None:
        share = np.asarray(share, np.float32)[..., None]
        change = np.asarray(color, np.float32) - picture
        change *= share
        picture += change


def _bell(values: Array, middle: float, width: float) -> Array:
    return np.exp(-0.5 * ((values - np.float32(middle)) / width) ** 2)


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
