# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Clips from pictures: a virtual camera that pans, zooms and turns a little, smoothly."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from ...degradation import smooth_trajectory

# how much larger than the frame the picture is at first: room for the camera to move
ROOM = 1.25
MAX_DEGREES = 2.0
PERIOD = 48.0  # frames that the camera takes to come back, or more
SMALLEST = 16  # side of a picture, in pixels


def animate_picture(picture: np.ndarray, frames: int, resolution: int | None, rng: np.random.Generator) -> np.ndarray:
    """Moves a virtual camera over a picture; the frame never leaves it.

    Args:
        picture (`np.ndarray`): uint8 `[height, width, 3]`.
        frames (`int`): length of the clip.
        resolution (`int`, *optional*): the shorter side of the clip's frames; less where the picture has not 1.25
            times as many pixels, and that much if `None`. Pictures are never enlarged for it.
        rng (`np.random.Generator`): draws the motion.

    Returns:
        `np.ndarray`: uint8 `[frames, height, width, 3]`, of about the picture's aspect ratio.

    Raises:
        ValueError: the picture is less than 16 pixels high or wide.
    """
    shorter = min(picture.shape[:2])
    if shorter < SMALLEST:
        height, width = picture.shape[:2]
        raise ValueError(f"`picture` has {height}x{width} pixels: a camera needs {SMALLEST} a side to move over")
    target = shorter if resolution is None else min(shorter, round(ROOM * resolution))
    size = tuple(round(side * target / shorter) for side in picture.shape[:2])
    picture = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.LANCZOS))
    height, width = (int(side / ROOM) for side in size)
    pan_x, pan_y, zoom, turn = smooth_trajectory(rng, frames, count=4, period=PERIOD)
    clip = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        clip[t] = _view(picture, (height, width), pan_x[t], pan_y[t], zoom[t], turn[t])
    return clip


def _view(
    picture: np.ndarray, size: tuple[int, int], pan_x: float, pan_y: float, zoom: float, turn: float
) -> np.ndarray:
    """The camera's picture: pans and the turn use the room that the zoom leaves."""
    height, width = size
    # picture pixels for one pixel of the frame; above 1 would alias, below 0.85 would blur
    step = 0.925 + 0.075 * zoom
    angle = np.radians(MAX_DEGREES * turn)
    cosine, sine = step * np.cos(angle), step * np.sin(angle)
    # half of what the turned frame spans, and so the farthest that its centre may move
    reach_x = (picture.shape[1] - abs(cosine) * width - abs(sine) * height) / 2 - 1
    reach_y = (picture.shape[0] - abs(cosine) * height - abs(sine) * width) / 2 - 1
    centre_x = picture.shape[1] / 2 + pan_x * max(reach_x, 0)
    centre_y = picture.shape[0] / 2 + pan_y * max(reach_y, 0)
    matrix = np.array(
        [
            [cosine, -sine, centre_x - cosine * width / 2 + sine * height / 2],
            [sine, cosine, centre_y - sine * width / 2 - cosine * height / 2],
        ]
    )
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
