# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Frames of files (uint8, channels last) and pixels of networks (floating point, channels first)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..pixels import from_levels, to_levels


def frames_to_tensor(frames: np.ndarray | torch.Tensor | Sequence[np.ndarray]) -> torch.Tensor:
    """Converts a file's frames to a network's pixels.

    Args:
        frames (`np.ndarray`, `torch.Tensor` or list of `np.ndarray`): `[frames, height, width, 3]` uint8.

    Returns:
        `torch.Tensor`: `[1, 3, frames, height, width]`, float32 in [-1, 1].

    Raises:
        TypeError: `frames` is not uint8.
        ValueError: `frames` has another shape or is empty.
    """
    frames = checked_frames(frames)
    return from_levels(torch.from_numpy(frames).permute(3, 0, 1, 2)[None]).contiguous()


def tensor_to_frames(pixels: torch.Tensor, dtype: type[np.uint8] | type[np.uint16] = np.uint8) -> np.ndarray:
    """Converts a network's pixels to a file's frames, rounded to the nearest level; values beyond [-1, 1] are clipped.

    Args:
        pixels (`torch.Tensor`): `[1, 3, frames, height, width]`, floating point in [-1, 1]; videos of a batch are
            converted one by one.
        dtype (`type`, *optional*, defaults to `np.uint8`): `np.uint8` or `np.uint16`.

    Returns:
        `np.ndarray`: `[frames, height, width, 3]` of that type, over its whole range.

    Raises:
        TypeError: `pixels` is not floating point.
        ValueError: `pixels` has another shape, is empty, or holds NaN or infinity.
    """
    if not isinstance(pixels, torch.Tensor) or not pixels.is_floating_point():
        kind = pixels.dtype if isinstance(pixels, torch.Tensor) else type(pixels).__name__
        raise TypeError(f"`pixels` must be a floating-point torch.Tensor, got {kind}")
    if pixels.ndim != 5 or pixels.shape[:2] != (1, 3) or 0 in pixels.shape:
        raise ValueError(f"`pixels` must have shape [1, 3, frames, height, width], got {tuple(pixels.shape)}")
    if not pixels.isfinite().all():
        raise ValueError("`pixels` holds values that are not finite")
    if dtype is np.uint8:
        return to_levels(pixels.detach())[0].cpu().numpy()
    levels = ((pixels.detach()[0].float().clamp(-1, 1) + 1) * 32767.5).round().to(torch.int32)
    return levels.permute(1, 2, 3, 0).cpu().numpy().astype(np.uint16)


def write_side_by_side_png(
    path: str | Path, images: Sequence[np.ndarray], captions: Sequence[str] = (), gap: int = 8
) -> None:
    """Writes pictures beside each other, each brought to the tallest one's height by bicubic interpolation.

    Args:
        path (`str` or `Path`): the PNG file.
        images (sequence of `np.ndarray`): `[height, width, 3]` uint8 each, of any sizes.
        captions (sequence of `str`, *optional*, defaults to `()`): one line of text above each picture.
        gap (`int`, *optional*, defaults to 8): pixels between the pictures.

    Raises:
        TypeError: an image is not uint8.
        ValueError: no images, an image of another shape, or not as many captions as images.
    """
    if not len(images):
        raise ValueError("`images` is empty, expected at least one picture")
    if captions and len(captions) != len(images):
        raise ValueError(f"`captions` has {len(captions)} entries for {len(images)} images")
    height = max(image.shape[0] for image in images)
    pictures = []
    for image in images:
        picture = Image.fromarray(checked_frames(image[None], "images")[0])
        width = round(picture.width * height / picture.height)
        pictures.append(picture.resize((width, height), Image.Resampling.BICUBIC))
    font = ImageFont.load_default(size=16)
    top = 24 if captions else 0
    sheet = Image.new("RGB", (sum(p.width for p in pictures) + gap * (len(pictures) - 1), top + height), "white")
    left = 0
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (left, top))
        if captions:
            ImageDraw.Draw(sheet).text((left + 4, 2), captions[index], fill="black", font=font)
        left += picture.width + gap
    sheet.save(path, format="PNG")


def checked_frames(
    frames: np.ndarray | torch.Tensor | Sequence[np.ndarray],
    name: str = "frames",
    dtypes: Sequence[type] = (np.uint8,),
) -> np.ndarray:
    """Returns `frames` as `[frames, height, width, 3]` in one piece, or raises naming the argument `name`."""
    array = frames.detach().cpu().numpy() if isinstance(frames, torch.Tensor) else np.asarray(frames)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"`{name}` must have shape [frames, height, width, 3], got {array.shape}")
    if array.dtype not in dtypes:
        raise TypeError(f"`{name}` must be {' or '.join(kind.__name__ for kind in dtypes)}, got {array.dtype}")
    return np.ascontiguousarray(array)
