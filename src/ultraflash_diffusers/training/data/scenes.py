# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Synthetic clips with texts: an object of a colour moves over a background.

Attributes combine freely, so that a share of the combinations can be held out of training, and each can be read off
the frames again by classical means. Where an object is and how it moves follows from the text alone unless `variety`
says otherwise: what a text leaves open, a small network that predicts clean frames would average over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

FRAMES_PER_SECOND = 24
# frames after which a moving object has crossed its way; it keeps its pace in longer clips
CROSSING_FRAMES = 45

# of the height of the frame
_RADIUS = 0.18
_TRAVEL = {"left": 11 / 18, "right": 11 / 18, "up": 11 / 36, "down": 11 / 36, "still": 0.0}
# width of an object's edge, of its radius: what is soft, a small network can draw
_SOFTNESS = 0.3

# saturated, while backgrounds are muted: RGB in [0, 1]
COLORS = {
    "red": (0.88, 0.14, 0.14),
    "orange": (0.96, 0.52, 0.08),
    "yellow": (0.96, 0.86, 0.14),
    "green": (0.10, 0.70, 0.22),
    "blue": (0.12, 0.28, 0.90),
    "purple": (0.60, 0.18, 0.80),
}
OBJECTS = {
    "ball": ("ball", "sphere"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
}
# columns to the right and rows down
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
_MOTION_PHRASES = {
    "left": ("moves left", "moves to the left", "glides to the left", "slides left", "drifts leftwards"),
    "right": ("moves right", "moves to the right", "glides to the right", "slides right", "drifts rightwards"),
    "up": ("moves up", "rises", "floats upwards", "goes up", "climbs up"),
    "down": ("moves down", "falls", "sinks downwards", "goes down", "drops down"),
    "still": ("stays still", "does not move", "rests", "stands still"),
}
_BACKGROUND_PHRASES = {
    "grass": ("over grass", "over green grass", "on a meadow", "in front of grass"),
    "sky": ("in the sky", "in front of the sky", "in a cloudy sky", "among clouds"),
    "water": ("over water", "on the sea", "over the sea", "in front of water"),
    "sand": ("over sand", "in the desert", "on a beach", "in front of sand"),
    "wood": ("over a wooden table", "on wood", "in front of a wooden wall", "over wood"),
    "night": ("at night", "in the night sky", "under the stars", "in a starry night"),
}
# objects that would hardly stand out
_HIDDEN = {
    ("green", "grass"),
    ("blue", "sky"),
    ("blue", "water"),
    ("yellow", "sand"),
    ("orange", "sand"),
    ("orange", "wood"),
}
# every fifth combination of these colours' is held out
_HELD_OUT_COLORS = ("red", "yellow", "blue")
_HELD_OUT_EVERY = 5


@dataclass(frozen=True)
class Scene:
    """What a clip shows.

    Args:
        color (`str`): one of `COLORS`.
        object (`str`): one of `OBJECTS`.
        motion (`str`): one of `MOTIONS`.
        background (`str`): one of `BACKGROUNDS`.
        seed (`int`, *optional*, defaults to 0): of what the text leaves open.
        variety (`float`, *optional*, defaults to 0.0): how much that is: 0, the same for all seeds; at 1 an object's
            place varies by up to 0.1 of the frame's height, its size and pace by up to 15 %.

    Raises:
        ValueError: an attribute that there is not, or a `variety` outside [0, 1].
    """

    color: str
    object: str
    motion: str
    background: str
    seed: int = 0
    variety: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("color", COLORS), ("object", OBJECTS), ("motion", MOTIONS), ("background", BACKGROUNDS)):
            value = vars(self)[name]
            if value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}")
        if not 0 <= self.variety <= 1:
            raise ValueError(f"`variety` must be in [0, 1], got {self.variety}")

    @property
    def is_held_out(self) -> bool:
        """Whether this combination of colour, object and motion is kept from training; every pair of them is not."""
        places = (list(COLORS).index(self.color), list(OBJECTS).index(self.object), list(MOTIONS).index(self.motion))
        return self.color in _HELD_OUT_COLORS and sum(places) % _HELD_OUT_EVERY == 0

    def prompts(self) -> list[str]:
        """Returns all texts that the grammar has for the scene, the plainest first."""
        phrases = product(OBJECTS[self.object], _MOTION_PHRASES[self.motion], _BACKGROUND_PHRASES[self.background])
        article = "an" if self.color[0] in "aeiou" else "a"
        return [f"{article} {self.color} {name} {motion} {background}" for name, motion, background in phrases]

    def render(self, num_frames: int, height: int = 192, width: int = 320) -> np.ndarray:
        """Draws the clip.

        Args:
            num_frames (`int`): frames, 24 a second.
            height, width (`int`, *optional*, default to 192, 320): pixels.

        Returns:
            `np.ndarray`: uint8 `[num_frames, height, width, 3]`.

        Raises:
            ValueError: a size or number of frames that is not positive.
        """
        if min(num_frames, height, width) < 1:
            raise ValueError(f"`num_frames`, `height`, `width` must be positive, got {num_frames}, {height}, {width}")
        offset, size, pace = self._layout()
        radius = _RADIUS * size * height
        background = _bytes(BACKGROUNDS[self.background](height, width))
        frames = np.tile(background, (num_frames, 1, 1, 1))
        for number, frame in enumerate(frames):
            way = (number / (CROSSING_FRAMES - 1) - 0.5) * pace * _TRAVEL[self.motion] * height
            column, row = (
                side / 2 + step * way + shift * height
                for side, step, shift in zip((width, height), MOTIONS[self.motion], offset, strict=True)
            )
            _draw(frame, self.object, COLORS[self.color], row, column, radius)
        return frames

    def _layout(self) -> tuple[np.ndarray, float, float]:
        """The middle of the way (columns and rows off the centre, of the height), and factors of size and pace."""
        drawn = self.variety * np.random.default_rng(self.seed).uniform(-1, 1, 4)
        return 0.1 * drawn[:2], 1 + 0.15 * drawn[2], 1 + 0.15 * drawn[3]


