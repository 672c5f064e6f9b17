# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A calm little world: one or two things under a sky, in front of hills, that move for ever, and texts that say so.

A text names some of it; all that it leaves open follows from a seed code, a vector of normal values, and from the
clock of [`~ultraflash_diffusers.models.seed_code.SeedCodeEmbedding`]. So text, code and time determine each frame, and
a network that is given them has nothing to average over. All values are continuous in the code: where it chooses
between skies or colours, neighbours blend into each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .world_picture import GROUNDS, SKIES, Picture, Window
from .world_things import COLORS, KINDS, MOTIONS, Array

CODE_SIZE = 42
ANCHORS, RIDGES, LOOKS = 5, 3, 33

PERIOD = 144  # frames after which a captioned clip begins anew
_TEXTS = 4  # drawn for each of them

_KINDS = {"ball": ("ball", "sphere"), "cube": ("cube", "box"), "cone": ("cone",)}
_MOTIONS = {
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
_GROUNDS = {
    "grass": ("over grass", "on grass", "on green grass", "on a meadow", "over a meadow"),
    "sand": ("over sand", "on sand", "in the desert", "on a beach"),
    "snow": ("over snow", "on snow", "in the snow", "on ice"),
    "water": ("over water", "on water", "on the sea", "over the sea"),
}
_SKIES = {
    "day": ("by day", "under a blue sky", "on a sunny day", "in the sun"),
    "sunset": ("at sunset", "in the evening", "at dusk", "at dawn"),
    "night": ("at night", "under the stars", "in the moonlight", "under the moon"),
    "cloudy": ("on a cloudy day", "under clouds", "under a grey sky"),
}
_PHRASES: tuple[Mapping[str, tuple[str, ...]], ...] = (_KINDS, _MOTIONS, _GROUNDS, _SKIES)


@dataclass(frozen=True)
class WorldThing:
    """What a text says of a thing.

    Args:
        kind (`str`): one of `KINDS`.
        color, motion (`str`, *optional*): one of `COLORS`, `MOTIONS`; chosen by the code where `None`.
    """

    kind: str
    color: str | None = None
    motion: str | None = None


@dataclass(frozen=True)
class WorldScene:
    """What a text says, and the code that settles the rest.

    Args:
        code (`np.ndarray`): `[CODE_SIZE]`, normal values; the first two are the clock's start and pace.
        things (`tuple[WorldThing, ...]`): one or two; the first is the nearer.
        ground, sky (`str`, *optional*): one of `GROUNDS`, `SKIES`; chosen by the code where `None`.
    """

    code: Array
    things: tuple[WorldThing, ...]
    ground: str | None = None
    sky: str | None = None

    def text(self, rng: np.random.Generator) -> str:
        """Draws one of the texts that say this."""

        def phrase(options: Mapping[str, tuple[str, ...]], name: str | None) -> list[str]:
            return [] if name is None else [options[name][min(int(rng.exponential(1.2)), len(options[name]) - 1)]]

        words: list[str] = []
        for thing in self.things:
            named = " ".join([*([thing.color] if thing.color else []), *phrase(_KINDS, thing.kind)])
            words += ["and"] if words else []
            words += ["an" if named[0] in "aeiou" else "a", named, *phrase(_MOTIONS, thing.motion)]
        return " ".join([*words, *phrase(_GROUNDS, self.ground), *phrase(_SKIES, self.sky)])

    def anchors(self, phases: Array) -> Array:
        """Returns `[phases, ANCHORS, 3]`: both things, their shadows, and the sun.

        See [`~models.seed_code.SeedPlaces`]. A second thing that is not there has a place all the same.
        """
        return np.array([self._facts.anchors(float(phase)) for phase in phases])

    def ridges(self) -> Array:
        """Returns `[RIDGES, 5]`: far and near hills, and the horizon, see [`~models.seed_code.SeedPlaces`]."""
        return self._facts.ridges()

    def looks(self) -> Array:
        """Returns `[LOOKS]`, in [0, 1]: what text and code choose together.

        Sky, ground, whether there is a second thing, and for each the shares of motions, its kind and its colour.
        """
        return self._facts.looks()

    def render(self, phases: Array, height: int = 192, width: int = 320, window: Window | None = None) -> Array:
        """Draws frames.

        Args:
            phases (`np.ndarray`): for each frame, how much of the clock's period has passed; only its fraction counts.
            height, width (`int`, *optional*, default to 192, 320): pixels.
            window (`tuple[slice, slice]`, *optional*): rows and columns that are wanted; all by default.

        Returns:
            `np.ndarray`: float32 `[frames, height, width, 3]` in [0, 1], of the window if there is one.
        """
        return self._picture(height, width, window).frames(phases)

    @cached_property
    def _facts(self) -> Picture:
        """What holds at any size."""
        return self._picture(0, 0)

    def _picture(self, height: int, width: int, window: Window | None = None) -> Picture:
        specs = [(thing.kind, thing.color, thing.motion) for thing in self.things]
        return Picture(self.code, specs, self.ground, self.sky, height, width, window)


def draw_scene(rng: np.random.Generator) -> WorldScene:
    """Draws a scene of one or two things; a text names colour, motion, ground and sky, each most of the time."""

    def name(options: Iterable[str], share: float) -> str | None:
        return str(rng.choice(list(options))) if rng.random() < share else None

    count = 1 + int(rng.random() < 0.5)
    return WorldScene(
        code=rng.standard_normal(CODE_SIZE),
        things=tuple(
            WorldThing(str(rng.choice(list(KINDS))), name(COLORS, 0.95), name(MOTIONS, 0.9)) for _ in range(count)
        ),
        ground=name(GROUNDS, 0.8),
        sky=name(SKIES, 0.6),
    )


def vocabulary() -> list[str]:
    """Returns the words of all texts, sorted."""
    phrases = [phrase for group in _PHRASES for options in group.values() for phrase in options]
    return sorted({"a", "an", "and", *COLORS, *(word for phrase in phrases for word in phrase.split())})


def captioned_scenes(
    count: int, seed: int, num_frames: int, height: int, width: int
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Draws scenes and films each for a while.

    Args:
        count, seed (`int`): how many, and which ones.
        num_frames, height, width (`int`): of each clip.

    Yields:
        `tuple[np.ndarray, list[str]]`: frames, uint8 `[num_frames, height, width, 3]`, and texts that describe them.
    """
    rng = np.random.default_rng((seed, 3))
    for _ in range(count):
        scene = draw_scene(rng)
        phases = rng.random() + np.arange(num_frames) / PERIOD
        texts = sorted({scene.text(rng) for _ in range(_TEXTS)})
        yield np.rint(255 * scene.render(phases, height, width)).astype(np.uint8), texts


def drawing_fingerprint() -> str:
    """Tells apart latents of scenes that were drawn otherwise: a hash of some of their pictures."""
    digest = hashlib.sha256()
    for frames, texts in captioned_scenes(20, 0, 1, 48, 80):
        digest.update(frames.tobytes() + repr(texts).encode())
    return digest.hexdigest()[:16]
