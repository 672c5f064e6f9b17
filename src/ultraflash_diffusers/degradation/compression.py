# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What codecs do to a clip: real encoders and decoders, run in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from .per_frame import FrameFunction, FrameTransform
from .ranges import Range, check_clip, check_range, draw_integer

if TYPE_CHECKING:
    import av


@dataclass(frozen=True)
class H264:
    """Encodes the clip with x264 and decodes it again.

    Args:
        crf (`int` or pair of `int`, *optional*, defaults to `(20, 32)`): constant rate factor in [0, 51]; larger is
            worse.
        preset (`str`, *optional*, defaults to `"veryfast"`): x264's trade of speed for size.
    """

    crf: Range = (20, 32)
    preset: str = "veryfast"

    def __post_init__(self) -> None:
        check_range("crf", self.crf, 0, 51)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        check_clip(frames)
        crf = draw_integer(rng, self.crf)
        count, height, width = frames.shape[:3]
        # 4:2:0 chroma needs even sizes: an odd edge is repeated, and taken off again
        even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        decoded = np.stack(list(_decode(_encode(even, crf, self.preset))))
        if len(decoded) != count:
            raise RuntimeError(f"H.264 gave back {len(decoded)} of {count} frames")
        return np.ascontiguousarray(decoded[:, :height, :width])


@dataclass(frozen=True)
class Jpeg(FrameTransform):
    """Compresses each frame as a JPEG picture.

    Args:
        quality (`int` or pair of `int`, *optional*, defaults to `(70, 95)`): in [1, 95]; smaller is worse.
    """

    quality: Range = (70, 95)

    def __post_init__(self) -> None:
        check_range("quality", self.quality, 1, 95)

    def drawn(self, shape: tuple[int, int, int], rng: np.random.Generator) -> list[FrameFunction]:
        """See [`FrameTransform`]."""
        quality = draw_integer(rng, self.quality)
        return [lambda frame, _: _through_jpeg(frame, quality)]


def _through_jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), settings)
    return cast(np.ndarray, cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB))


def _encode(frames: np.ndarray, crf: int, preset: str) -> list[av.Packet]:
    import av

    encoder = av.VideoCodecContext.create("libx264", "w")
    encoder.height, encoder.width = frames.shape[1:3]
    encoder.pix_fmt = "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 24), Fraction(24)
    # The number of threads shapes x264's output: one makes it the same on every machine. Its "macroblock
    # tree" gives another result once in a thousand times (more often at larger sizes) where its AVX2 code runs.
    encoder.options = {"crf": str(crf), "preset": preset, "threads": "1", "mbtree": "0"}
    packets: list[av.Packet] = []
    for index, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = index
        packets += encoder.encode(frame)
    return packets + encoder.encode(None)


def _decode(packets: list[av.Packet]) -> Iterator[np.ndarray]:
    import av

    decoder = av.VideoCodecContext.create("h264", "r")
    decoder.thread_count = 1  # small clips gain nothing from more, and loader workers share the cores
    for packet in [*packets, None]:
        for frame in decoder.decode(packet):
            yield frame.to_ndarray(format="rgb24")
