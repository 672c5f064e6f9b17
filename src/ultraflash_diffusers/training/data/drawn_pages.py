# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training clips of text and lines: pages of made-up words, tables and charts, filmed by a camera that moves or rests.

All is random: letters, fonts, sizes, colours, layout and movement.
"""

from __future__ import annotations

import string
from collections.abc import Callable

import cv2
import numpy as np

from ...pixels import LUMA
from .drawing import FONTS, OVERSAMPLING, Color, Page, area_resize, oval, smooth

Corners = tuple[float, float, float, float]  # left, top, right, bottom
_ALPHABETS: tuple[str, ...] = (string.ascii_lowercase, "aeiounrstlaeiounrst" + string.ascii_lowercase)
# Aileron has none of these
_ACCENTED = ("abcdefghijklmnoäöüßéèçñåøœ",)
_OTHER_ALPHABETS = ("αβγδεζηθικλμνξοπρστυφχψω", "абвгдежзиклмнопрстуфхцчшщыэюя")
_READABLE = 75.0  # levels between ink and paper


def moving_text(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A page under a camera that glides by 0.2 to 4 pixels a frame, and in a third of cases turns and zooms.

    Args:
        frames, height, width (`int`): of the clip.
        rng (`np.random.Generator`): draws everything.

    Returns:
        `np.ndarray`: uint8 `[frames, height, width, 3]`.
    """
    speed = np.exp(rng.uniform(np.log(0.2), np.log(4.0))) * height / 384
    # a credit roll and a ticker more often than a direction of any angle
    angle = rng.choice(np.arange(4) * np.pi / 2) if rng.random() < 0.5 else rng.uniform(0, 2 * np.pi)
    turns = rng.random() < 0.35
    turn, zoom = (rng.normal(0, 0.5), rng.normal(0, 0.006)) if turns else (0.0, 0.0)
    tilt = rng.uniform(-20, 20) if turns else 0.0
    step = speed * np.array([np.cos(angle), np.sin(angle)])
    reach = np.abs(step) * frames + 2
    if turns:
        reach += 0.3 * max(height, width)
    page = page_of_blocks(int(height + reach[1]), int(width + reach[0]), height, rng)
    return _filmed(page, frames, height, width, step, tilt, turn, zoom)


