# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pieces of a fragmented MP4 file, each made by an encoder of its own."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av.codec.context import Flags
from av.packet import Packet
from av.video.stream import VideoStream

from .color import SDR, ColorTags, RGBConverter
from .probe import VideoInfo

# A fragment's packets are held in memory, and a killed process loses at most one fragment
FRAGMENT_FRAMES = 48
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
BIT_DEPTHS = (8, 10)
_LARGEST_SIDE = 16384
_ENCODERS = {"h264": "libx264", "hevc": "libx265"}
# Both encoders choose by the number of cores how many frames they work on at once, and x264 rounds as its CPU does.
# That decides bits of the result: fixed, equal frames give equal files on every machine.
_THREADS = "4"
# Slices that are coded at the same time see each other in another order each time: equal frames gave other bytes.
_X264 = "cpu-independent=1:lookahead-threads=1:sliced-threads=0"
_X265 = "log-level=none:frame-threads=2:bframes=0:open-gop=0"
_OPTIONS = {
    "movflags": "frag_custom+empty_moov+default_base_moof+frag_discont+skip_trailer",
    # timestamps are written as they are, not from 0: the fragment belongs into a longer file
    "avoid_negative_ts": "disabled",
}


@dataclass(frozen=True)
class EncoderSettings:
    """All that decides what a fragment's stream looks like; a resumed run must have the same."""

    width: int
    height: int
    fps: Fraction
    time_base: Fraction
    color: ColorTags
    sample_aspect_ratio: Fraction
    crf: float
    preset: str
    bit_depth: int = 8

    @property
    def pixel_format(self) -> str:
        """4:2:0, which every browser plays, wherever its half-size chroma planes fit the frame."""
        sampling = "yuv444p" if self.width % 2 or self.height % 2 else "yuv420p"
        return sampling if self.bit_depth == 8 else f"{sampling}10le"

    @property
    def codec(self) -> str:
        """`"h264"`, or `"hevc"` for 10 bits, which hardly anything decodes in H.264."""
        return "h264" if self.bit_depth == 8 else "hevc"

    @property
    def ticks_per_frame(self) -> int:
        return max(1, round(1 / (self.fps * self.time_base)))

    def to_json(self) -> dict[str, Any]:
        return {name: str(value) if isinstance(value, Fraction) else value for name, value in asdict(self).items()}


def choose_settings(
    width: int,
    height: int,
    source: VideoInfo | None,
    fps: float | Fraction | None,
    crf: float,
    preset: str,
    bit_depth: int,
    sample_aspect_ratio: Fraction | None,
) -> EncoderSettings:
    """Returns the settings for [`VideoWriter`]'s arguments of these names.

    Raises:
        ValueError: one of them is wrong, or does not fit the source.
    """
    for name, size in (("width", width), ("height", height)):
        if not 1 <= size <= _LARGEST_SIDE:
            raise ValueError(f"`{name}` must be from 1 to {_LARGEST_SIDE}, got {size}")
    if not 1 <= crf <= 51:
        raise ValueError(f"`crf` must be from 1 to 51, got {crf}")
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}")
    if bit_depth not in BIT_DEPTHS:
        raise ValueError(f"`bit_depth` must be one of {BIT_DEPTHS}, got {bit_depth}")
    if source is not None and source.color.hdr and bit_depth == 8:
        raise ValueError(f"`bit_depth` is 8, but the frames of {str(source.path)!r} are {source.color.hdr}: give 10")
    if (source is None) == (fps is None):
        raise ValueError(f"give either `source` or `fps`, got {'both' if source else 'neither'}")
    if source is not None:
        aspect = sample_aspect_ratio or source.sample_aspect_ratio
        base, rate, color = source.time_base, source.fps, source.color
        return EncoderSettings(width, height, rate, base, color, aspect, crf, preset, bit_depth)
    if fps is None or not 0 < fps <= 1000:
        raise ValueError(f"`fps` must be more than 0 and at most 1000, got {fps}")
    rate = Fraction(fps).limit_denominator(1001)  # 29.97 means 2997/100, 24000/1001 stays what it is
    aspect = sample_aspect_ratio or Fraction(1)
    return EncoderSettings(width, height, rate, 1 / rate, SDR, aspect, crf, preset, bit_depth)


