# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a clip is, found out before any heavy work."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.stream import VideoStream

from .color import SDR, ColorTags, has_alpha
from .matroska import Crop, read_crop
from .opening import to_fraction, track_duration

# Streams without a container: FFmpeg assumes 25 frames a second, whatever the codec says
_INEXACT_MEAN = Fraction(1, 200)
_BARE_STREAMS = {"h264", "hevc", "vvc", "mpegvideo", "m4v", "cavsvideo", "vc1", "dirac", "evc", "obu", "av1"}


class Orientation(NamedTuple):
    """What turns a stored picture upright: a transposition, then mirror images."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame, path: str) -> Orientation:
        """Reads a frame's display matrix; angles between the quarter turns are left alone, with a warning."""
        side_data = cast(Mapping[SideDataType, SideData], frame.side_data)
        if SideDataType.DISPLAYMATRIX not in side_data:
            return cls()
        matrix = np.frombuffer(bytes(side_data[SideDataType.DISPLAYMATRIX]), np.int32).astype(float)
        a, b, c, d = matrix[[0, 1, 3, 4]]
        slack = 0.01 * np.abs([a, b, c, d]).max()
        if max(abs(b), abs(c)) <= slack:
            return cls(False, a < 0, d < 0)
        if max(abs(a), abs(d)) <= slack:
            return cls(True, c < 0, b < 0)
        warnings.warn(f"{path!r}: rotation by {frame.rotation} degrees, no quarter turn, is ignored", stacklevel=4)
        return cls()

    @property
    def degrees(self) -> int:
        """The clockwise turn, 0, 90, 180 or 270 (of the picture before it is mirrored, where it is)."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_y else 0

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Returns `[height, width, 3]` upright."""
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        return np.ascontiguousarray(pixels[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1])


@dataclass(frozen=True)
class VideoInfo:
    """What a probe of a clip finds; sizes are those of the upright frames that [`VideoReader`] yields.

    Args:
        path (`Path`): the file.
        width (`int`), height (`int`): size of the upright frames, in pixels.
        sample_aspect_ratio (`Fraction`): width of an upright pixel over its height; 1 for nearly all clips. Frames are
            not resampled to square pixels; the ratio is handed on to the output.
        fps (`Fraction`): mean frame rate.
        time_base (`Fraction`): seconds per tick of the timestamps.
        start_pts (`int`): the clip's origin in ticks, taken off all timestamps: the container's first timestamp where
            that is later than 0, else 0 (or the video's first, where that is negative).
        duration (`Fraction` or `None`): length of the video track (else of the file) in seconds, where it is told.
        num_frames (`int` or `None`): the container's frame count, else duration times rate: an estimate.
        rotation (`int`): degrees clockwise by which stored frames are turned (`orientation` has mirroring too).
        orientation (`Orientation`): the whole of it.
        crop (`Crop`): pixels that the container cuts off the stored picture's edges.
        color (`ColorTags`): colour tags of the frames that [`VideoReader`] yields, with matrix and range filled in
            where unspecified.
        stored_color (`ColorTags`): those of the stored samples: others where HDR is brought to standard range.
        pixel_format (`str`), bit_depth (`int`), has_alpha (`bool`): of the stored samples.
        interlaced (`bool`): whether the first frame is.
        codec (`str`): name of the video codec.
        container (`str` or `None`): FFmpeg's name of the container; `None` for pictures, which have no tracks.
        stream_index (`int`): the video track's place among all tracks.
        has_audio (`bool`), has_subtitles (`bool`): whether the container holds such tracks.
        timecode (`str` or `None`): of the first frame, as the clip's tags tell it.
    """

    path: Path
    width: int
    height: int
    sample_aspect_ratio: Fraction
    fps: Fraction
    time_base: Fraction
    start_pts: int
    duration: Fraction | None
    num_frames: int | None
    orientation: Orientation
    crop: Crop
    color: ColorTags
    stored_color: ColorTags
    pixel_format: str
    bit_depth: int
    has_alpha: bool
    interlaced: bool
    codec: str
    container: str | None
    stream_index: int
    has_audio: bool
    has_subtitles: bool
    timecode: str | None

    @property
    def rotation(self) -> int:
        return self.orientation.degrees

    @property
    def ticks_per_frame(self) -> int:
        """Ticks of one frame at the mean rate, at least 1."""
        return max(1, round(1 / (self.fps * self.time_base)))


