# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Validation pairs: a clip brought to the output size, and the same clip downscaled by two and compressed."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np

from ultraflash_diffusers.training.data.drawing import area_resize
from ultraflash_diffusers.video_io.opening import open_container, to_fraction

SCALE = 2
CRF = 28


@dataclass(frozen=True)
class ClipPair:
    """A clip in both sizes.

    Args:
        name (`str`): The source file's name without its ending.
        truth (`np.ndarray`): uint8 RGB frames, [F, H, W, 3].
        low (`np.ndarray`): The same frames at half the height and width, through H.264, uint8 RGB, [F, H/2, W/2, 3].
    """

    name: str
    truth: np.ndarray
    low: np.ndarray


def prepare_clip(path: Path, height: int, width: int, cache: Path | None = None) -> ClipPair:
    """Makes the pair of one video file, or reads it from the cache.

    All frames are prepared, so that a run on fewer frames sees the same compressed input.

    Args:
        path (`Path`): The video file.
        height (`int`): Rows of the truth, a multiple of 4.
        width (`int`): Columns of the truth, a multiple of 4.
        cache (`Path`, *optional*): Folder for the prepared frames, one `.npy` each; its file names hold a digest of
            the source, so that another file of the same name is never taken for this one.
    """
    if height % 4 or width % 4:
        raise ValueError(f"height and width must be multiples of 4 (2x, then 4:2:0 chroma), got {height}x{width}.")
    if cache is None:
        return _make_pair(path, height, width)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    stem = f"{path.stem}_{digest}_{height}x{width}"
    truth_file, low_file = cache / f"{stem}_truth.npy", cache / f"{stem}_low_crf{CRF}.npy"
    if not (truth_file.exists() and low_file.exists()):
        pair = _make_pair(path, height, width)
        cache.mkdir(parents=True, exist_ok=True)
        np.save(truth_file, pair.truth)
        np.save(low_file, pair.low)
    return ClipPair(path.stem, np.load(truth_file), np.load(low_file))


def _make_pair(path: Path, height: int, width: int) -> ClipPair:
    truth, rate = read_clip(path, height, width)
    return ClipPair(path.stem, truth, compress(shrunk(truth), rate))


def read_clip(path: Path, height: int, width: int, frames: int | None = None) -> tuple[np.ndarray, Fraction]:
    """A file's first frames (default: all), centre-cropped and brought to a size by area: uint8 RGB [F, H, W, 3], and
    how many there are in a second.

    Raises:
        ValueError: The file does not say the latter.
    """
    with open_container(path) as container:
        stream = container.streams.video[0]
        rate = to_fraction(stream.average_rate)
        if rate is None:
            raise ValueError(f"{path} does not say how many frames a second it has.")
        decoded = (frame.to_ndarray(format="rgb24") for frame in islice(container.decode(stream), frames))
        return np.stack([area_resize(centre_crop(frame, height / width), height, width) for frame in decoded]), rate


def frame_size(path: Path) -> tuple[int, int]:
    """Rows and columns of a file's frames."""
    with open_container(path) as container:
        stream = container.streams.video[0]
        return stream.height, stream.width


def shrunk(truth: np.ndarray) -> np.ndarray:
    """Frames at half the height and width, by area."""
    return np.stack([area_resize(frame, truth.shape[1] // SCALE, truth.shape[2] // SCALE) for frame in truth])


def centre_crop(frame: np.ndarray, aspect: float) -> np.ndarray:
    """The largest centred part of a [H, W, 3] frame whose height is `aspect` times its width."""
    height, width = frame.shape[:2]
    rows, columns = min(height, round(width * aspect)), min(width, round(height / aspect))
    top, left = (height - rows) // 2, (width - columns) // 2
    return frame[top : top + rows, left : left + columns]


def compress(frames: np.ndarray, rate: Fraction | int, crf: int = CRF) -> np.ndarray:
    """H.264 (x264, preset medium, yuv420p) and back, all in memory.

    Args:
        frames (`np.ndarray`): uint8 RGB, [F, H, W, 3].
        rate (`Fraction` or `int`): Frames per second: x264's rate control looks at it.
        crf (`int`, *optional*, defaults to 28): x264's constant rate factor.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        # One thread: with more, x264's decisions, and so the benchmark's input, depend on the machine.
        options = {"crf": str(crf), "preset": "medium", "threads": "1"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    if decoded.shape != frames.shape:
        raise RuntimeError(f"H.264 round trip gave {decoded.shape}, expected {frames.shape}.")
    return decoded
