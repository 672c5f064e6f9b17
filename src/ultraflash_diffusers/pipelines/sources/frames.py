# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Frames in the formats that people have them in: PIL pictures, numpy arrays and torch tensors."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...pixels import from_levels, from_unit

_EXPECTED = (
    "a PIL image, a numpy array [height, width, 3] or [frames, height, width, 3], a torch tensor [3, height, width] "
    "or [frames, 3, height, width] (uint8, or floating point in [0, 1]), or a list of these"
)


def frames_to_pixels(frames: Any, name: str = "source") -> torch.Tensor:
    """Converts one or several frames to `[batch, 3, frames, height, width]`, float32 in [-1, 1].

    Args:
        frames: a PIL image; a numpy array `[height, width, 3]`, `[frames, height, width, 3]` or
            `[batch, frames, height, width, 3]`; a torch tensor `[3, height, width]`, `[frames, 3, height, width]` or
            `[batch, frames, 3, height, width]`; a list of frames, or a list of such lists for a batch. Arrays and
            tensors are uint8, or floating point in [0, 1], which is what diffusers' pipelines return.
        name (`str`, *optional*, defaults to `"source"`): the argument's name in errors.

    Raises:
        TypeError: no such thing, or neither uint8 nor floating point.
        ValueError: another shape, an empty list, frames of different sizes, an alpha channel, values that are not
            finite or outside the range.
    """
    if isinstance(frames, Image.Image):
        return _image_to_pixels(frames, name)
    if isinstance(frames, np.ndarray):
        if frames.ndim not in (3, 4, 5) or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ValueError(f"`{name}` gave an array of shape {frames.shape}, expected {_EXPECTED}")
        return _tensor_to_pixels(torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -3), name)
    if isinstance(frames, torch.Tensor):
        if frames.ndim not in (3, 4, 5) or frames.shape[-3] != 3 or 0 in frames.shape:
            raise ValueError(f"`{name}` gave a tensor of shape {tuple(frames.shape)}, expected {_EXPECTED}")
        return _tensor_to_pixels(frames, name)
    if isinstance(frames, (list, tuple)):
        return _list_to_pixels(frames, name)
    raise TypeError(f"`{name}` gave a {type(frames).__name__}, expected {_EXPECTED}")


def pixel_pieces(frames: Iterable[Any]) -> Generator[torch.Tensor, None, None]:
    """Yields what `frames` yields, converted by [`frames_to_pixels`]; nothing is read ahead."""
    for frame in frames:
        yield frames_to_pixels(frame)


def _image_to_pixels(image: Image.Image, name: str) -> torch.Tensor:
    if image.mode not in ("RGB", "L", "YCbCr"):
        raise ValueError(
            f"`{name}` gave a PIL image of mode {image.mode!r}, expected RGB or L: convert it first (a picture with "
            "transparency has to be put on a background)"
        )
    return _tensor_to_pixels(torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, -3), name)


def _tensor_to_pixels(frames: torch.Tensor, name: str) -> torch.Tensor:
    """Takes `[..., 3, height, width]` with up to two leading dimensions, (batch and) frames."""
    frames = frames.detach().reshape((1,) * (5 - frames.ndim) + frames.shape).transpose(1, 2)
    if frames.dtype == torch.uint8:
        return from_levels(frames)
    if not frames.is_floating_point():
        raise TypeError(f"`{name}` gave frames of dtype {frames.dtype}, expected uint8 or a floating-point one")
    low, high = frames.min().item(), frames.max().item()
    # half precision does not hit the ends of the range exactly; NaN fails both comparisons
    if not (low >= -1e-2 and high <= 1 + 1e-2):
        raise ValueError(f"`{name}` gave floating-point frames with values from {low} to {high}, expected [0, 1]")
    return from_unit(frames.float().clamp(0, 1))


def _list_to_pixels(frames: Sequence[Any], name: str) -> torch.Tensor:
    if not frames:
        raise ValueError(f"`{name}` gave an empty list, expected frames")
    nested = isinstance(frames[0], (list, tuple))
    pieces = [frames_to_pixels(frame, name) for frame in frames]
    # a list of lists is a batch of videos, a flat list one video
    fixed = [piece.shape[2:] if nested else (piece.shape[0], *piece.shape[3:]) for piece in pieces]
    if len(set(fixed)) > 1:
        raise ValueError(f"`{name}` gave frames of different sizes in one list: {sorted({*map(tuple, fixed)})}")
    return torch.cat(pieces, dim=0 if nested else 2)