def still_text(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A page that rests; arguments and result are [`moving_text`]'s."""
    page = area_resize(page_of_blocks(height, width, height, rng), height, width)
    return np.repeat(page[None], frames, axis=0)


def captioned(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lays lines of text, often with an edge of another colour, over a clip: at rest, or moving in a way of its own.

    Args:
        clip (`np.ndarray`): uint8 `[frames, height, width, 3]`.
        rng (`np.random.Generator`): draws words, looks and movement.
    """
    frames, height, width = clip.shape[:3]
    step = rng.uniform(-3, 3, 2) * (rng.random() < 0.5) * rng.choice([(0, 1), (1, 0)]) * height / 384
    reach = np.abs(step) * frames + 2
    page = Page(int(height + reach[1]), int(width + reach[0]), height, (0, 0, 0))
    font, size = str(rng.choice(FONTS)), float(rng.uniform(9, 34))
    y = page.height * float(rng.choice([rng.uniform(0.1, 0.6), 0.8]))
    for _ in range(int(rng.integers(1, 5))):
        words = _words_within(page, 0.9 * width * page.width / page.image.width * OVERSAMPLING, size, font, rng)
        page.text((page.width / 2, y), words, size, (255, 255, 255), font, "ms")
        y += 1.3 * size
    paper, ink = _paper_and_ink(rng)
    letters = page.pixels()
    edge = round(float(rng.uniform(0.5, 2.0)) * page.unit)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * edge + 1, 2 * edge + 1))
    edged = cv2.dilate(letters, kernel) if rng.random() < 0.7 else letters
    masks = (_filmed(layer, frames, height, width, step) / 255 for layer in (edged, letters))
    shown = clip.astype(np.float32)
    for mask, color in zip(masks, (paper, ink), strict=True):
        shown += mask * (np.array(color) - shown)
    return np.rint(shown).astype(np.uint8)


def page_of_blocks(height: int, width: int, lines: int, rng: np.random.Generator) -> np.ndarray:
    """A page, cut at random into blocks of text, tables, charts and labels, at four times its size.

    Args:
        height, width (`int`): of the page, in pixels of the frame that it is shown in.
        lines (`int`): rows of that frame.
        rng (`np.random.Generator`): draws everything.

    Returns:
        `np.ndarray`: uint8 `[4 height, 4 width, 3]`.
    """
    paper, ink = _paper_and_ink(rng)
    page = Page(height, width, lines, paper)
    if rng.random() < 0.3:
        page.paste(gradient(64, 64, paper, _near(paper, rng, 40), rng))
    if rng.random() < 0.25:
        for _ in range(int(rng.integers(2, 10))):
            x, y, size = rng.uniform(0, page.width), rng.uniform(0, page.height), rng.uniform(20, 160)
            corners = [(x + a, y + b) for a, b in rng.uniform(-size, size, (int(rng.integers(3, 7)), 2))]
            round_ = rng.random() < 0.5
            page.polygon(
                _plain(oval(x, y, size, size * rng.uniform(0.3, 1)) if round_ else corners), _near(paper, rng)
            )
    _fill(page, (0.0, 0.0, page.width, page.height), paper, ink, rng)
    return page.pixels()


def gradient(height: int, width: int, start: Color, end: Color, rng: np.random.Generator) -> np.ndarray:
    """A straight gradient of a random direction between two colours: uint8 `[height, width, 3]`."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.cos(angle) * x / width + np.sin(angle) * y / height
    ramp = ((ramp - ramp.min()) / np.ptp(ramp))[..., None]
    return np.rint(np.array(start) * (1 - ramp) + np.array(end) * ramp).astype(np.uint8)


def _filmed(
    canvas: np.ndarray,
    frames: int,
    height: int,
    width: int,
    step: np.ndarray,
    tilt: float = 0.0,
    turn: float = 0.0,
    zoom: float = 0.0,
) -> np.ndarray:
    """A camera's view of a canvas, in whose middle it is halfway; degrees and shares a frame."""
    shown = []
    for t in np.arange(frames) - (frames - 1) / 2:
        middle = np.array([canvas.shape[1], canvas.shape[0]]) / 2 - 0.5
        matrix = cv2.getRotationMatrix2D(tuple(middle), tilt + turn * t, np.exp(zoom * t))
        view = np.array([width, height]) * OVERSAMPLING
        matrix[:, 2] += view / 2 - 0.5 - middle + OVERSAMPLING * step * t
        big = cv2.warpAffine(canvas, matrix, view.tolist(), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        shown.append(area_resize(big, height, width))
    return np.stack(shown)


def _fill(page: Page, place: Corners, paper: Color, ink: Color, rng: np.random.Generator) -> None:
    """Cuts a place in two, again and again, and draws a block in each part."""
    left, top, right, bottom = place
    wide, high = right - left, bottom - top
    if max(wide, high) > 130 and rng.random() < min(0.95, wide * high / 110_000):
        share = float(rng.uniform(0.3, 0.7))
        if wide * rng.uniform(0.6, 1.4) > high:
            middle = left + share * wide
            parts = [(left, top, middle, bottom), (middle, top, right, bottom)]
        else:
            middle = top + share * high
            parts = [(left, top, right, middle), (left, middle, right, bottom)]
        for part in parts:
            _fill(page, part, paper, ink, rng)
        return
    if rng.random() < 0.3:
        paper, ink = _paper_and_ink(rng)
        page.box((left + 2, top + 2, right - 2, bottom - 2), paper)
    if rng.random() < 0.25:
        edges = [(left + 3, top + 3), (right - 3, top + 3), (right - 3, bottom - 3), (left + 3, bottom - 3)]
        page.line([*edges, edges[0]], _near(ink, rng), float(rng.uniform(0.5, 2)))
    inside = (left + 8, top + 6, right - 8, bottom - 6)
    block = _BLOCKS[int(rng.choice(len(_BLOCKS), p=_SHARES))]
    block(page, inside, paper, ink, rng)


def _paragraph(page: Page, place: Corners, paper: Color, ink: Color, rng: np.random.Generator) -> None:
    left, top, right, bottom = place
    size, font = _size(rng), str(rng.choice(FONTS))
    y, leading, mixed = top + size, float(rng.uniform(1.15, 1.6)), rng.random() < 0.25
    aligned = str(rng.choice(["ls", "ls", "ls", "ms", "rs"]))
    x = {"l": left, "m": (left + right) / 2, "r": right}[aligned[0]]
    while y < bottom:
        color = _readable(paper, rng) if mixed else ink
        page.text((x, y), _words_within(page, right - left, size, font, rng), size, color, font, aligned)
        if rng.random() < 0.08:
            page.line([(left, y + 0.2 * size), (right, y + 0.2 * size)], ink, float(rng.uniform(0.5, 1.5)))
        y += leading * size
        if rng.random() < 0.15:
            y += size
            size, font = (_size(rng), str(rng.choice(FONTS))) if rng.random() < 0.4 else (size, font)


def _listing(page: Page, place: Corners, paper: Color, ink: Color, rng: np.random.Generator) -> None:
    """Indented lines whose words have colours."""
    left, top, right, bottom = place
    size, font = float(rng.uniform(8, 15)), str(rng.choice(["DejaVuSansMono", "DejaVuSansMono", *FONTS]))
    colors = [ink, *(_readable(paper, rng) for _ in range(4))]
    y, number = top + size, int(rng.integers(1, 900))
    while y < bottom:
        page.text((left, y), str(number), size, colors[-1], font)
        x = left + (2.5 + 1.5 * int(rng.integers(0, 4))) * size
        for _ in range(int(rng.integers(0, 7))):
            word = _word(rng, font) + " "
            if x + page.measure(word, size, font) > right:
                break
            x += page.text((x, y), word, size, colors[int(rng.integers(0, len(colors)))], font)
        y, number = y + 1.3 * size, number + 1


def _table(page: Page, place: Corners, paper: Color, ink: Color, rng: np.random.Generator) -> None:
    left, top, right, bottom = place
    size, font, rule = float(rng.uniform(8, 16)), str(rng.choice(FONTS)), float(rng.uniform(0.5, 1.6))
    columns = max(1, int((right - left) / (size * rng.uniform(4, 7))))
    row, y, thin = size * float(rng.uniform(1.3, 1.9)), top, _between(paper, ink, 0.5)
    upright = rng.random() < 0.5
    while y + row < bottom:
        if rng.random() < 0.15:
            page.box((left, y, right, y + row), _between(paper, ink, 0.15))
        page.line([(left, y), (right, y)], thin, rule)
        for column in range(columns):
            x = left + (right - left) * column / columns
            if upright:
                page.line([(x, y), (x, y + row)], thin, rule)
            cell = _word(rng, font)[:8] if column == 0 else f"{rng.normal(0, 50):.{int(rng.integers(0, 3))}f}"
            if x + 3 + page.measure(cell, size, font) < right:
                page.text((x + 3, y + 0.5 * (row + 0.7 * size)), cell, size, ink, font)
        y += row
    page.line([(left, y), (right, y)], thin, rule)


def _chart(page: Page, place: Corners, paper: Color, ink: Color, rng: np.random.Generator) -> None:
    """A grid with curves, bars or dots, and numbers at its edge."""
    left, top, right, bottom = place
    left, bottom, size = left + 24, bottom - 12, float(rng.uniform(8, 11))
    steps, pale = int(rng.integers(3, 12)), _between(paper, ink, float(rng.uniform(0.1, 0.4)))
    for step in range(steps + 1):
        x, y = left + (right - left) * step / steps, top + (bottom - top) * step / steps
        page.line([(left, y), (right, y)], pale, 0.6)
        page.line([(x, top), (x, bottom)], pale, 0.6)
        page.text((left - 3, y), f"{rng.uniform(0, 99):.0f}", size, ink, anchor="rm")
        page.text((x, bottom + size), str(step), size, ink, anchor="ms")
    bars = rng.random() < 0.3
    for _ in range(1 if bars else int(rng.integers(1, 5))):
        color, count = _readable(paper, rng), int(rng.integers(5, 40))
        values = np.clip(np.cumsum(rng.normal(0, 0.1, count)) + rng.uniform(0.2, 0.8), 0.02, 0.98)
        xs = np.linspace(left, right, count + 1)
        ys = bottom - (bottom - top) * values
        if bars:
            for x, following, y in zip(xs[:-1], xs[1:], ys, strict=True):
                page.box((x + 1, y, max(x + 1.5, following - 1), bottom), color)
        else:
            points = np.stack([xs[:-1], ys], axis=1)
            page.line(_plain(smooth(points, False) if rng.random() < 0.5 else points), color, rng.uniform(0.6, 2.5))
            for x, y in points if rng.random() < 0.3 else ():
                page.polygon(_plain(oval(x, y, 2.2, 2.2)), color)
    page.line([(left, top), (left, bottom), (right, bottom)], ink, 1.2)


def _labels(page: Page, place: Corners, paper: Color, ink: Color, rng: np.random.Generator) -> None:
    """Curves and straight lines of all widths with words here and there, as on a map or a plan."""
    left, top, right, bottom = place
    for _ in range(int(rng.integers(3, 16))):
        points = np.stack([rng.uniform(left, right, 4), rng.uniform(top, bottom, 4)], axis=1)
        color = _between(paper, _readable(paper, rng), float(rng.uniform(0.3, 1)))
        page.line(_plain(smooth(points, False) if rng.random() < 0.5 else points[:2]), color, rng.uniform(0.5, 6))
    for _ in range(int((right - left) * (bottom - top) / rng.uniform(1500, 8000))):
        font, size = str(rng.choice(FONTS)), _size(rng) * 0.8
        word = _word(rng, font, _speaks_otherwise(font, 0.2, rng))
        x = rng.uniform(left, max(left + 1, right - page.measure(word, size, font)))
        page.text((x, rng.uniform(top + size, bottom)), word, size, ink, font)


def _hatching(page: Page, place: Corners, paper: Color, ink: Color, rng: np.random.Generator) -> None:
    """Parallel lines, rings or a net, near each other."""
    left, top, right, bottom = place
    gap, wide = float(rng.uniform(3, 12)), float(rng.uniform(0.5, 2))
    x, y, reach = (left + right) / 2, (top + bottom) / 2, min(right - left, bottom - top) / 2
    if rng.random() < 0.4:
        for radius in np.arange(gap, max(reach, 2 * gap), gap):
            ring = _plain(oval(x, y, radius, radius))
            page.line([*ring, ring[0]], ink, wide)
        return
    base = rng.uniform(0, np.pi)
    for angle in (base, base + rng.uniform(0.4, 1.6))[: 1 + int(rng.random() < 0.5)]:
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        for offset in np.arange(-reach, reach, gap):
            half = np.sqrt(max(0.0, reach**2 - offset**2))
            ends = [np.array([x, y]) + offset * across + side * half * along for side in (-1, 1)]
            page.line(_plain(np.stack(ends)), ink, wide)


_BLOCKS: tuple[Callable[[Page, Corners, Color, Color, np.random.Generator], None], ...] = (
    _paragraph,
    _listing,
    _table,
    _chart,
    _labels,
    _hatching,
)
_SHARES = (0.44, 0.12, 0.14, 0.12, 0.12, 0.06)


def _word(rng: np.random.Generator, font: str, foreign: bool = False) -> str:
    if rng.random() < 0.13:
        numbers = [f"{rng.uniform(0, 1000):.2f}", str(rng.integers(0, 100_000)), f"{rng.integers(0, 99)}%"]
        return str(rng.choice(numbers))
    alphabets = _OTHER_ALPHABETS if foreign else _ALPHABETS
    if font != "Aileron":
        alphabets += _ACCENTED
    alphabet = list(alphabets[int(rng.integers(0, len(alphabets)))])
    word = "".join(rng.choice(alphabet, int(rng.integers(1, 11))))
    kind = rng.random()
    if kind < 0.2:
        word = word.capitalize()
    elif kind < 0.3:
        word = word.upper()
    elif kind < 0.36:
        rises = rng.random(len(word)) < 0.4
        word = "".join(letter.upper() if up else letter for letter, up in zip(word, rises, strict=True))
    if rng.random() < 0.2:
        word += str(rng.choice(list(".,;:!?-)]}*+=/&%$#@_'\"")))
    return str(rng.choice(list("([{<#@$\"'"))) + word if rng.random() < 0.05 else word


def _speaks_otherwise(font: str, share: float, rng: np.random.Generator) -> bool:
    """Whether words are of Greek or Cyrillic letters, where the font has them."""
    return font != "Aileron" and rng.random() < share


def _words_within(page: Page, room: float, size: float, font: str, rng: np.random.Generator) -> str:
    """As many words as a line has room for, or fewer."""
    foreign, line = _speaks_otherwise(font, 0.06, rng), ""
    while rng.random() < 0.96:
        longer = f"{line} {_word(rng, font, foreign)}".strip()
        if page.measure(longer, size, font) > room:
            break
        line = longer
    return line


def _size(rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(8), np.log(40) - (rng.random() < 0.6) * np.log(2.2))))


def _paper_and_ink(rng: np.random.Generator) -> tuple[Color, Color]:
    """Dark on light, light on dark, or two colours; often plain grey."""
    kind = rng.random()
    low, high = (205, 256) if kind < 0.4 else (0, 60) if kind < 0.7 else (0, 256)
    paper = rng.integers(low, high, 3)
    if rng.random() < 0.4:
        paper[:] = paper[0]
    color = _color(paper)
    return color, _readable(color, rng)


def _readable(paper: Color, rng: np.random.Generator) -> Color:
    """A colour whose brightness is far from the paper's."""
    while True:
        kind = rng.random()
        ink = rng.integers(0, 256, 3) if kind < 0.6 else np.full(3, rng.choice([0, 20, 40, 225, 245, 255]))
        if abs((ink - np.array(paper)) @ np.array(LUMA)) > _READABLE:
            return _color(ink)


def _near(color: Color, rng: np.random.Generator, spread: float = 18) -> Color:
    return _color(np.array(color) + rng.normal(0, spread, 3))


def _between(start: Color, end: Color, share: float) -> Color:
    return _color(np.array(start) * (1 - share) + np.array(end) * share)


def _color(values: np.ndarray) -> Color:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue


def _plain(points: np.ndarray | list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]
