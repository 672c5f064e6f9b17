# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Text and lines, still and moving, set by code: no material is needed.

Fonts are those of [`~ultraflash_diffusers.training.data.drawing`]. Words, tables and drawings are made up here.
Everything is drawn at four times the size, moved there by quarters of a pixel or less, and brought down by area, so
that moving text is as clean as still text. No training sees these: `training/draw_clips.py` draws other words and
other layouts.
"""

from __future__ import annotations

import cv2
import numpy as np

from ultraflash_diffusers.training.data.drawing import OVERSAMPLING, PAGE_LINES, Page, area_resize

WORDS = (
    "amber anchor arrow autumn basin bridge bright candle canyon cedar cloud copper coral current dawn delta distant "
    "echo ember evening fabric falcon fern field figure forest garden glass gravel harbour hollow horizon island "
    "ivory journey kettle lantern ledger level linen market meadow measure mirror morning narrow north number ocean "
    "orchard paper pattern pebble quarry quiet rapid ribbon river rotor salt sample shadow signal silver slope spring "
    "station stone storm summer table thread timber tower travel valley velvet village violet water willow window"
).split()


def _sentence(rng: np.random.Generator, count: int) -> str:
    words = " ".join(rng.choice(WORDS, count))
    return words[0].upper() + words[1:]


def slide(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A light slide: heading, points, small print, a table with thin rules and a chart: uint8 `[H, W, 3]`."""
    ink, blue, rule = (30, 34, 42), (20, 84, 170), (150, 156, 166)
    page = Page(height, width, height, (250, 249, 245))
    middle = page.width * 0.53
    page.text((24, 44), _sentence(rng, 3), 27, blue, "DejaVuSans-Bold")
    page.line([(24, 55), (page.width - 24, 55)], blue, 1.5)
    for row, (size, font) in enumerate(
        [(17, "Aileron"), (15, "DejaVuSerif"), (13, "DejaVuSans"), (12, "DejaVuSerif-Italic"), (11, "Aileron")] * 2
    ):
        words = _sentence(rng, 5 if row < 5 else 4)
        while page.measure(words, size, font) > middle - 60:
            words = words.rsplit(" ", 1)[0]
        page.box((24, 77 + 27 * row, 28, 81 + 27 * row), blue)
        page.text((36, 84 + 27 * row), words, size, ink, font)
    for row in range(7):
        y = 74.0 + 19 * row
        page.line([(middle, y), (page.width - 24, y)], rule, 0.75)
        for column in range(4):
            x = middle + (page.width - 24 - middle) * column / 4
            cell = str(rng.choice(WORDS))[:7] if 0 in (row, column) else f"{rng.normal(0, 40):.2f}"
            if row < 6:
                page.text((x + 3, y + 14), cell, 10.5, ink, "DejaVuSans-Bold" if row == 0 else "DejaVuSans")
    left, top, right, bottom = middle, 212.0, page.width - 24, 340.0
    for step in range(7):
        y, x = top + (bottom - top) * step / 6, left + (right - left) * step / 6
        page.line([(left, y), (right, y)], (222, 224, 228), 0.6)
        page.line([(x, top), (x, bottom)], (222, 224, 228), 0.6)
    for color in ((200, 60, 40), (30, 120, 90), blue):
        curve = np.clip(np.cumsum(rng.normal(0, 0.07, 24)) + rng.uniform(0.3, 0.7), 0.04, 0.96)
        xs = np.linspace(left, right, len(curve))
        page.line([(x, top + (bottom - top) * y) for x, y in zip(xs, curve, strict=True)], color, 1.2)
    page.text((24, 368), _sentence(rng, 9), 8.5, (110, 114, 120))
    page.text((page.width - 24, 368), "17 / 42", 9, (110, 114, 120), anchor="rs")
    return area_resize(page.pixels(), height, width)


