# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training clips like drawn films: flat colours, outlines, backgrounds that pan, figures that move on twos.

All is random: shapes, colours, outlines, layers and movement. Places are as in [`Cel`].
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np

from .drawing import Cel, Color, Points, box, oval, smooth

Layer = Callable[[Cel, int], None]  # draws on a frame that is so many frames from the start
_PIXEL = 1 / 384  # outlines are 1 to 5 of these wide


class _Style:
    """What all of a film's drawings have in common: ink, width of outlines, hues."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.outline = 0.0
        if rng.random() >= 0.14:
            wide, thinner = rng.uniform(1, 5), rng.random() >= 0.5
            self.outline = _PIXEL * max(1.0, float(wide) * (0.6 if thinner else 1.0))
        self.ink = _hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0, 0.25))
        if rng.random() < 0.25:
            self.ink = _hsv(rng.random(), rng.uniform(0.3, 0.9), rng.uniform(0.2, 0.9))
        self.hue, self.spread = float(rng.random()), float(rng.choice([0.1, 0.4, 1.0]))
        self.saturation, self.value = float(rng.uniform(0.15, 0.8)), float(1 - 0.65 * rng.random() ** 1.7)

    def color(self, rng: np.random.Generator) -> Color:
        hue = self.hue + self.spread * rng.uniform(-0.5, 0.5)
        return _hsv(hue, self.saturation * rng.uniform(0.3, 1.4), self.value * rng.uniform(0.6, 1.3))


def drawn_film(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Layers that pass at speeds of their own before a sky, with figures between them.

    Args:
        frames, height, width (`int`): of the clip.
        rng (`np.random.Generator`): draws everything.

    Returns:
        `np.ndarray`: uint8 `[frames, height, width, 3]`.
    """
    style = _Style(rng)
    aspect = width / height
    pan = rng.normal(0, 0.006, 2) * [1, 0.35] * (rng.random() < 0.85)
    layers: list[Layer] = [_sky(style, 0.2 * pan, rng)]
    for depth in sorted(rng.uniform(0.3, 1.0, int(rng.integers(1, 4)))):
        makers = (_hills, _town, _clouds, _wall, _stripes)
        make = makers[int(rng.choice(5, p=(0.32, 0.18, 0.2, 0.15, 0.15)))]
        layers.append(make(style, depth * pan, rng))
    near = rng.random() < 0.4
    for _ in range(int(rng.integers(1, 3)) if near else int(rng.integers(1, 7))):
        size = rng.uniform(0.3, 0.6) if near else rng.uniform(0.06, 0.25)
        layers.append(_figure(_Style(rng) if rng.random() < 0.5 else style, aspect, float(size), rng))
    for _ in range(int(rng.integers(0, 3))):
        make = (_blades, _wires, _falling)[int(rng.integers(0, 3))]
        layers.append(make(style, rng.uniform(1.0, 2.0) * pan, rng))
    shown = []
    for t in range(frames):
        cel = Cel(height, width, (0, 0, 0))
        for layer in layers:
            layer(cel, t)
        shown.append(cel.frame())
    return np.stack(shown)


def _sky(style: _Style, pan: np.ndarray, rng: np.random.Generator) -> Layer:
    """A gradient from top to bottom, bands, or one colour; sometimes a sun, a moon and stars."""
    colors = np.array([style.color(rng) for _ in range(int(rng.choice([1, 2, 3, 4], p=(0.2, 0.45, 0.25, 0.1))))])
    banded = rng.random() < 0.2
    stars = rng.uniform((-1, -0.6, 0.001), (1, 0.5, 0.005), (int(rng.choice([0, 0, 60])), 3))
    disc = (rng.uniform(-0.8, 0.8), rng.uniform(-0.5, 0.1), rng.uniform(0.04, 0.25)) if rng.random() < 0.35 else None
    glow, star = style.color(rng), _hsv(rng.random(), rng.uniform(0, 0.3), 1.0)

    def draw(cel: Cel, t: int) -> None:
        rows = np.linspace(0, len(colors) - 1, len(cel.picture))
        rows = np.rint(rows) if banded else rows
        ramp = np.stack([np.interp(rows, np.arange(len(colors)), colors[:, part]) for part in range(3)], axis=1)
        cel.picture[:] = np.rint(ramp)[:, None]
        for x, y, size in stars:
            cel.shape(oval(x + pan[0] * t, y + pan[1] * t, size, size), star, 0)
        if disc is not None:
            cel.shape(
                oval(disc[0] + pan[0] * t, disc[1] + pan[1] * t, disc[2], disc[2]), glow, style.outline, style.ink
            )

    return draw