def all_scenes(held_out: bool) -> list[Scene]:
    """Returns every combination in which the object can be seen, of the training or of the held-out split."""
    combinations = product(COLORS, OBJECTS, MOTIONS, BACKGROUNDS)
    scenes = [Scene(*combination) for combination in combinations if (combination[0], combination[3]) not in _HIDDEN]
    return [scene for scene in scenes if scene.is_held_out == held_out]


@dataclass(frozen=True)
class Recoloring:
    """A scene in a colour that no word names, as a sum of the pictures of scenes that differ in their colour alone.

    Args:
        scenes (list of [`Scene`]): what is summed.
        weights (list of `float`): of each; they sum to 1.
        color (`str`): a stand-in for the colour's name.
    """

    scenes: list[Scene]
    weights: list[float]
    color: str

    def prompts(self) -> list[str]:
        """Returns the scene's texts, with the stand-in for the colour."""
        article = f"a {self.color} "
        return [article + text.split(" ", 2)[2] for text in self.scenes[0].prompts()]


def nameless_colors(number: int) -> dict[str, np.ndarray]:
    """Draws colours, RGB in [0, 1], that are far from all named ones: the same ones each time."""
    rng, named = np.random.default_rng(7), np.array(list(COLORS.values()))
    found: list[np.ndarray] = []
    while len(found) < number:
        color = rng.uniform(0.05, 0.97, 3)
        if np.ptp(color) > 0.3 and np.abs(named - color).sum(axis=1).min() > 0.3:
            found.append(color)
    return {f"nameless{index}": color for index, color in enumerate(found)}


