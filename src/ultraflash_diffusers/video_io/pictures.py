# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pictures as a clip: a folder of them, one alone, or an animated WebP."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from .color import SDR, on_black
from .matroska import Crop
from .probe import Orientation, VideoInfo

# Pillow's formats that decode what is in the file and nothing else
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "GIF", "TGA")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".tga"}
_TICKS = 1000  # a second: animated WebP counts milliseconds
_DEFAULT_FPS = Fraction(24)


def is_pictures(path: Path) -> bool:
    """Whether a path is a folder or a file that holds pictures and is none of a video format (GIF and APNG are)."""
    if path.is_dir():
        return True
    with path.open("rb") as file:
        head = file.read(4096)
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    still_png = head.startswith(b"\x89PNG") and b"acTL" not in head
    return webp or still_png or head.startswith((b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6"))


# what Pillow raises of damaged files, when it opens them and when it decodes them
PICTURE_ERRORS = (
    *(Image.DecompressionBombError, OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError),
    *(ArithmeticError, struct.error, zlib.error),
)


@contextmanager
def opened_picture(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Opens a picture, whose size is checked by its header alone, to be decoded in a `with` block.

    Raises:
        ValueError: it is no picture of a known format, larger than `max_pixels`, or does not decode.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(path, formats=FORMATS)
        with image:
            if image.width * image.height > max_pixels:
                raise ValueError(
                    f"it says that it is {image.width}x{image.height}, which is more than the {max_pixels} pixels "
                    "that are read"
                )
            yield image
    except PICTURE_ERRORS as error:
        raise ValueError(f"`path` {str(path)!r} is no picture that can be read: {error}") from error


def picture_to_rgb(image: Image.Image) -> np.ndarray:
    """Converts a picture, turned upright, to `[height, width, 3]`: uint16 where it has 16 bits, else uint8.

    Transparent pixels are put on black. Values of float pictures are taken as [0, 1].

    Raises:
        ValueError: a picture of a kind whose range nobody knows.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return np.repeat(np.clip(np.asarray(image), 0, 65535).astype(np.uint16)[..., None], 3, axis=-1)
    if image.mode == "F":
        levels = np.asarray(image)
        if not (np.isfinite(levels).all() and 0 <= levels.min() <= levels.max() <= 1):
            raise ValueError("a picture of floating-point values must have them in [0, 1]")
        return np.repeat(np.round(levels * 65535).astype(np.uint16)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        return on_black(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


class PictureClip:
    """Pictures as the frames of a clip.

    Args:
        path (`Path`): a folder, whose pictures are taken in the order of their names (numbers by their value), or a
            file: a still or an animation.
        fps (`Fraction`, *optional*): frames a second; 24 by default, an animation's own times where it has such.
        max_pixels (`int`): the largest picture that is taken.
        high_bit_depth (`bool` or `None`): whether to keep 16 bits; as the first picture has by default.

    Raises:
        IsADirectoryError: a folder without pictures.
        ValueError: one that cannot be read.
    """

    frames_damaged = 0

    def __init__(self, path: Path, fps: Fraction | None, max_pixels: int, high_bit_depth: bool | None) -> None:
        self._max_pixels = max_pixels
        self._files = picture_files(path) if path.is_dir() else [path]
        others = len(_visible_files(path)) - len(self._files) if path.is_dir() else 0
        if others:
            warnings.warn(f"{str(path)!r}: {others} files in it are no pictures and are left out", stacklevel=4)
        with opened_picture(self._files[0], max_pixels) as image:
            animated = not path.is_dir() and getattr(image, "n_frames", 1) > 1
            self._durations = None if fps or not animated else _durations(image)
            self._count = getattr(image, "n_frames", 1) if animated else len(self._files)
            first = picture_to_rgb(image)
            self.high_bit_depth = first.dtype == np.uint16 if high_bit_depth is None else high_bit_depth
            pixel_format, codec, transparent = image.mode, (image.format or "").lower(), image.has_transparency_data
        fps = fps or (_mean_rate(self._durations) if self._durations else _DEFAULT_FPS)
        time_base = Fraction(1, _TICKS) if self._durations else 1 / fps
        if transparent:
            warnings.warn(f"{str(path)!r}: its transparency is put on a black background", stacklevel=4)
        self.info = VideoInfo(
            path=path,
            width=first.shape[1],
            height=first.shape[0],
            sample_aspect_ratio=Fraction(1),
            fps=fps,
            time_base=time_base,
            start_pts=0,
            duration=sum(self._durations) * time_base if self._durations else self._count / fps,
            num_frames=self._count,
            orientation=Orientation(),
            crop=Crop(),
            color=SDR,
            stored_color=SDR,
            pixel_format=pixel_format,
            bit_depth=8 * first.itemsize,
            has_alpha=transparent,
            interlaced=False,
            codec=codec,
            container=None,
            stream_index=0,
            has_audio=False,
            has_subtitles=False,
            timecode=None,
        )

    def frames(self, start: int, after_pts: int | None) -> Iterator[tuple[np.ndarray, int, int]]:
        """Yields pixels, timestamp and duration from frame `start` on."""
        if start > self._count:
            raise ValueError(f"`frame` {start} is beyond the end of {str(self.info.path)!r}: {self._count} frames")
        durations = self._durations or [1] * self._count
        times = list(accumulate(durations, initial=0))
        yield from zip(self._pixels(start), times[start:], durations[start:], strict=False)

    def _pixels(self, start: int) -> Iterator[np.ndarray]:
        if len(self._files) > 1 or self._count == 1:
            for path in self._files[start:]:
                with opened_picture(path, self._max_pixels) as image:
                    yield self._converted(image)
            return
        with opened_picture(self._files[0], self._max_pixels) as image:
            for index, picture in enumerate(ImageSequence.Iterator(image)):
                if index >= start:
                    yield self._converted(picture)

    def _converted(self, image: Image.Image) -> np.ndarray:
        pixels = picture_to_rgb(image)
        if self.high_bit_depth:
            return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * 257
        return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def picture_files(folder: Path) -> list[Path]:
    """Returns a folder's pictures in the order of their names, numbers in these by their value.

    Raises:
        IsADirectoryError: there are none.
    """
    pictures = [path for path in _visible_files(folder) if path.suffix.lower() in _SUFFIXES]
    if not pictures:
        raise IsADirectoryError(
            f"`path` {str(folder)!r} is a folder without pictures ({', '.join(sorted(_SUFFIXES))})"
        )
    return sorted(pictures, key=_natural_order)


def _visible_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]


def _natural_order(path: Path) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _durations(image: Image.Image) -> list[int]:
    """Milliseconds of each frame; those that tell none get what browsers show, a tenth of a second."""
    durations = []
    for frame in ImageSequence.Iterator(image):
        frame.load()  # before, Pillow does not know it
        durations.append(round(frame.info.get("duration", 0)) or 100)
    return durations


def _mean_rate(durations: list[int]) -> Fraction:
    return Fraction(len(durations) * _TICKS, sum(durations))