def _hills(style: _Style, pan: np.ndarray, rng: np.random.Generator) -> Layer:
    """A crest, wavy or jagged, with things that stand on it."""
    xs = np.linspace(-2.2, 2.2, 180 if rng.random() < 0.6 else 30)
    crest = rng.uniform(-0.25, 0.35) + sum(
        rng.uniform(0, 0.1) / rank * np.sin(rank * 2.2 * xs + rng.uniform(0, 6)) for rank in (1, 2, 3, 5, 8)
    )
    points = np.stack([xs, crest], axis=1)
    fill, trunk, leaf = style.color(rng), style.color(rng), style.color(rng)
    outline = style.outline * rng.choice([0.6, 1.0])
    spots = np.sort(rng.uniform(-2, 2, int(rng.integers(0, 30))))
    sizes, pointed = rng.uniform(0.02, 0.09, len(spots)), rng.random() < 0.5

    def draw(cel: Cel, t: int) -> None:
        moved = points + pan * t
        cel.shape([*map(tuple, moved), (2.5, 1.0), (-2.5, 1.0)], fill, outline, style.ink)
        for spot, size in zip(spots, sizes, strict=True):
            x, y = spot + pan[0] * t, np.interp(spot, xs, crest) + pan[1] * t
            cel.shape(box(x - 0.15 * size, y - size, x + 0.15 * size, y + 0.1 * size), trunk, outline, style.ink)
            tree = [(x - 0.6 * size, y - 0.6 * size), (x, y - 2.8 * size), (x + 0.6 * size, y - 0.6 * size)]
            cel.shape(tree if pointed else oval(x, y - 1.5 * size, 0.7 * size, size), leaf, outline, style.ink)

    return draw


def _town(style: _Style, pan: np.ndarray, rng: np.random.Generator) -> Layer:
    """Houses side by side, with lit and dark windows."""
    houses, x = [], -1.6
    walls, panes, roof = [style.color(rng) for _ in range(3)], [style.color(rng) for _ in range(2)], style.color(rng)
    base, pointed, cell = rng.uniform(0.1, 0.5), rng.random() < 0.5, rng.uniform(0.03, 0.08)
    while x < 1.6:
        wide, top = rng.uniform(0.1, 0.4), base - rng.uniform(0.1, 0.7)
        spots = [(a, b) for a in np.arange(x + 0.02, x + wide - cell, cell) for b in np.arange(top + 0.03, base, cell)]
        houses.append((x, top, wide, walls[int(rng.integers(0, 3))], spots, rng.random(len(spots)) < rng.random()))
        x += wide + max(0.0, rng.normal(0, 0.06))

    def draw(cel: Cel, t: int) -> None:
        dx, dy = pan * t
        for left, top, wide, wall, spots, lit in houses:
            cel.shape(box(left + dx, top + dy, left + wide + dx, 1), wall, style.outline, style.ink)
            if pointed:
                gable = [(left - 0.02, top), (left + wide / 2, top - 0.4 * wide), (left + wide + 0.02, top)]
                cel.shape(np.array(gable) + [dx, dy], roof, style.outline, style.ink)
            for (a, b), on in zip(spots, lit, strict=True):
                pane = box(a + dx, b + dy, a + 0.6 * cell + dx, b + 0.7 * cell + dy)
                cel.shape(pane, panes[int(on)], 0.5 * style.outline, style.ink)

    return draw


