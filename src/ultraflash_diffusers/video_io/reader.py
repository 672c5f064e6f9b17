# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Reading clips: a probe before any heavy work, then frames in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from .container_clip import ContainerClip
from .opening import LARGEST_PICTURE, check_file
from .pictures import PictureClip, is_pictures
from .probe import VideoInfo


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One upright frame of a clip.

    Args:
        pixels (`np.ndarray`): `[height, width, 3]`, RGB, uint8; uint16 of a reader with `high_bit_depth`.
        pts (`int`): presentation time from the clip's start, in ticks of [`VideoInfo`]`.time_base`.
        duration (`int`): how long it shows, in the same ticks (the container's word, or one frame at the mean rate).
        index (`int`): its number in the clip, from 0.
    """

    pixels: np.ndarray
    pts: int
    duration: int
    index: int


class _Clip(Protocol):
    info: VideoInfo
    frames_damaged: int
    high_bit_depth: bool

    def frames(self, start: int, after_pts: int | None) -> Iterator[tuple[np.ndarray, int, int]]: ...


class VideoReader:
    """Reads a clip: `info` says what it is, iteration yields its frames.

    A clip is a video file, or pictures: a folder of them, in the order of the numbers in their names, a single one, or
    an animated WebP.

    Making a reader opens the file and decodes its first frame, so that what cannot be read fails before heavy work
    starts. Frames come upright and cropped as the container says (what is written from them needs no such tag), as
    8-bit RGB converted by the clip's own matrix and range. 10 and 12 bits are rounded, HDR is brought to standard
    range and transparency is put on black, each of the latter two with a warning. Timestamps, even or uneven, are kept
    and count from the container's first one. Every iteration opens the file anew and holds one frame (and the
    decoder's few) at a time.

    Nothing but the given file is ever opened, whatever it names, and pictures are refused by what headers say of their
    size. Of several video tracks the film is read, see [`~opening.find_film`].

    Damaged packets are skipped, and the frames that decode are used; a warning at the end says how many. If the frames
    change their size in mid-stream, iteration raises a `ValueError`.

    Args:
        path (`str` or `Path`): the video file, picture, or folder of pictures.
        track (`int`, *optional*): which of a file's video tracks, counted from 0.
        num_frames (`int`, *optional*): the most frames to read; all there are by default.
        fps (`float` or `Fraction`, *optional*): frames a second of pictures; 24, or an animation's own, by default.
        deinterlace (`bool`, *optional*, defaults to `False`): makes whole pictures of interlaced ones, as many.
        high_bit_depth (`bool`, *optional*, defaults to `False`): yields uint16 over the whole range, in the clip's own
            colours, HDR included. `None` does so of clips that have more than 8 bits.
        max_pixels (`int`, *optional*): the largest picture that is read, by default twice an 8K one.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: a folder without pictures.
        ValueError: the file is empty, no video, cut off before its index, too large, has sound but no picture, or not
            one of its frames decodes; an argument that it has no use for.

    Attributes:
        info ([`VideoInfo`]): the probe's result.
        high_bit_depth (`bool`): whether frames are uint16.
        choices (`dict`): what was asked for that decides the frames: video track, number, deinterlacing.
        frames_read (`int`): frames that the latest iteration has yielded.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        track: int | None = None,
        num_frames: int | None = None,
        fps: float | Fraction | None = None,
        deinterlace: bool = False,
        high_bit_depth: bool | None = False,
        max_pixels: int = LARGEST_PICTURE,
    ) -> None:
        self.path = Path(path)
        self.choices = {"video_track": track, "num_frames": num_frames, "deinterlace": deinterlace}
        self.frames_read = 0
        self._start = 0
        self._after_pts: int | None = None
        if not self.path.is_dir():
            check_file(self.path)
        self._clip: _Clip
        if is_pictures(self.path):
            if track is not None or deinterlace:
                raise ValueError(f"`path` {str(path)!r} holds pictures: `track` and `deinterlace` are for video files")
            self._clip = PictureClip(self.path, _checked_rate(fps), max_pixels, high_bit_depth)
        else:
            if fps is not None:
                raise ValueError(f"`fps` is {fps}, but {str(path)!r} is a video file, which has times of its own")
            self._clip = ContainerClip(self.path, track, deinterlace, high_bit_depth, max_pixels)
        self.high_bit_depth = self._clip.high_bit_depth
        self._num_frames = num_frames
        counts = [count for count in (self._clip.info.num_frames, num_frames) if count is not None]
        self.info = replace(self._clip.info, num_frames=min(counts, default=None))

    @property
    def frames_damaged(self) -> int:
        """Packets that the latest iteration could not decode."""
        return self._clip.frames_damaged

    def seek(self, frame: int, after_pts: int | None = None) -> None:
        """Makes iterations start at frame number `frame`, exactly.

        Frames before it are decoded and dropped, because only this counts them right in every container. With
        `after_pts`, the timestamp of frame `frame - 1`, the reader jumps to the nearest keyframe instead, where the
        container tells when a frame is shown: `reader.seek(writer.frames_done, writer.last_pts)` resumes a long clip
        at once.

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
        self.frames_read = 0
        info = self.info
        frames = self._clip.frames(self._start, self._after_pts)
        for index, (pixels, pts, duration) in enumerate(frames, self._start):
            if index == self._num_frames:
                return
            if pixels.shape[:2] != (info.height, info.width):
                size, former = f"{pixels.shape[1]}x{pixels.shape[0]}", f"{info.width}x{info.height}"
                raise ValueError(f"{str(self.path)!r} changes its frame size at frame {index}: {size} after {former}")
            self.frames_read += 1
            yield DecodedFrame(pixels, pts, duration, index)


def _checked_rate(fps: float | Fraction | None) -> Fraction | None:
    if fps is None:
        return None
    if not 0 < fps <= 1000:
        raise ValueError(f"`fps` must be more than 0 and at most 1000, got {fps}")
    return Fraction(fps).limit_denominator(1001)
