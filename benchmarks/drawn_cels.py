# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Drawn frames in the manner of animated films: flat colours with dark outlines. All is drawn by the code here.

Backgrounds move with each frame, figures with every second one, as such films do. Places are as in
[`~ultraflash_diffusers.training.data.drawing.Cel`]. No training sees these: `training/draw_clips.py` draws other
scenes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ultraflash_diffusers.training.data.drawing import Cel, Color, box, oval, smooth


def _clouds(cel: Cel, rng: np.random.Generator, shift: float, fill: Color, shade: Color) -> None:
    for _ in range(5):
        x, y, size = rng.uniform(-1.1, 1.1) + shift, rng.uniform(-0.44, -0.2), rng.uniform(0.06, 0.13)
        puffs = [(-1.6, 0.3, 0.6), (-0.8, -0.1, 0.8), (0.2, -0.35, 1.0), (1.1, 0.0, 0.75), (1.8, 0.35, 0.5)]
        for width, color, drop in ((0.012, None, 0.0), (0.0, shade, 0.0), (0.0, fill, -0.12)):
            for dx, dy, r in puffs:
                outline = oval(x + size * dx, y + size * (dy + drop), size * r, size * r * 0.72)
                cel.shape(outline, color, width, (96, 128, 170))


def _eye(cel: Cel, x: float, y: float, size: float, open_: float, iris: Color, look: float) -> None:
    if open_ < 0.3:
        lid = [(x - size, y + 0.1 * size), (x, y + 0.55 * size), (x + size, y + 0.1 * size)]
        cel.line(smooth(lid, closed=False), 0.011)
        return
    high = 1.25 * size * open_
    cel.shape(oval(x, y, size, high), (252, 252, 252), 0)
    dark = (iris[0] // 3, iris[1] // 3, iris[2] // 3)
    cel.shape(oval(x + look, y + 0.05 * size, 0.68 * size, 0.92 * high), dark, 0.004)
    cel.shape(oval(x + look, y + 0.32 * size * open_, 0.58 * size, 0.6 * high), iris, 0)
    cel.shape(oval(x + look, y + 0.05 * size, 0.28 * size, 0.42 * high), (18, 16, 30), 0)
    cel.shape(oval(x + look - 0.24 * size, y - 0.42 * high, 0.24 * size, 0.2 * high), (255, 255, 255), 0)
    cel.shape(oval(x + look + 0.26 * size, y + 0.46 * high, 0.11 * size, 0.1 * high), (255, 255, 255), 0)
    lid = [(x - 1.12 * size, y - 0.35 * high), (x - 0.5 * size, y - 0.95 * high), (x + 0.2 * size, y - 1.08 * high)]
    lid += [(x + 0.85 * size, y - 0.75 * high), (x + 1.15 * size, y - 0.25 * high)]
    cel.line(smooth(lid, closed=False), 0.014)
    cel.line(smooth([(x - 0.5 * size, y + high), (x + 0.1 * size, y + 1.05 * high)], closed=False), 0.004)


def portrait(t: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A girl's head, near: hair in the wind, blinking eyes, before clouds that pass."""
    cel = Cel(height, width, (126, 190, 236))
    cel.shape(box(-2, 0.0, 2, 0.6), (168, 214, 242), 0)
    _clouds(cel, rng, -0.006 * t, (252, 253, 255), (206, 224, 244))
    beat = t // 2
    wind, bob = np.sin(0.55 * beat), 0.008 * np.sin(0.4 * beat)
    x0, y0 = -0.06 + 0.012 * np.sin(0.25 * beat), 0.02 + bob
    hair, light, skin, shade = (66, 62, 128), (112, 110, 190), (253, 226, 204), (238, 190, 172)

    def at(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x0 + x, y0 + y) for x, y in points]

    back = [(-0.36, -0.22), (-0.2, -0.46), (0.08, -0.5), (0.32, -0.36), (0.42, -0.05), (0.48 + 0.04 * wind, 0.2)]
    back += [(0.62 + 0.08 * wind, 0.42), (0.44 + 0.06 * wind, 0.5), (0.2, 0.62), (-0.3, 0.62), (-0.44, 0.4)]
    back += [(-0.36 + 0.02 * wind, 0.1)]
    cel.shape(smooth(at(back)), hair, 0.008)
    cel.shape(at([(-0.1, 0.22), (0.12, 0.22), (0.15, 0.48), (-0.14, 0.48)]), shade, 0.006)
    blouse = [(-0.55, 0.6), (-0.42, 0.42), (-0.12, 0.36), (0.0, 0.42), (0.14, 0.36), (0.44, 0.42), (0.6, 0.6)]
    cel.shape(smooth(at(blouse)), (248, 248, 252), 0.008)
    cel.shape(at([(-0.26, 0.37), (-0.1, 0.36), (0.01, 0.52), (0.14, 0.36), (0.28, 0.37), (0.03, 0.64)]), (44, 72, 150))
    cel.shape(at([(-0.07, 0.5), (0.01, 0.47), (0.09, 0.5), (0.05, 0.58), (-0.03, 0.58)]), (214, 56, 64))
    face = [(-0.27, -0.2), (-0.02, -0.34), (0.25, -0.2), (0.27, 0.02), (0.18, 0.2), (0.02, 0.31), (-0.02, 0.31)]
    face += [(-0.2, 0.2), (-0.28, 0.02)]
    cel.shape(smooth(at(face)), skin, 0.008)
    for side in (-1, 1):
        cel.shape(oval(x0 + 0.17 * side, y0 + 0.13, 0.045, 0.022), (250, 196, 184), 0)
        openness = 0.05 if beat % 9 in (4, 5) else 1.0
        _eye(cel, x0 + 0.125 * side, y0 + 0.02, 0.066, openness, (42, 150, 140), 0.012 * np.sin(0.2 * beat))
        brow = at([(0.06 * side, -0.115), (0.12 * side, -0.14), (0.19 * side, -0.12)])
        cel.line(smooth(brow, closed=False), 0.007, (48, 42, 88))
    cel.line(at([(0.0, 0.12), (0.012, 0.14), (-0.002, 0.145)]), 0.004, (160, 96, 90))
    mouth = 0.008 + 0.022 * abs(np.sin(0.7 * beat))
    cel.shape(oval(x0 + 0.0, y0 + 0.215, 0.04, mouth), (196, 74, 84), 0.005)
    crown = [(-0.31, 0.12), (-0.34, -0.14), (-0.25, -0.37), (0.0, -0.46), (0.25, -0.36), (0.34, -0.12), (0.32, 0.14)]
    bangs = list(smooth(crown, closed=False))
    for tip, dip in ((0.22, -0.02), (0.12, -0.1), (0.03, -0.07), (-0.07, -0.12), (-0.17, -0.05), (-0.24, -0.08)):
        bangs += [(tip + 0.035, -0.24), (tip + 0.012 * wind, dip)]
    cel.shape(at(bangs), hair, 0.008)
    shine = [(-0.2, -0.3), (-0.06, -0.37), (0.1, -0.37), (0.22, -0.29), (0.1, -0.32), (0.05, -0.28), (-0.02, -0.33)]
    cel.shape(at([*shine, (-0.1, -0.29)]), light, 0)
    for n in range(7):
        start = -0.24 + 0.08 * n
        strand = at([(start, -0.4 + 0.3 * start**2), (start * 1.15, -0.3), (start * 1.2 + 0.01 * wind, -0.18)])
        cel.line(smooth(strand, closed=False), 0.003, (44, 40, 96))
    return cel.frame()


def hillside(t: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A boy with a scarf walks over hills that pass at three speeds, with trees and a fence."""
    cel = Cel(height, width, (250, 214, 150))
    cel.shape(box(-2, -0.6, 2, -0.32), (240, 168, 122), 0)
    cel.shape(box(-2, -0.32, 2, -0.18), (246, 192, 134), 0)
    cel.shape(oval(0.42, -0.14, 0.15, 0.15), (255, 240, 196), 0.005, (236, 150, 96))
    _clouds(cel, rng, -0.003 * t, (255, 236, 214), (246, 198, 170))
    for speed, level, wave, color in ((0.004, 0.02, 0.09, (150, 148, 176)), (0.009, 0.14, 0.06, (110, 140, 120))):
        xs = np.linspace(-1.4, 1.4, 60)
        phase = rng.uniform(0, 6)
        crest = level - wave * np.sin(3 * (xs + speed * t) + phase) - 0.4 * wave * np.sin(7.3 * (xs + speed * t))
        cel.shape([*zip(xs, crest, strict=True), (1.4, 0.7), (-1.4, 0.7)], color, 0.006)
        for spot in rng.uniform(-1.2, 1.6, 9):
            x = spot - speed * t
            y = float(np.interp(x, xs, crest))
            cel.shape(box(x - 0.006, y - 0.05, x + 0.006, y + 0.01), (92, 70, 60), 0.004)
            cel.shape(oval(x, y - 0.075, 0.032, 0.045), _darker(color), 0.005)
    cel.shape(box(-2, 0.27, 2, 0.7), (126, 176, 88), 0.007)
    for n in range(-4, 16):
        x = 0.22 * n - 0.03 * t
        cel.shape(box(x, 0.17, x + 0.024, 0.32), (214, 186, 150), 0.005)
        for rail in (0.2, 0.255):
            cel.shape(box(x + 0.024, rail, x + 0.22, rail + 0.014), (226, 200, 164), 0.004)
    _walker(cel, t // 2)
    for spot in rng.uniform(-1.2, 3.0, 90):
        x, tuft = spot - 0.03 * t, rng.uniform(0.33, 0.49)
        blades = [(x - 0.012, tuft - 0.02), (x, tuft), (x + 0.002, tuft - 0.028), (x + 0.004, tuft)]
        cel.line(blades, 0.004, (70, 118, 52))
    return cel.frame()


def _darker(color: Color) -> Color:
    red, green, blue = (int(0.72 * value) for value in color)
    return red, green, blue


def _walker(cel: Cel, beat: int) -> None:
    stride, x0, y0 = float(np.sin(0.9 * beat)), -0.1, 0.012 * abs(float(np.cos(0.9 * beat)))
    skin, swing, wave = (252, 222, 196), -0.09 * stride, 0.03 * float(np.sin(1.3 * beat))

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x0 + x, y0 + y) for x, y in points]

    for side, color in ((-1, (58, 66, 112)), (1, (72, 82, 138))):
        knee, foot = 0.05 * side * stride, 0.1 * side * stride
        front = [(-0.035, 0.14), (0.035, 0.14), (knee + 0.028, 0.27), (foot + 0.026, 0.38)]
        cel.shape(at(*front, (foot - 0.026, 0.38), (knee - 0.03, 0.27)), color, 0.006)
        shoe = at((foot - 0.03, 0.38), (foot + 0.06, 0.39), (foot + 0.06, 0.41), (foot - 0.03, 0.41))
        cel.shape(smooth(shoe), (120, 62, 44), 0.005)
    cel.shape(smooth(at((-0.075, -0.05), (0.07, -0.05), (0.085, 0.18), (-0.095, 0.18))), (218, 84, 62), 0.007)
    cel.shape(at((-0.085, 0.1), (-0.03, 0.12), (-0.03, 0.19), (-0.09, 0.185)), (176, 60, 50), 0)
    arm = at((-0.02, -0.02), (0.03, -0.01), (0.03 + swing, 0.13), (-0.02 + swing, 0.13))
    cel.shape(smooth(arm), (232, 104, 78), 0.006)
    cel.shape(oval(x0 + 0.005 + swing, y0 + 0.14, 0.024, 0.024), skin, 0.005)
    scarf = [(-0.03, -0.075), (-0.16, -0.07 + wave), (-0.27, -0.05 - wave), (-0.26, -wave)]
    cel.shape(smooth(at(*scarf, (-0.15, -0.03 + wave), (-0.04, -0.04))), (250, 200, 70), 0.006)
    cel.shape(oval(x0, y0 - 0.165, 0.105, 0.11), skin, 0.007)
    crown = at((0.1, -0.18), (0.08, -0.26), (-0.01, -0.295), (-0.1, -0.25), (-0.13, -0.16))
    fringe = at((-0.1, -0.08), (-0.06, -0.14), (-0.03, -0.19), (0.02, -0.215), (0.05, -0.18))
    cel.shape([*smooth(crown, closed=False), *fringe], (92, 58, 40), 0.006)
    _eye(cel, x0 + 0.055, y0 - 0.15, 0.02, 0.05 if beat % 11 == 7 else 1.0, (80, 120, 200), 0.004)
    cel.line(smooth(at((0.05, -0.095), (0.07, -0.09), (0.085, -0.1)), closed=False), 0.004)
    cel.shape(oval(x0 + 0.035, y0 - 0.112, 0.016, 0.009), (246, 186, 170), 0)


def night_train(t: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A town by night: lit windows, wires, a moon, and a train that crosses."""
    cel = Cel(height, width, (30, 34, 78))
    cel.shape(box(-2, -0.05, 2, 0.6), (46, 50, 104), 0)
    for x, y, size in rng.uniform((-0.9, -0.5, 0.0012), (0.9, 0.0, 0.0032), (70, 3)):
        cel.shape(oval(x, y, size, size), (236, 238, 250), 0)
    cel.shape(oval(-0.42, -0.3, 0.1, 0.1), (250, 244, 208), 0.004, (210, 196, 150))
    cel.shape(oval(-0.39, -0.32, 0.018, 0.018), (232, 222, 178), 0)
    for speed, base, color in ((0.002, 0.16, (58, 58, 112)), (0.005, 0.27, (40, 38, 82))):
        x = -1.3 - speed * t
        for _ in range(15):
            wide, top = rng.uniform(0.12, 0.26), base - rng.uniform(0.16, 0.5)
            cel.shape(box(x, top, x + wide, 0.6), color, 0.006, (18, 16, 40))
            for row in np.arange(top + 0.03, base, 0.05):
                for column in x + np.arange(0.022, wide - 0.03, 0.042):
                    glass = (252, 216, 122) if rng.uniform() < 0.45 else (30, 30, 66)
                    cel.shape(box(column, row, column + 0.022, row + 0.03), glass, 0.003, (18, 16, 40))
            x += wide + rng.uniform(0.0, 0.05)
    cel.shape(box(-2, 0.27, 2, 0.6), (56, 52, 78), 0.006)
    for n in range(60):
        cel.line([(-1.0 + 0.05 * n, 0.335), (-1.05 + 0.055 * n, 0.37)], 0.005, (34, 30, 50))
    for rail in (0.335, 0.352):
        cel.line([(-2, rail), (2, rail)], 0.004, (150, 150, 170))
    left = -1.25 + 0.035 * t
    for car in range(3):
        x = left + 0.62 * car
        cel.shape(box(x, 0.1, x + 0.6, 0.31), (206, 214, 224), 0.008)
        cel.shape(box(x, 0.24, x + 0.6, 0.275), (222, 74, 66), 0.004)
        for window in range(6):
            edge = x + 0.03 + 0.092 * window
            cel.shape(box(edge, 0.135, edge + 0.07, 0.215), (255, 232, 160), 0.005)
            if (window + car) % 3:
                cel.shape(oval(edge + 0.035, 0.18, 0.016, 0.02), (110, 78, 84), 0.003)
                cel.shape(box(edge + 0.012, 0.197, edge + 0.058, 0.215), (92, 96, 140), 0.003)
        for wheel in (0.08, 0.17, 0.43, 0.52):
            cel.shape(oval(x + wheel, 0.318, 0.022, 0.022), (70, 70, 88), 0.005)
    for pole in np.arange(-1.0, 2.6, 0.5):
        x = pole - 0.012 * t
        cel.shape(box(x, -0.16, x + 0.016, 0.5), (26, 22, 38), 0)
        cel.line([(x - 0.09, -0.12), (x + 0.106, -0.12)], 0.006, (26, 22, 38))
        for end in (-0.08, 0.0, 0.096):
            sag = [(x + end, -0.12), (x + 0.25 + end, -0.085), (x + 0.5 + end, -0.12)]
            cel.line(smooth(sag, closed=False), 0.0025, (20, 18, 30))
    return cel.frame()


SCENES: dict[str, Callable[[int, int, int, np.random.Generator], np.ndarray]] = {
    "portrait": portrait,
    "hillside": hillside,
    "night_train": night_train,
}


def animate(scene: str, frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """Draws a scene's first frames, uint8 RGB `[F, H, W, 3]`; the seed places clouds, trees, houses and stars.

    Raises:
        ValueError: no such scene.
    """
    if scene not in SCENES:
        raise ValueError(f"`scene` must be one of {', '.join(SCENES)}, got {scene!r}")
    return np.stack([SCENES[scene](t, height, width, np.random.default_rng(seed)) for t in range(frames)])