def _clouds(style: _Style, pan: np.ndarray, rng: np.random.Generator) -> Layer:
    """Heaps of ovals in two tones, outlined as one."""
    light, shade = _hsv(style.hue, rng.uniform(0, 0.2), rng.uniform(0.85, 1.0)), style.color(rng)
    drift = pan + [rng.normal(0, 0.003), 0]
    heaps = [
        (
            rng.uniform((-1.3, -0.55), (1.3, 0.3)),
            rng.uniform(0.03, 0.15),
            rng.normal(0, 1, (int(rng.integers(3, 9)), 2)),
        )
        for _ in range(int(rng.integers(2, 8)))
    ]

    def draw(cel: Cel, t: int) -> None:
        for place, size, puffs in heaps:
            for outline, color, lift in ((2 * style.outline, None, 0.0), (0, shade, 0.0), (0, light, -0.2)):
                for puff in puffs:
                    x, y = place + size * (puff * [1.2, 0.5] + [0, lift]) + drift * t
                    cel.shape(oval(x, y, size, 0.75 * size), color, outline, style.ink)

    return draw


def _wall(style: _Style, pan: np.ndarray, rng: np.random.Generator) -> Layer:
    """Bricks, planks or tiles up to some height."""
    top, wide, high = rng.uniform(-0.6, 0.25), rng.uniform(0.05, 0.35), rng.uniform(0.03, 0.25)
    colors = [style.color(rng)] * 3 if rng.random() < 0.5 else [style.color(rng) for _ in range(3)]
    shifted, thin = rng.choice([0.0, 0.5]), max(_PIXEL, 0.5 * style.outline)
    picks, ink = rng.integers(0, 3, (60, 90)), _darker(colors[0], float(rng.uniform(0.4, 0.85)))

    def draw(cel: Cel, t: int) -> None:
        for row, y in enumerate(np.arange(top, 0.6, high)):
            for column, x in enumerate(np.arange(-1.8, 1.8, wide)):
                left = x + shifted * wide * (row % 2)
                stone = box(left, y, left + wide, y + high) + pan * t
                cel.shape(stone, colors[picks[row % 60, column % 90]], thin, ink)

    return draw


def _stripes(style: _Style, pan: np.ndarray, rng: np.random.Generator) -> Layer:
    """Rays from a point, or slanted bands, as behind an excited figure; or big flat shapes."""
    colors, place, count = [style.color(rng) for _ in range(4)], rng.uniform(-0.4, 0.4, 2), int(rng.integers(6, 50))
    kind, edges = int(rng.integers(0, 3)), np.sort(rng.uniform(0, 2 * np.pi, 2 * count))
    shapes = [smooth(rng.normal(rng.uniform(-0.6, 0.6, 2), 0.3, (int(rng.integers(3, 7)), 2))) for _ in range(count)]
    slant, thin = rng.uniform(-1, 1), style.outline * (rng.random() < 0.5)

    def draw(cel: Cel, t: int) -> None:
        x, y = place + pan * t
        for number in range(count):
            color = colors[number % 4]
            if kind == 0:
                rays = [(x + 3 * np.cos(angle), y + 3 * np.sin(angle)) for angle in edges[2 * number : 2 * number + 2]]
                cel.shape([(x, y), *rays], color, thin, style.ink)
            elif kind == 1:
                left = -2.2 + 4.4 * edges[2 * number] / 6.3 + pan[0] * t
                right = left + 0.3 * (edges[2 * number + 1] - edges[2 * number]) + 0.01
                band = [(left - slant, -0.6), (right - slant, -0.6), (right + slant, 0.6), (left + slant, 0.6)]
                cel.shape(band, color, thin, style.ink)
            else:
                cel.shape(shapes[number] + pan * t, color, style.outline, style.ink)

    return draw


