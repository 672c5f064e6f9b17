# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One picture of all kinds and methods: the same crop of each, enlarged without smoothing, with names and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.metrics import luma

CROP, ZOOM = 96, 3
_GAP, _HEAD, _FOOT, _MARGIN, _CAPTION = 8, 52, 34, 190, 26
_PAPER, _INK, _FAINT, _OURS = (250, 250, 248), (28, 30, 34), (110, 114, 122), (16, 96, 176)


@dataclass(frozen=True)
class Tile:
    """A picture of a row.

    Args:
        pixels (`np.ndarray`): uint8 RGB `[CROP, CROP, 3]`, or smaller by a whole factor.
        caption (`str`): stands under it.
    """

    pixels: np.ndarray
    caption: str = ""


@dataclass(frozen=True)
class Row:
    """What one kind looks like.

    Args:
        kind (`str`): its name.
        clip (`str`): which of its clips is shown.
        tiles: pictures by column's name.
    """

    kind: str
    clip: str
    tiles: Mapping[str, Tile]


def most_detailed_crop(frame: np.ndarray) -> tuple[slice, slice]:
    """The CROP x CROP part of a frame with the strongest Laplacian, from even rows and columns."""
    energy = cv2.boxFilter(cv2.Laplacian(luma(frame), cv2.CV_32F) ** 2, -1, (CROP, CROP))
    half = CROP // 2
    place = np.unravel_index(np.argmax(energy[half:-half, half:-half]), np.subtract(energy.shape, 2 * half))
    top, left = (int(each) // 2 * 2 for each in place)
    return slice(top, top + CROP), slice(left, left + CROP)


def draw(rows: Sequence[Row], ours: str) -> Image.Image:
    """One row a kind, one column a method, in the order of the first row's tiles.

    Args:
        rows (sequence of `Row`): with the same columns.
        ours (`str`): the column that stands out.
    """
    side, names = CROP * ZOOM, list(rows[0].tiles)
    step, drop = side + _GAP, side + _CAPTION + _GAP
    sheet = Image.new("RGB", (_MARGIN + len(names) * step, _HEAD + len(rows) * drop + _FOOT), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        middle = _MARGIN + column * step + side // 2
        pen.text((middle, _HEAD - 14), name, _OURS if name == ours else _INK, ImageFont.load_default(20), "ms")
    for index, row in enumerate(rows):
        top = _HEAD + index * drop
        bright = _brightening(row)
        pen.text((16, top + 8), row.kind.replace("_", "\n"), _INK, ImageFont.load_default(26))
        notes = row.clip if bright == 1 else f"{row.clip}\nshown brighter"
        pen.text((16, top + 84), notes, _FAINT, ImageFont.load_default(16))
        for column, name in enumerate(names):
            left, tile = _MARGIN + column * step, row.tiles[name]
            sheet.paste(_enlarged(tile.pixels, side, bright), (left, top))
            if name == ours:
                pen.rectangle((left - 2, top - 2, left + side + 1, top + side + 1), outline=_OURS, width=3)
            place = (left + side // 2, top + side + 18)
            pen.text(place, tile.caption, _OURS if name == ours else _FAINT, ImageFont.load_default(16), "ms")
    note = (
        f"{CROP}x{CROP} pixels of the middle frame, enlarged {ZOOM} times without smoothing; figures are the clip's."
    )
    pen.text((_MARGIN, sheet.height - 14), note, _FAINT, ImageFont.load_default(16), "ls")
    return sheet


def _brightening(row: Row) -> float:
    """What the levels of a row of the dark kind are multiplied by, so that one sees something."""
    if row.kind != "dark":
        return 1.0
    truth = list(row.tiles.values())[-1].pixels
    return max(1.0, float(255 / max(1.0, np.percentile(truth, 99.5))))


def _enlarged(pixels: np.ndarray, side: int, bright: float) -> Image.Image:
    shown = np.clip(np.rint(pixels * bright), 0, 255).astype(np.uint8)
    return Image.fromarray(shown).resize((side, side), Image.Resampling.NEAREST)