def probe(
    path: Path, container: InputContainer, stream: VideoStream, first: av.VideoFrame, high_bit_depth: bool
) -> VideoInfo:
    """Finds out what a clip is from its opened track and the first frame of it.

    Raises:
        ValueError: its colours have no conversion here, or its crop leaves nothing.
    """
    time_base = to_fraction(stream.time_base) or Fraction(1, av.time_base)
    fps = _frame_rate(container, stream, time_base)
    duration = track_duration(stream) or (Fraction(container.duration or 0, av.time_base) or None)
    orientation = Orientation.of(first, str(path))
    aspect = to_fraction(stream.sample_aspect_ratio) or Fraction(1)
    crop = read_crop(path, stream.index) if container.format.name.startswith("matroska") else Crop()
    width, height = first.width - crop.left - crop.right, first.height - crop.top - crop.bottom
    if width < 1 or height < 1:
        raise ValueError(f"{str(path)!r}: its crop {crop} leaves nothing of {first.width}x{first.height} pixels")
    stored_color = ColorTags.of(first)
    return VideoInfo(
        path=path,
        width=height if orientation.transpose else width,
        height=width if orientation.transpose else height,
        sample_aspect_ratio=1 / aspect if orientation.transpose else aspect,
        fps=fps,
        time_base=time_base,
        start_pts=_start_pts(container, first, time_base),
        duration=duration,
        num_frames=stream.frames or (round(duration * fps) if duration else None),
        orientation=orientation,
        crop=crop,
        color=SDR if stored_color.hdr and not high_bit_depth else stored_color,
        stored_color=stored_color,
        pixel_format=first.format.name,
        bit_depth=max(component.bits for component in first.format.components),
        has_alpha=has_alpha(first.format) or stream.metadata.get("alpha_mode") == "1",
        interlaced=first.interlaced_frame,
        codec=stream.codec_context.codec.canonical_name,
        container=container.format.name,
        stream_index=stream.index,
        has_audio=bool(container.streams.audio),
        has_subtitles=bool(container.streams.subtitles),
        timecode=read_timecode(container),
    )


def _frame_rate(container: InputContainer, stream: VideoStream, time_base: Fraction) -> Fraction:
    """The mean rate, or the one that FFmpeg sees behind it where the mean is none or inexact.

    It is none of a bare stream, or where there is one frame a tick; it is inexact where the last frame shows longer.
    """
    mean, guessed = to_fraction(stream.average_rate), to_fraction(stream.guessed_rate or stream.base_rate)
    if guessed and (not mean or container.format.name in _BARE_STREAMS or mean * time_base >= 1):
        return guessed
    if guessed and mean and abs(mean / guessed - 1) < _INEXACT_MEAN:
        return guessed
    return mean or Fraction(25)  # one-frame clips may have no rate


def read_timecode(container: InputContainer) -> str | None:
    """Returns the timecode that a file's tags, or those of one of its tracks, tell."""
    for holder in (container, *container.streams):
        for key, text in holder.metadata.items():
            if key.lower() == "timecode":
                return text
    return None


def _start_pts(container: InputContainer, first: av.VideoFrame, time_base: Fraction) -> int:
    """Returns the clip's origin: the container's start where that is later than 0, else the video's if before 0."""
    first_pts = first.pts or 0
    if container.start_time is None or first_pts < 0:
        return min(0, first_pts)
    return max(0, min(first_pts, round(Fraction(container.start_time, av.time_base) / time_base)))


def warn_of_losses(info: VideoInfo, first: av.VideoFrame, deinterlace: bool) -> None:
    """Says what conversion to RGB frames cannot keep."""
    losses = []
    if has_alpha(first.format):
        losses.append("its transparency is put on a black background")
    elif info.has_alpha:
        losses.append("its separate alpha layer is dropped")
    if info.stored_color.hdr and not info.color.hdr:
        losses.append(f"it is HDR ({info.stored_color.hdr}) and is brought to standard range (BT.709)")
    if first.interlaced_frame and not deinterlace:
        losses.append("it is interlaced, and its fields are not separated (deinterlace=True does that)")
    for loss in losses:
        warnings.warn(f"{str(info.path)!r}: {loss}", stacklevel=4)