def _figure(style: _Style, aspect: float, size: float, rng: np.random.Generator) -> Layer:
    """A body with limbs, a head with hair and eyes, or a thing of a few shapes; it moves, turns and grows."""
    start = rng.uniform((-0.45 * aspect, -0.3), (0.45 * aspect, 0.35))
    velocity, sway = rng.normal(0, 0.006, 2), rng.uniform(0, 0.02, 2)
    turn0, turn, growth = rng.normal(0, 0.25), rng.normal(0, 0.02), rng.normal(0, 0.004)
    pace, rest = rng.uniform(0.2, 0.9), 2 if rng.random() < 0.6 else 1
    skin, shade, coat, hair, iris = (style.color(rng) for _ in range(5))
    if rng.random() < 0.5:
        skin = _hsv(rng.uniform(0.03, 0.1), rng.uniform(0.12, 0.6), rng.uniform(0.5, 1.0))
    shade = _darker(skin, 0.8) if rng.random() < 0.7 else shade
    round_ = 1 + rng.normal(0, 0.08, 11)
    angles = np.linspace(0, 2 * np.pi, 11, endpoint=False)
    head = smooth(np.stack([0.85 * round_ * np.cos(angles), round_ * np.sin(angles)], axis=1))
    body = smooth(
        rng.normal(0, 0.12, (8, 2)) + np.stack([np.cos(angles[:8] * 1.37), 0.9 * np.sin(angles[:8] * 1.37)], 1)
    )
    strands = rng.uniform((-0.9, -0.15, 0.3, -0.4), (0.9, 0.1, 2.2, 0.4), (int(rng.integers(3, 40)), 4))
    eyes, mouth = (0.25 + 0.2 * rng.random(), rng.uniform(0.1, 0.28), rng.uniform(0.7, 1.8)), rng.uniform(0.1, 0.35)
    blink, faced, limbed = int(rng.integers(4, 14)), rng.random() < 0.75, rng.random() < 0.7
    spots = rng.uniform((-0.6, -0.6, 0.02), (0.6, 0.6, 0.16), (int(rng.choice([0, 0, 8])), 3))
    look, fine = rng.normal(0, 0.05), rng.uniform(0.004, 0.02)

    def draw(cel: Cel, t: int) -> None:
        beat = t // rest * rest
        angle, scale = turn0 + turn * beat, size * np.exp(growth * beat)
        wave = np.sin(pace * beat)
        place = start + velocity * beat + sway * [np.cos(pace * beat), wave]
        rotation = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

        def shape(points: Points, fill: Color | None, outline: float = 1.0) -> None:
            cel.shape(np.asarray(points) @ rotation + place, fill, outline * style.outline, style.ink)

        def line(points: Points, width: float, ink: Color = style.ink) -> None:
            cel.line(np.asarray(points) @ rotation + place, max(_PIXEL, width), ink)

        if limbed:
            for side in (-1, 1):
                swing = 0.5 * side * wave
                for root, reach in ((1.3, (0.9, 1.2)), (2.3, (0.3, 1.3))):
                    bend = [
                        (0.5 * side, root),
                        (side * reach[0], root + 0.5),
                        (side * reach[0] + swing, root + reach[1]),
                    ]
                    limb = smooth(bend, False)
                    shape(np.concatenate([limb + [0.14, 0], (limb - [0.14, 0])[::-1]]), coat)
                    shape(oval(limb[-1, 0], limb[-1, 1], 0.2, 0.2), skin)
        shape(body * [0.9, 1.1] + [0, 1.7], coat)
        half = body[body[:, 0] > 0] if (body[:, 0] > 0).sum() > 2 else body
        shape(0.93 * half * [0.9, 1.1] + [0, 1.7], _darker(coat, 0.78), 0)
        for x, y, spot in spots:
            shape(oval(x, y + 1.7, spot, spot), hair, 0.5)
        if not faced:
            shape(head * 0.6, hair)
            return
        for x, _, long, lean in strands[::2]:
            lock = smooth([(0.8 * x, -0.6), (1.1 * x + 0.3 * lean, 0.2), (1.2 * x + lean + 0.1 * wave, long)], False)
            shape(np.concatenate([lock - [0.12, 0], lock[::-1] + [0.12, 0]]) * [1, 0.9], hair, 0.8)
        shape(head, skin)
        shape(0.97 * head[head[:, 1] > 0.45], shade, 0)
        open_ = 0.1 if beat % blink in (0, 1) and beat else 1.0
        for side in (-1, 1):
            x, wide, high = side * eyes[0] + 0.3 * look, eyes[1], eyes[1] * eyes[2] * open_
            shape(oval(x, 0.05, wide, high), (252, 252, 252), 0.5)
            shape(oval(x + look, 0.05, 0.65 * wide, 0.8 * high), iris, 0.5)
            shape(oval(x + look, 0.05, 0.3 * wide, 0.45 * high), (16, 14, 24), 0)
            shape(oval(x + look - 0.25 * wide, 0.05 - 0.35 * high, 0.2 * wide, 0.2 * high), (255, 255, 255), 0)
            line(smooth([(x - 1.1 * wide, 0), (x, 0.02 - high), (x + 1.1 * wide, 0)], False), 0.07 * scale)
            line([(x - wide, -0.32), (x, -0.4), (x + wide, -0.34)], fine * 0.5)
        line([(0.02, 0.25), (0.06, 0.36), (0, 0.38)], fine * 0.3, shade)
        shape(oval(0, 0.62, mouth, 0.04 + 0.1 * abs(wave)), _darker(coat, 0.6), 0.6)
        fringe = head[head[:, 1] < -0.15] * 1.05
        tips = [(x, -0.75 + 0.75 * (number % 2)) for number, x in enumerate(np.linspace(-0.7, 0.7, 11))]
        order = np.argsort(np.arctan2(fringe[:, 1], fringe[:, 0]))
        shape(np.concatenate([fringe[order], np.array(tips)[::-1]]), hair)
        for x, _, long, lean in strands:
            top = [(0.7 * x, -0.9 + 0.3 * x * x), (0.8 * x, -0.6), (0.85 * x + 0.1 * lean + 0.03 * wave, -0.2 * long)]
            line(smooth(top, False), 0.3 * fine, _darker(hair, 0.6))

    return draw


