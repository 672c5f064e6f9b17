# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From the size that the networks make to the one that was asked for."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

ResizeMode = Literal["default", "crop"]
RESIZE_MODES: tuple[ResizeMode, ...] = ("default", "crop")


def fitted(pixels: torch.Tensor, height: int, width: int, resize_mode: ResizeMode) -> torch.Tensor:
    """Brings frames of any size to one, by bicubic interpolation, which averages where it makes them smaller.

    Args:
        pixels (`torch.Tensor`): `[batch, 3, frames, height, width]` in [-1, 1].
        height, width (`int`): of the result.
        resize_mode (`str`): `"default"` brings each side to its new length; `"crop"` keeps the aspect and cuts what is
            over, half of it at each end.
    """
    rows, columns = pixels.shape[-2:]
    if (rows, columns) == (height, width):
        return pixels
    if resize_mode == "crop":
        scale = max(height / rows, width / columns)
        rows, columns = max(height, round(rows * scale)), max(width, round(columns * scale))
    else:
        rows, columns = height, width
    frames = pixels.transpose(1, 2).flatten(0, 1).float()
    frames = F.interpolate(frames, (rows, columns), mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (rows - height) // 2, (columns - width) // 2
    frames = frames[..., top : top + height, left : left + width]
    return frames.unflatten(0, (pixels.shape[0], -1)).transpose(1, 2)


def target_size(
    width: int,
    height: int,
    *,
    scale: float | None = None,
    target_width: int | None = None,
    target_height: int | None = None,
) -> tuple[int, int] | None:
    """Returns the size that is asked for, or `None` where nothing is.

    With one side given, the other keeps the aspect. Sides that nobody has named and that do not come out whole are
    rounded to the nearest even number, which every player takes.

    Args:
        width, height (`int`): of the source's frames, in pixels.
        scale (`float`, *optional*): by how much both sides grow.
        target_width, target_height (`int`, *optional*): of the result.

    Raises:
        ValueError: `scale` and a side are both given, `scale` is not positive, or the size has no pixels.
    """
    if scale is not None and (target_width or target_height):
        raise ValueError(f"`scale` is {scale}, and a size is given too: give one of them")
    if scale is not None:
        if not 0 < scale < float("inf"):
            raise ValueError(f"`scale` must be more than 0, got {scale}")
        exact = Fraction(scale).limit_denominator(1000)
        return _even(width * exact), _even(height * exact)
    if target_width and target_height:
        return target_width, target_height
    if target_width:
        return target_width, _even(Fraction(height * target_width, width))
    if target_height:
        return _even(Fraction(width * target_height, height)), target_height
    return None


def _even(side: Fraction) -> int:
    return max(2, 2 * round(side / 2)) if side.denominator > 1 else max(1, int(side))


def resampled(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resamples frames by bicubic interpolation, which averages where it makes them smaller.

    Args:
        frames (`np.ndarray`): `[frames, height, width, 3]`, uint8 or uint16.
        width, height (`int`): of the result.

    Returns:
        `np.ndarray`: `[frames, height, width, 3]` of the same type.
    """
    most = np.iinfo(frames.dtype).max
    result = np.empty((len(frames), height, width, 3), frames.dtype)
    for index, frame in enumerate(frames):  # one at a time: floating-point frames are large
        pixels = torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1)[None]
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
        result[index] = pixels[0].round().clamp(0, most).permute(1, 2, 0).numpy().astype(frames.dtype)
    return result