def listing(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A dark editor window full of coloured, monospaced lines with numbers: uint8 `[H, W, 3]`."""
    page = Page(height, width, height, (24, 26, 33))
    colors = [(224, 226, 230), (198, 120, 221), (97, 175, 239), (152, 195, 121), (229, 192, 123), (224, 108, 117)]
    page.box((0, 0, page.width, 20), (44, 47, 57))
    page.text((10, 14), f"{rng.choice(WORDS)}_{rng.choice(WORDS)}.py", 11, (190, 194, 204))
    for number in range(24):
        y, x = 37 + 14.6 * number, 48.0 + 22 * int(rng.integers(0, 4))
        page.text((36, y), str(number + 118), 10, (98, 104, 118), "DejaVuSansMono", anchor="rs")
        for _ in range(int(rng.integers(0, 6))):
            word = str(rng.choice(WORDS)) + str(rng.choice(["", "()", " =", ":", "[0]", ",", " +", "_id", ".x"]))
            color = colors[int(rng.integers(0, len(colors)))]
            x += page.text((x, y), word + " ", 11.5, color, "DejaVuSansMono")
    page.line([(42, 22), (42, page.height)], (58, 62, 74), 0.75)
    return area_resize(page.pixels(), height, width)


def credits(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """White and golden names that roll up over black by 1.25 lines a frame: uint8 `[F, H, W, 3]`."""
    speed = 1.25 * height / PAGE_LINES
    page = Page(height + int(np.ceil(speed * frames)) + 1, width, height, (8, 8, 12))
    middle, y = page.width / 2, 26.0
    while y < page.height:
        role, name = _sentence(rng, 2), " ".join(str(word).title() for word in rng.choice(WORDS, 2))
        page.text((middle - 12, y), role, 12, (190, 190, 196), "DejaVuSerif-Italic", anchor="rs")
        page.text((middle + 12, y), name, 15, (246, 246, 246), "DejaVuSerif", anchor="ls")
        y += 21
        if rng.uniform() < 0.22:
            page.text((middle, y + 16), _sentence(rng, 3).upper(), 20, (232, 190, 92), "Aileron", anchor="ms")
            y += 44
    return _rolled(page.pixels(), frames, height, width, (0.0, speed))


def ticker(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Three bands of text that run to the left at different speeds: uint8 `[F, H, W, 3]`."""
    bands, share = [], height // 3 // 2 * 2
    styles = [
        (1.5, 30.0, "DejaVuSans-Bold", (250, 250, 250), (168, 24, 34)),
        (2.75, 19, "Aileron", (24, 26, 34), (238, 224, 170)),
        (0.625, 13, "DejaVuSerif", (220, 232, 244), (18, 44, 78)),
    ]
    for row, (speed, size, font, ink, paper) in enumerate(styles):
        rows, speed = (share if row < 2 else height - 2 * share), speed * height / PAGE_LINES
        page = Page(rows, width + int(np.ceil(speed * frames)) + 1, height, paper)
        y = 1.5 * size
        while y < page.height:
            x = 12 - 90 * float(rng.uniform())
            while x < page.width:
                x += page.text((x, y), f"{_sentence(rng, 4)}  +{rng.uniform(0, 9):.1f} %   /  ", size, ink, font)
            y += 1.5 * size
        bands.append(_rolled(page.pixels(), frames, rows, width, (speed, 0.0)))
    return np.concatenate(bands, axis=1)


def street_map(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Streets, contour lines and slanted names under a camera that turns and zooms: uint8 `[F, H, W, 3]`."""
    side = int(1.5 * width)
    page = Page(side, side, height, (236, 232, 222))
    for radius in np.arange(40, page.width, 17):
        angles = np.linspace(0, 2 * np.pi, 240)
        wave = radius * (1 + 0.08 * np.sin(3 * angles + radius / 60) + 0.05 * np.sin(7 * angles))
        x, y = page.width * 0.62 + wave * np.cos(angles), page.height * 0.4 + wave * np.sin(angles)
        page.line(list(zip(x.tolist(), y.tolist(), strict=True)), (196, 174, 140), 0.7)
    for _ in range(34):
        start, angle = rng.uniform(0, page.width, 2), rng.choice([0.3, 0.3 + np.pi / 2]) + rng.normal(0, 0.07)
        reach = 0.7 * page.width * np.array([np.cos(angle), np.sin(angle)])
        ends = [tuple((start - reach).tolist()), tuple((start + reach).tolist())]
        wide = float(rng.choice([2.5, 4, 7]))
        page.line(ends, (120, 116, 110), wide + 1.6)
        page.line(ends, (255, 255, 255) if wide < 6 else (252, 214, 112), wide)
    for _ in range(150):
        place = (float(rng.uniform(0, page.width)), float(rng.uniform(0, page.height)))
        size, bold = float(rng.choice([9, 11, 14])), rng.uniform() < 0.3
        page.text(place, _sentence(rng, 1), size, (44, 52, 92), "DejaVuSans-Bold" if bold else "DejaVuSans")
    canvas, shown = page.pixels(), []
    rows, columns = OVERSAMPLING * height, OVERSAMPLING * width
    for t in range(frames):
        matrix = cv2.getRotationMatrix2D((canvas.shape[1] / 2, canvas.shape[0] / 2), 8 + 0.35 * t, 1 + 0.004 * t)
        matrix[:, 2] += [columns / 2 - canvas.shape[1] / 2, rows / 2 - canvas.shape[0] / 2]
        turned = cv2.warpAffine(canvas, matrix, (columns, rows), flags=cv2.INTER_LINEAR)
        shown.append(area_resize(turned, height, width))
    return np.stack(shown)


def _rolled(canvas: np.ndarray, frames: int, height: int, width: int, speed: tuple[float, float]) -> np.ndarray:
    """A window that moves over a page by so many pixels right and down a frame."""
    shown = []
    for t in range(frames):
        left, top = (round(OVERSAMPLING * t * step) for step in speed)
        window = canvas[top : top + OVERSAMPLING * height, left : left + OVERSAMPLING * width]
        shown.append(area_resize(window, height, width))
    return np.stack(shown)