def recolorings(scenes: Iterable[Scene], number: int, largest_weight: float = 1.6) -> list[Recoloring]:
    """Repaints scenes in nameless colours, so that a network cannot learn by heart which colour goes with what.

    A picture of a scene depends on its object's colour linearly (where light does not clip it), so any colour is a sum
    of scenes in the colours that there are. No combination that `scenes` lacks is made.

    Args:
        scenes (iterable of [`Scene`]): the training scenes.
        number (`int`): of nameless colours.
        largest_weight (`float`, *optional*, defaults to 1.6): what would need larger weights is left out.
    """
    families: dict[tuple[str, str, str], list[Scene]] = {}
    for scene in scenes:
        families.setdefault((scene.object, scene.motion, scene.background), []).append(scene)
    found = []
    for family, (name, color) in product(families.values(), nameless_colors(number).items()):
        system = np.array([(*COLORS[scene.color], 1.0) for scene in family]).T
        wanted = np.append(color, 1.0)
        weights = np.linalg.pinv(system) @ wanted
        if np.abs(weights).max() < largest_weight and np.abs(system @ weights - wanted).max() < 0.03:
            found.append(Recoloring(family, weights.tolist(), name))
    return found


def vocabulary() -> list[str]:
    """Returns the words of all prompts, sorted."""
    texts = (text for held_out in (False, True) for scene in all_scenes(held_out) for text in scene.prompts())
    return sorted({word for text in texts for word in text.split()})


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.rint(picture * 255).astype(np.uint8)


def _draw(
    frame: np.ndarray, name: str, color: tuple[float, float, float], row: float, column: float, radius: float
) -> None:
    """Draws an object with smooth edges, lit from above, into a frame; what lies outside of it is left out."""
    reach = 1.3 * radius + 1
    rows, columns = (
        np.arange(max(0, int(center - reach)), min(side, int(center + reach) + 1))
        for center, side in zip((row, column), frame.shape, strict=False)
    )
    if not len(rows) or not len(columns):
        return
    # from the middle of the object to the middles of the pixels, in radii
    x, y = (columns[None] + 0.5 - column) / radius, (rows[:, None] + 0.5 - row) / radius
    share = np.clip(0.5 - _distance(name, x, y) * radius / max(_SOFTNESS * radius, 1), 0, 1)[..., None]
    cover = share * share * (3 - 2 * share)
    light = 1.0 - 0.14 * np.clip(y, -1, 1) * np.ones_like(x)
    if name == "ball":
        light = 0.8 + 0.5 * np.exp(-1.8 * ((x + 0.35) ** 2 + (y + 0.4) ** 2))
    paint = np.clip(np.array(color) * light[..., None], 0, 1)
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    behind = frame[window] / 255
    frame[window] = _bytes(behind + cover * (paint - behind))


def _distance(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to an object's outline, negative inside; all objects have about the same area."""
    if name == "ball":
        return np.hypot(x, y) - 1
    if name == "square":
        corner = 0.12
        beyond = [np.abs(axis) - (0.9 - corner) for axis in (x, y)]
        outside = np.hypot(np.maximum(beyond[0], 0), np.maximum(beyond[1], 0))
        return outside + np.minimum(np.maximum(*beyond), 0) - corner
    if name == "triangle":
        angles, radii = np.arange(3) * 2 * np.pi / 3, np.full(3, 1.25)
    else:
        angles, radii = np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.56, 1.25)
    return _distance_to_polygon(x, y, np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1))