def _blades(style: _Style, pan: np.ndarray, rng: np.random.Generator) -> Layer:
    """Grass, or hair-like strokes, at the lower edge."""
    count, colors = int(rng.integers(20, 220)), [style.color(rng) for _ in range(3)]
    roots = rng.uniform((-1.3, 0.4), (1.3, 0.6), (count, 2))
    tips = rng.normal((0, -0.15), (0.05, 0.07), (count, 2))
    thin, pace = rng.uniform(1, 3.5) * _PIXEL, rng.uniform(0, 0.5)

    def draw(cel: Cel, t: int) -> None:
        for number, (root, tip) in enumerate(zip(roots, tips, strict=True)):
            end = tip + [0.02 * np.sin(pace * t + 5 * root[0]), 0]
            cel.line(smooth(root + pan * t + [(0.0, 0.0), 0.5 * tip, end], False), thin, colors[number % 3])

    return draw


def _wires(style: _Style, pan: np.ndarray, rng: np.random.Generator) -> Layer:
    """Thin lines that sag between poles, or a fence."""
    gap, top, sag = rng.uniform(0.2, 0.8), rng.uniform(-0.45, 0.2), rng.uniform(0, 0.1)
    levels, thin = top + rng.uniform(0, 0.15, int(rng.integers(1, 6))), rng.uniform(0.7, 2.5) * _PIXEL
    color, pole = (style.ink, style.color(rng)) if rng.random() < 0.6 else (style.color(rng), style.color(rng))

    def draw(cel: Cel, t: int) -> None:
        for left in np.arange(-2, 2, gap):
            x, y = left + pan[0] * t, pan[1] * t
            for level in levels:
                wire = [(x, level + y), (x + gap / 2, level + sag + y), (x + gap, level + y)]
                cel.line(smooth(wire, False), thin, color)
            cel.shape(box(x - 0.01, top - 0.03 + y, x + 0.01, 1), pole, style.outline, style.ink)

    return draw


def _falling(style: _Style, pan: np.ndarray, rng: np.random.Generator) -> Layer:
    """Petals, snow or rain."""
    count, color, streaks = int(rng.integers(15, 150)), style.color(rng), rng.random() < 0.4
    bits = rng.uniform((-1.4, -1.0, 0.003, 0), (1.4, 0.6, 0.02, np.pi), (count, 4))
    speed = np.array([rng.normal(0, 0.008), rng.uniform(0.004, 0.03)])

    def draw(cel: Cel, t: int) -> None:
        for x, y, size, angle in bits:
            place = np.array([x, y]) + (speed + pan) * t
            if streaks:
                cel.line([tuple(place), tuple(place + (2 + 100 * size) * speed)], 1.2 * _PIXEL, color)
            else:
                cel.shape(
                    oval(place[0], place[1], size, 0.55 * size, angle + 0.1 * t), color, 0.4 * style.outline, style.ink
                )

    return draw


def _hsv(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(1.0, saturation), min(1.0, value))
    return round(255 * red), round(255 * green), round(255 * blue)


def _darker(color: Color, share: float) -> Color:
    red, green, blue = (int(share * value) for value in color)
    return red, green, blue