class Fragment:
    """Encodes and muxes consecutive frames in memory."""

    def __init__(self, settings: EncoderSettings, sequence_number: int) -> None:
        self.settings = settings
        self.frames = 0
        self._converter = RGBConverter(settings.color)
        self._durations: dict[int, int] = {}
        self._buffer = io.BytesIO()
        options = _OPTIONS | {"fragment_index": str(sequence_number)}
        self._container = av.open(self._buffer, "w", format="mp4", container_options=options)
        encoder, options = _ENCODERS[settings.codec], _encoder_options(settings)
        self._stream = cast(VideoStream, self._container.add_stream(encoder, rate=settings.fps, options=options))
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = settings.width, settings.height, settings.pixel_format
        context.time_base, context.sample_aspect_ratio = settings.time_base, settings.sample_aspect_ratio
        self._stream.time_base = settings.time_base
        context.flags |= Flags.frame_duration
        context.colorspace, context.color_primaries = settings.color.matrix, settings.color.primaries
        context.color_trc, context.color_range = settings.color.transfer, 2 if settings.color.full_range else 1
        if settings.codec == "hevc":
            context.codec_tag = "hvc1"  # the only one that Apple's players take

    def add(self, pixels: np.ndarray, pts: int, duration: int) -> None:
        frame = self._converter.from_rgb(pixels, self.settings.pixel_format)
        frame.pts, frame.duration, frame.time_base = pts, duration, self.settings.time_base
        self._durations[pts] = duration
        self._mux(self._stream.encode(frame))
        self.frames += 1

    def finish(self) -> tuple[bytes, bytes]:
        """Returns the file header, which all fragments share, and the fragment."""
        self._mux(self._stream.encode(None))
        self._container.close()
        data = self._buffer.getvalue()
        header = header_size(io.BytesIO(data))
        return data[:header], data[header:]

    def _mux(self, packets: list[Packet]) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts or 0)  # libx265 forgets it
            self._container.mux(packet)


def sample_fragment(settings: EncoderSettings) -> bytes:
    """Returns a file of one black frame, to try with whatever is to hold such frames.

    Raises:
        ValueError: the encoder does not take these settings.
    """
    fragment = Fragment(settings, 1)
    try:
        fragment.add(np.zeros((settings.height, settings.width, 3), np.uint8), 0, settings.ticks_per_frame)
        return b"".join(fragment.finish())
    except av.FFmpegError as error:
        raise ValueError(
            f"{settings.codec} cannot be encoded with these settings: {settings.width}x{settings.height}, "
            f"{settings.fps} frames a second, {settings.bit_depth} bits ({error.strerror})"
        ) from error


def header_size(file: BinaryIO) -> int:
    """Returns how many bytes of an MP4 file come before its first fragment.

    Raises:
        ValueError: the file is none of fragments.
    """
    file.seek(0)
    while True:
        start = file.tell()
        box = file.read(8)
        size = int.from_bytes(box[:4], "big")
        if len(box) < 8 or size < 8:
            raise ValueError("it is no file of fragments")
        if box[4:] == b"moof":
            file.seek(0)
            return start
        file.seek(start + size)


def _encoder_options(settings: EncoderSettings) -> dict[str, str]:
    options = {"crf": str(settings.crf), "preset": settings.preset}
    if settings.codec == "hevc":
        return options | {"x265-params": _X265 + _mastering(settings.color)}
    # Without B-frames packets leave in the order of display: no offsets between fragments, no edit lists
    return options | {"bf": "0", "threads": _THREADS, "x264-params": _X264}


def _mastering(color: ColorTags) -> str:
    """What x265 is told of an HDR10 source's display; it repeats that at each keyframe."""
    display = f":master-display={color.mastering_display}" if color.mastering_display else ""
    return display + (f":max-cll={color.light_levels}" if color.light_levels else "")
