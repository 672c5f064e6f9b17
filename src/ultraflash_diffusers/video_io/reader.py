# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Reading video files: a probe before any heavy work, then frames in constant memory."""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.stream import VideoStream

from .color import ColorTags, RGBConverter, has_alpha

# Formats that FFmpeg sees in text files, and lists that would open other files
_NOT_CLIPS = {"tty", "hls", "dash", "concat", "imf"}
# Formats that tell no frame size: FFmpeg's is that of the first frame
_SIZE_FROM_STREAM = {"h264", "mpeg", "mpegts"}
# Tags that are no UTF-8: PyAV 19 keeps their bytes, earlier ones refuse the file unless told what to put there
_TAG_OPTIONS: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
# Without a frame count, a clip's end is judged by time, and how long its last frame shows is not always known
_UNNOTICED_SECONDS = Fraction(1, 2)


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


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One upright frame of a clip.

    Args:
        pixels (`np.ndarray`): `[height, width, 3]`, RGB, uint8.
        pts (`int`): presentation time from the clip's start, in ticks of [`VideoInfo`]`.time_base`.
        duration (`int`): how long it shows, in the same ticks (the container's word, or one frame at the mean rate).
        index (`int`): its number in the clip, from 0.
    """

    pixels: np.ndarray
    pts: int
    duration: int
    index: int


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
        color (`ColorTags`): colour tags of the stored samples, with matrix and range filled in where unspecified.
        pixel_format (`str`), bit_depth (`int`), has_alpha (`bool`): of the stored samples.
        codec (`str`): name of the video codec.
        has_audio (`bool`), has_subtitles (`bool`): whether the container holds such tracks.
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
    color: ColorTags
    pixel_format: str
    bit_depth: int
    has_alpha: bool
    codec: str
    has_audio: bool
    has_subtitles: bool

    @property
    def rotation(self) -> int:
        return self.orientation.degrees

    @property
    def ticks_per_frame(self) -> int:
        """Ticks of one frame at the mean rate, at least 1."""
        return max(1, round(1 / (self.fps * self.time_base)))


class VideoReader:
    """Reads a video file: `info` says what it is, iteration yields its frames.

    Making a reader opens the file and decodes its first frame, so that what cannot be read fails before heavy work
    starts. Frames come upright (the display matrix is applied: what is written from them needs no rotation tag), as
    8-bit RGB converted by the clip's own matrix and range; 10 and 12 bits are rounded, transparency is put on black
    (with a warning). Timestamps, even or uneven, are kept and count from the container's first one. Every iteration
    opens the file anew and holds one frame (and the decoder's few) at a time.

    Damaged packets are skipped, and the frames that decode are used; a warning at the end says how many. If the frames
    change their size in mid-stream, iteration raises a `ValueError`.

    Args:
        path (`str` or `Path`): the video file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a folder, empty, no video, cut off before its index, has sound but no picture, or not
            one of its frames decodes.

    Attributes:
        info ([`VideoInfo`]): the probe's result.
        frames_read (`int`): frames that the latest iteration has yielded.
        frames_damaged (`int`): packets that the latest iteration could not decode.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.frames_read = 0
        self.frames_damaged = 0
        self._frames_hidden = 0
        self._end = 0
        self._start = 0
        self._after_pts: int | None = None
        _check_file(self.path)
        with open_clip(self.path) as (container, stream):
            first = next(self._decode(container, stream), None)
            if first is None:
                raise ValueError(f"`path` {str(path)!r} has a video track, but not one frame of it decodes")
            self.info = _probe(self.path, container, stream, first)
            _warn_of_losses(self.info, first)
        self.frames_damaged = 0

    def seek(self, frame: int, after_pts: int | None = None) -> None:
        """Makes iterations start at frame number `frame`, exactly.

        Frames before it are decoded and dropped, because only this counts them right in every container. With
        `after_pts`, the timestamp of frame `frame - 1`, the reader jumps to the nearest keyframe instead:
        `reader.seek(writer.frames_done, writer.last_pts)` resumes a long clip at once.

        Args:
            frame (`int`): number of the first frame to yield; the clip's frame count yields none.
            after_pts (`int`, *optional*): `pts` of frame `frame - 1`.

        Raises:
            ValueError: `frame` is negative. An iteration raises it if the clip has fewer than `frame` frames.
        """
        if frame < 0:
            raise ValueError(f"`frame` must be 0 or more, got {frame}")
        self._start, self._after_pts = frame, after_pts

    def __iter__(self) -> Iterator[DecodedFrame]:
        self.frames_read = self.frames_damaged = self._frames_hidden = 0
        if self._after_pts is not None:
            with open_clip(self.path) as (container, stream):
                following = self._jump(container, stream, self._after_pts)
                if following is not None:
                    yield from self._convert(self._timed(following, self._after_pts))
                    self._warn_of_damage(stream, expected=0)
                    return
        with open_clip(self.path) as (container, stream):
            frames = self._timed(self._decode(container, stream), None)
            passed = sum(1 for _ in islice(frames, self._start))
            if passed < self._start:
                raise ValueError(f"`frame` {self._start} is beyond the end of {str(self.path)!r}: {passed} frames")
            yield from self._convert(frames)
            self._warn_of_damage(stream, expected=stream.frames - self._frames_hidden)

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
        """Yields what decodes, counting what does not and what an edit list hides."""
        stream.thread_type = "AUTO"
        if container.format.name in _SIZE_FROM_STREAM:
            # a size that the H.264 decoder is given crops later frames to it, where both fill the same macroblocks
            stream.codec_context.width = stream.codec_context.height = 0
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError:  # the container itself is damaged from here on
                self.frames_damaged += 1
                return
            self._frames_hidden += packet.is_discard
            try:
                frames = [] if packet.is_corrupt else packet.decode()
            except av.FFmpegError:
                self.frames_damaged += 1
                continue
            self.frames_damaged += packet.is_corrupt
            yield from frames

    def _jump(self, container: InputContainer, stream: VideoStream, after_pts: int) -> Iterator[av.VideoFrame] | None:
        """Returns the frames after the one at `after_pts`, or `None` where seeking does not lead there."""
        target = after_pts + self.info.start_pts
        try:
            container.seek(target, stream=stream)
        except av.FFmpegError:
            return None
        frames = self._decode(container, stream)
        for frame in frames:
            if frame.pts == target:
                return frames
            if frame.pts is None or frame.pts > target:
                return None
        return None

    def _timed(self, frames: Iterator[av.VideoFrame], last_pts: int | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Pairs frames with timestamps from the clip's start that always grow."""
        repaired = 0
        for frame in frames:
            if frame.pts is None:
                pts, repaired = 0 if last_pts is None else last_pts + self.info.ticks_per_frame, repaired + 1
            else:
                pts = frame.pts - self.info.start_pts
            if last_pts is not None and pts <= last_pts:
                pts, repaired = last_pts + 1, repaired + 1
            last_pts = pts
            self._end = self.info.start_pts + pts + (frame.duration or self.info.ticks_per_frame)
            yield pts, frame
        if repaired:
            self._warn(f"{repaired} timestamps were missing or out of order and have been filled in")

    def _convert(self, timed_frames: Iterator[tuple[int, av.VideoFrame]]) -> Iterator[DecodedFrame]:
        info, converter = self.info, RGBConverter(self.info.color)
        for index, (pts, frame) in enumerate(timed_frames, self._start):
            pixels = info.orientation.apply(converter.to_rgb(frame))
            if pixels.shape[:2] != (info.height, info.width):
                size, former = f"{pixels.shape[1]}x{pixels.shape[0]}", f"{info.width}x{info.height}"
                raise ValueError(f"{str(self.path)!r} changes its frame size at frame {index}: {size} after {former}")
            self.frames_read += 1
            yield DecodedFrame(pixels, pts, frame.duration or info.ticks_per_frame, index)

    def _warn_of_damage(self, stream: VideoStream, expected: int) -> None:
        total, promised = self._start + self.frames_read, _track_duration(stream)
        if total < expected:
            self._warn(f"cut short or damaged: {total} of the {expected} frames it promises could be used")
        elif self.frames_damaged:
            self._warn(f"damaged: {self.frames_damaged} packets were skipped, {self.frames_read} frames could be used")
        elif not stream.frames and promised and self._end * self.info.time_base < promised - _UNNOTICED_SECONDS:
            self._warn(
                f"cut short: {total} frames could be used, to {float(self._end * self.info.time_base):.2f} of the "
                f"{float(promised):.2f} seconds that it promises"
            )

    def _warn(self, message: str) -> None:
        warnings.warn(f"{str(self.path)!r}: {message}", stacklevel=3)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"`path` {str(path)!r} is a folder, expected a video file")
    if not path.exists():
        raise FileNotFoundError(f"`path` {str(path)!r} does not exist")
    if not path.stat().st_size:
        raise ValueError(f"`path` {str(path)!r} is empty, expected a video file")


@contextmanager
def open_clip(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file with its video track. What a file names beyond itself is not opened."""
    with open_container(path) as container:
        if container.format.name in _NOT_CLIPS:
            raise ValueError(f"`path` {str(path)!r} is no video file (FFmpeg takes it for {container.format.name!r})")
        tracks = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not tracks:
            found = ", ".join(sorted({stream.type for stream in container.streams})) or "no track at all"
            raise ValueError(f"`path` {str(path)!r} has no video track with frames; it holds {found}")
        if tracks[0].codec_context is None:
            raise ValueError(f"`path` {str(path)!r} has a video track of a codec that this FFmpeg build cannot decode")
        yield container, tracks[0]


def open_container(path: Path) -> InputContainer:
    """Opens a media file for reading.

    Raises:
        ValueError: it is no media file, or cut off before its index.
    """
    try:
        # the prefix keeps a colon in a file's name from being read as a protocol
        return av.open(f"file:{path}", options={"protocol_whitelist": "file"}, **_TAG_OPTIONS)
    except OSError as error:
        if error.errno == errno.EPERM:  # FFmpeg's answer to a protocol or demuxer that is shut out
            raise ValueError(f"`path` {str(path)!r} is no video file, but names others") from error
        raise type(error)(error.errno, f"`path` {str(path)!r} cannot be opened: {error.strerror}") from error
    except av.FFmpegError as error:
        raise ValueError(
            f"`path` {str(path)!r} is no video file, or cut off before its index or first frame: {error.strerror}"
        ) from error


class _Rational(Protocol):
    @property
    def numerator(self) -> int: ...

    @property
    def denominator(self) -> int: ...


def to_fraction(rational: _Rational | None) -> Fraction | None:
    """Returns a rate, ratio or time base of PyAV's as a `Fraction`, `None` where it is unset.

    Up to version 18 they are just that. Since 19 they are of a class of its own, whose products with each other are
    rounded to 32 bits, and an unset one is a rational too, which counts as false.
    """
    return Fraction(rational.numerator, rational.denominator) if rational else None


def _probe(path: Path, container: InputContainer, stream: VideoStream, first: av.VideoFrame) -> VideoInfo:
    time_base = to_fraction(stream.time_base) or Fraction(1, av.time_base)
    # one-frame clips and raw streams may have no rate of their own
    fps = to_fraction(stream.average_rate or stream.guessed_rate or stream.base_rate) or Fraction(25)
    duration = _track_duration(stream) or (Fraction(container.duration or 0, av.time_base) or None)
    orientation = Orientation.of(first, str(path))
    aspect = to_fraction(stream.sample_aspect_ratio) or Fraction(1)
    sizes = (first.height, first.width) if orientation.transpose else (first.width, first.height)
    return VideoInfo(
        path=path,
        width=sizes[0],
        height=sizes[1],
        sample_aspect_ratio=1 / aspect if orientation.transpose else aspect,
        fps=fps,
        time_base=time_base,
        start_pts=_start_pts(container, first, time_base),
        duration=duration,
        num_frames=stream.frames or (round(duration * fps) if duration else None),
        orientation=orientation,
        color=ColorTags.of(first),
        pixel_format=first.format.name,
        bit_depth=max(component.bits for component in first.format.components),
        has_alpha=has_alpha(first.format) or stream.metadata.get("alpha_mode") == "1",
        codec=stream.codec_context.codec.canonical_name,
        has_audio=bool(container.streams.audio),
        has_subtitles=bool(container.streams.subtitles),
    )


def _start_pts(container: InputContainer, first: av.VideoFrame, time_base: Fraction) -> int:
    """Returns the clip's origin: the container's start where that is later than 0, else the video's if before 0."""
    first_pts = first.pts or 0
    if container.start_time is None or first_pts < 0:
        return min(0, first_pts)
    return max(0, min(first_pts, round(Fraction(container.start_time, av.time_base) / time_base)))


def _track_duration(stream: VideoStream) -> Fraction | None:
    time_base = to_fraction(stream.time_base)
    if stream.duration and time_base:
        return stream.duration * time_base
    # Matroska's statistics: 00:00:00.800000000; anybody may write another text there
    if match := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = match.groups()
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    return None


def _warn_of_losses(info: VideoInfo, first: av.VideoFrame) -> None:
    """Says what conversion to 8-bit RGB frames cannot keep."""
    losses = []
    if has_alpha(first.format):
        losses.append("its transparency is put on a black background")
    elif info.has_alpha:
        losses.append("its separate alpha layer is dropped")
    if info.color.hdr:
        losses.append(f"it is HDR ({info.color.hdr}): the tags are kept, but 8 bits may show banding")
    if first.interlaced_frame:
        losses.append("it is interlaced, and its fields are not separated")
    for loss in losses:
        warnings.warn(f"{str(info.path)!r}: {loss}", stacklevel=3)
