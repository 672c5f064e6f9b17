# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Opening media files, of anybody's making: what may be opened at all, and which of the tracks is the film."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

# Demuxers of one file with pictures, by FFmpeg's names. Whatever is not here is refused before its header is read:
# playlists, lists of files, session descriptions, numbered pictures, text.
_DEMUXERS = (
    "3dostr,amv,apng,asf,asf_o,av1,avi,avs2,avs3,bink,cavsvideo,dhav,dirac,dnxhd,dv,evc,flic,flv,gif,gxf,h261,h263,"
    "h264,hevc,ivf,jpegxl_anim,live_flv,lxf,m4v,matroska,mjpeg,mov,mpeg,mpegts,mpegvideo,mxf,nsv,nut,nuv,obu,ogg,pva,"
    "rm,roq,smk,swf,vc1,vc1test,vvc,wtv,yuv4mpegpipe"
)
# Formats in which tracks may begin anywhere, and how far they are looked for
_LATE_TRACKS = {"mpegts", "mpeg"}
_LATE_TRACK_BYTES = 2**28
_BUFFER_BYTES = 2**17
_TRACKS_COMPARED_PACKETS = 500
_PLAIN_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")
LARGEST_PICTURE = 2**26
"""Pixels of the largest picture that is decoded unless a caller allows more: twice those of 8K."""

# Tags that are no UTF-8: PyAV 19 keeps their bytes, earlier ones refuse the file unless told what to put there
_TAG_OPTIONS: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}


def check_file(path: Path) -> None:
    """Sees to it that there is a regular file with content.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: there is none.
    """
    if path.is_dir():
        raise IsADirectoryError(f"`path` {str(path)!r} is a folder, expected a video file")
    if not path.exists():
        hint = ": numbered pictures are read from their folder, name that" if "%" in path.name else ""
        raise FileNotFoundError(f"`path` {str(path)!r} does not exist{hint}")
    if not path.is_file():
        raise ValueError(f"`path` {str(path)!r} is a pipe, a socket or a device, expected a video file")
    if not path.stat().st_size:
        raise ValueError(f"`path` {str(path)!r} is empty, expected a video file")


@contextmanager
def open_container(path: Path, max_pixels: int = LARGEST_PICTURE) -> Iterator[InputContainer]:
    """Opens a media file for reading. FFmpeg is handed the open file and cannot open any other, nor any address.

    Args:
        path (`Path`): the file.
        max_pixels (`int`, *optional*): no picture larger than this is decoded.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no media file of a known format, or cut off before its index.
    """
    with FileIO(path) as file:
        # formats without a mark of their own are told by the suffix; the rest of a name could be taken for a pattern
        file.name = f"clip{path.suffix if _PLAIN_SUFFIX.fullmatch(path.suffix) else ''}"
        container = _open(file, path, {"max_pixels": str(max_pixels)})
        if container.format.name in _LATE_TRACKS:
            container.close()
            file.seek(0)
            far = {"probesize": str(_LATE_TRACK_BYTES), "analyzeduration": str(2**40)}
            container = _open(file, path, far | {"max_pixels": str(max_pixels)})
        with container:
            yield container


def _open(file: FileIO, path: Path, options: dict[str, str]) -> InputContainer:
    allowed = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}
    try:
        return av.open(file, options=allowed | options, buffer_size=_BUFFER_BYTES, **_TAG_OPTIONS)
    except av.FFmpegError as error:
        raise ValueError(
            f"`path` {str(path)!r} is no video file, or names others, or is cut off before its index or first frame: "
            f"{error.strerror}"
        ) from error


@contextmanager
def open_clip(
    path: Path, stream_index: int | None = None, max_pixels: int = LARGEST_PICTURE
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file with one of its video tracks.

    Args:
        path (`Path`): the file.
        stream_index (`int`, *optional*): the track's place among all tracks; the film by default, see [`find_film`].
        max_pixels (`int`, *optional*): the largest picture that is taken.

    Raises:
        OSError, ValueError: as [`open_container`] and [`find_film`] do, or its pictures are larger than `max_pixels`.
    """
    if stream_index is None:
        stream_index = find_film(path, max_pixels=max_pixels)
    with open_container(path, max_pixels) as container:
        stream = container.streams[stream_index]
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        if context.width * context.height > max_pixels:
            raise ValueError(
                f"`path` {str(path)!r} says that its pictures are {context.width}x{context.height}, which is more "
                f"than the {max_pixels} pixels that are read"
            )
        context.options = {"max_pixels": str(max_pixels)}
        yield container, stream


def find_film(path: Path, track: int | None = None, max_pixels: int = LARGEST_PICTURE) -> int:
    """Returns the index, among all tracks, of the video track to read.

    Cover pictures are none. Of several tracks, stills come last; then those go first that are marked as default, then
    the longest, the largest, and the first in the file.

    Args:
        path (`Path`): the file.
        track (`int`, *optional*): which of the video tracks, counted from 0, instead.
        max_pixels (`int`, *optional*): as for [`open_container`].

    Raises:
        OSError, ValueError: as [`open_container`] does, or there is no such track, or none that can be decoded.
    """
    with open_container(path, max_pixels) as container:
        tracks = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not tracks:
            found = ", ".join(sorted({stream.type for stream in container.streams})) or "no track at all"
            raise ValueError(f"`path` {str(path)!r} has no video track with frames; it holds {found}")
        if track is not None:
            if not 0 <= track < len(tracks):
                raise ValueError(f"`track` is {track}, but {str(path)!r} has {len(tracks)} video tracks, from 0 on")
            tracks = [tracks[track]]
        readable = [stream for stream in tracks if stream.codec_context is not None]
        if not readable:
            raise ValueError(f"`path` {str(path)!r} has a video track of a codec that this FFmpeg build cannot decode")
        if len(readable) == 1:
            return readable[0].index
        packets = _packets_of(container, readable)
        return max(readable, key=lambda stream: _rank(stream, packets[stream.index])).index


def _packets_of(container: InputContainer, tracks: list[VideoStream]) -> Counter[int]:
    """Counts the packets of tracks at the beginning of a file, until each has shown that it is more than a still."""
    counts: Counter[int] = Counter()
    for seen, packet in enumerate(container.demux(tracks)):
        counts[packet.stream.index] += bool(packet.size)
        if seen >= _TRACKS_COMPARED_PACKETS or all(counts[track.index] > 1 for track in tracks):
            break
    return counts


def _rank(stream: VideoStream, packets: int) -> tuple[bool, bool, Fraction, int, int]:
    still = max(stream.frames, packets) <= 1 or bool(stream.disposition & Disposition.still_image)
    default = bool(stream.disposition & Disposition.default)
    area = stream.codec_context.width * stream.codec_context.height
    return not still, default, track_duration(stream) or Fraction(0), area, -stream.index


def track_duration(stream: VideoStream) -> Fraction | None:
    """Returns how long a track says that it is, in seconds, or `None` where it does not."""
    time_base = to_fraction(stream.time_base)
    if stream.duration and time_base:
        return stream.duration * time_base
    # Matroska's statistics: 00:00:00.800000000; anybody may write another text there
    if match := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = match.groups()
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    return None


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
