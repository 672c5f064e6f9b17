# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Tools that draw pictures by code: a page of text and lines, a frame of a drawn film, and film grain.

Pages and frames are drawn at four times their size and brought down by area, so that edges are clean wherever they
lie. Fonts: Aileron (CC0), which Pillow brings, and DejaVu (Bitstream Vera's licence, which allows any use), which
matplotlib brings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...pixels import LUMA

Color = tuple[int, int, int]
Points = np.ndarray | Sequence[tuple[float, float]]

OVERSAMPLING = 4
PAGE_LINES = 384  # of a frame that sizes on a page are for
FONTS: tuple[str, ...] = ("Aileron", "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique")
FONTS += ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSansMono", "DejaVuSansMono-Bold")
INK = (34, 26, 40)
_FRACTION_BITS = 4


def area_resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each output pixel is the mean of the area that it covers."""
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


@lru_cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if name == "Aileron":
        return ImageFont.load_default(size)
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


class Page:
    """A page that is drawn on at four times its size; places and sizes are in pixels of a frame of 384 lines.

    Args:
        height, width (`int`): of the page, in pixels of the frame that it is shown in.
        lines (`int`): rows of that frame.
        paper (`tuple`): colour, as all others R, G, B in [0, 255].
    """

    def __init__(self, height: int, width: int, lines: int, paper: Color) -> None:
        self.unit = OVERSAMPLING * lines / PAGE_LINES
        self.image = Image.new("RGB", (OVERSAMPLING * width, OVERSAMPLING * height), paper)
        self.draw = ImageDraw.Draw(self.image)
        self.height, self.width = height * PAGE_LINES / lines, width * PAGE_LINES / lines

    def text(
        self,
        place: tuple[float, float],
        words: str,
        size: float,
        color: Color,
        font: str = "DejaVuSans",
        anchor: str = "ls",
    ) -> float:
        """Sets a line of text; returns its width."""
        loaded = _font(font, max(1, round(size * self.unit)))
        self.draw.text(self._at(place), words, fill=color, font=loaded, anchor=anchor)
        return self.measure(words, size, font)

    def measure(self, words: str, size: float, font: str = "DejaVuSans") -> float:
        """Width of a line of text."""
        return self.draw.textlength(words, font=_font(font, max(1, round(size * self.unit)))) / self.unit

    def line(self, points: list[tuple[float, float]], color: Color, width: float = 1.0) -> None:
        thickness = max(1, round(width * self.unit))
        self.draw.line([self._at(point) for point in points], fill=color, width=thickness, joint="curve")

    def box(self, corners: tuple[float, float, float, float], color: Color) -> None:
        self.draw.rectangle([*self._at(corners[:2]), *self._at(corners[2:])], fill=color)

    def polygon(self, points: list[tuple[float, float]], color: Color) -> None:
        self.draw.polygon([self._at(point) for point in points], fill=color)

    def paste(self, pixels: np.ndarray) -> None:
        """Covers the page with a picture, uint8 `[h, w, 3]` of any size."""
        self.image.paste(Image.fromarray(pixels).resize(self.image.size, Image.Resampling.BILINEAR))

    def pixels(self) -> np.ndarray:
        """uint8 `[4 height, 4 width, 3]`."""
        return np.asarray(self.image)

    def _at(self, place: tuple[float, ...]) -> tuple[int, int]:
        return round(place[0] * self.unit), round(place[1] * self.unit)


class Cel:
    """A frame of a drawn film: flat colours with outlines, at four times its size with sixteenths of a pixel there.

    Places are in units of the frame's height, from its middle: y from -0.5 at the top to 0.5, x to the right.

    Args:
        height, width (`int`): of the frame.
        paper (`tuple`): colour, R, G, B in [0, 255].
    """

    def __init__(self, height: int, width: int, paper: Color) -> None:
        self.height, self.width = height, width
        self.picture = np.full((OVERSAMPLING * height, OVERSAMPLING * width, 3), paper, np.uint8)

    def shape(self, points: Points, fill: Color | None, outline: float = 0.006, ink: Color = INK) -> None:
        """A closed shape `[n, 2]`, filled, and its outline of this width."""
        corners = self._corners(points)
        if fill is not None:
            cv2.fillPoly(self.picture, [corners], fill, cv2.LINE_8, _FRACTION_BITS)
        if outline:
            cv2.polylines(self.picture, [corners], True, ink, self._width(outline), cv2.LINE_8, _FRACTION_BITS)

    def line(self, points: Points, width: float = 0.006, ink: Color = INK) -> None:
        """An open line through points `[n, 2]`."""
        cv2.polylines(
            self.picture, [self._corners(points)], False, ink, self._width(width), cv2.LINE_8, _FRACTION_BITS
        )

    def frame(self) -> np.ndarray:
        """uint8 `[height, width, 3]`."""
        return area_resize(self.picture, self.height, self.width)

    def _width(self, width: float) -> int:
        return max(1, round(width * OVERSAMPLING * self.height))

    def _corners(self, points: Points) -> np.ndarray:
        scale = OVERSAMPLING * self.height * 2**_FRACTION_BITS
        middle = np.array([self.width / self.height / 2, 0.5])
        return np.rint((np.asarray(points, float) + middle) * scale).astype(np.int32)


def smooth(points: Points, closed: bool = True, steps: int = 10) -> np.ndarray:
    """A curve through points (Catmull-Rom), `[n, 2]`."""
    knots = np.asarray(points, float)
    padded = np.concatenate([knots[-1:], knots, knots[:2]] if closed else [knots[:1], knots, knots[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    parts = []
    for a, b, c, d in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True):
        parts.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate(parts if closed else [*parts, knots[-1:]])


def oval(x: float, y: float, wide: float, high: float, turn: float = 0.0) -> np.ndarray:
    """An ellipse by its middle and half axes, turned by so many radians."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    flat = np.stack([wide * np.cos(angles), high * np.sin(angles)], axis=1)
    return flat @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + [x, y]


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def with_grain(frames: np.ndarray, rng: np.random.Generator, levels: float = 8.0, softness: float = 1.0) -> np.ndarray:
    """Monochrome film grain, other grain in each frame, strongest in middle tones and none in black or white.

    Args:
        frames (`np.ndarray`): uint8 `[frames, height, width, 3]`.
        rng (`np.random.Generator`): draws the grain.
        levels (`float`, *optional*, defaults to 8): standard deviation in middle tones.
        softness (`float`, *optional*, defaults to 1): sigma of the blur that makes grains, in pixels.
    """
    shown = []
    for frame in frames:
        noise = cv2.GaussianBlur(rng.standard_normal(frame.shape[:2]).astype(np.float32), (0, 0), softness)
        tone = frame @ np.array(LUMA, np.float32) / 255
        strength = levels * 2 * np.sqrt(tone * (1 - tone)) / noise.std()
        shown.append(np.clip(np.rint(frame + (strength * noise)[..., None]), 0, 255).astype(np.uint8))
    return np.stack(shown)