def _distance_to_polygon(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    points = np.stack(np.broadcast_arrays(x, y), axis=-1)
    nearest, inside = np.full(points.shape[:2], np.inf), np.zeros(points.shape[:2], bool)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edge, to_point = end - start, points - start
        along = np.clip((to_point @ edge) / (edge @ edge), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(to_point - along[..., None] * edge, axis=-1))
        # a point is inside if a ray from it to the right crosses an odd number of edges
        crosses = (start[1] > points[..., 1]) != (end[1] > points[..., 1])
        at = start[0] + (points[..., 1] - start[1]) * edge[0] / (edge[1] if edge[1] else 1.0)
        inside ^= crosses & (points[..., 0] < at)
    return np.where(inside, -nearest, nearest)


def _canvas(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels' middles, in heights of the frame."""
    return (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None] + 0.5) / height


def _blend(low: tuple[float, ...], high: tuple[float, ...], share: np.ndarray) -> np.ndarray:
    return np.array(low) + np.clip(share, 0, 1)[..., None] * (np.array(high) - np.array(low))


def _grass(height: int, width: int) -> np.ndarray:
    y, x = _canvas(height, width)
    waves = 0.14 * np.sin(19 * x + 2.5 * np.sin(5 * y)) * np.sin(27 * y + 1.5 * np.sin(7 * x))
    return _blend((0.40, 0.52, 0.31), (0.24, 0.36, 0.18), y + waves)


def _sky(height: int, width: int) -> np.ndarray:
    y, x = _canvas(height, width)
    frame = _blend((0.50, 0.64, 0.76), (0.72, 0.80, 0.85), y + 0 * x)
    for row, column, size in ((0.20, 0.35, 0.16), (0.30, 1.30, 0.20), (0.72, 0.75, 0.22)):
        cloud = np.exp(-(((x - column) / (2 * size)) ** 2) - ((y - row) / (0.6 * size)) ** 2)
        frame = frame + 0.85 * cloud[..., None] * (np.array((0.93, 0.94, 0.95)) - frame)
    return frame


def _water(height: int, width: int) -> np.ndarray:
    y, x = _canvas(height, width)
    waves = 0.5 + 0.3 * np.sin(34 * y + 1.6 * np.sin(4 * x) + 0.8 * np.sin(11 * x)) - 0.35 * (y - 0.5)
    return _blend((0.22, 0.38, 0.45), (0.42, 0.58, 0.63), waves)


def _sand(height: int, width: int) -> np.ndarray:
    y, x = _canvas(height, width)
    dunes = 0.5 + 0.4 * np.sin(13 * y + 2.2 * np.sin(2.6 * x + 1.0))
    return _blend((0.66, 0.57, 0.46), (0.82, 0.74, 0.62), dunes)


def _wood(height: int, width: int) -> np.ndarray:
    y, x = _canvas(height, width)
    grain = 0.5 + 0.3 * np.sin(41 * y + 1.2 * np.sin(3.1 * x + 9 * y))
    seams = np.exp(-((((4 * y + 0.5) % 1 - 0.5) / 0.05) ** 2))
    return _blend((0.40, 0.30, 0.22), (0.54, 0.42, 0.32), grain) * (1 - 0.45 * seams[..., None])


def _night(height: int, width: int) -> np.ndarray:
    y, x = _canvas(height, width)
    frame = _blend((0.05, 0.06, 0.15), (0.13, 0.14, 0.24), y + 0 * x)
    stars = ((0.20, 0.25, 0.8), (0.32, 1.35, 0.9), (0.60, 0.50, 0.6), (0.75, 1.20, 0.7), (0.15, 0.85, 0.7))
    for row, column, brightness in stars:
        glow = brightness * np.exp(-((x - column) ** 2 + (y - row) ** 2) / 0.03**2)
        frame = frame + 0.8 * glow[..., None] * (1 - frame)
    return frame


BACKGROUNDS: dict[str, Callable[[int, int], np.ndarray]] = {
    "grass": _grass,
    "sky": _sky,
    "water": _water,
    "sand": _sand,
    "wood": _wood,
    "night": _night,
}


def drawing_fingerprint() -> str:
    """Tells apart latents of scenes that were drawn otherwise: a hash of some of their pictures."""
    digest = hashlib.sha256()
    for scene in all_scenes(held_out=False)[::37]:
        digest.update(scene.render(1, 48, 80).tobytes())
    return digest.hexdigest()[:16]


def captioned_clips(
    scenes: list[Scene], num_frames: int, height: int = 192, width: int = 320
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Renders scenes one after the other, each with its texts; see [`Scene.render`]."""
    for scene in scenes:
        yield scene.render(num_frames, height, width), scene.prompts()
