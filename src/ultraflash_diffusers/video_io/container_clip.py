# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The frames of a video file, decoded by FFmpeg."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.container.core import Flags
from av.filter import Graph
from av.packet import Packet
from av.video.stream import VideoStream

from .color import RGBConverter
from .opening import find_film, open_clip, track_duration
from .probe import probe, warn_of_losses
from .timing import JOINED_FORMATS, BestEffort, JoinedClock
from .tone_mapping import ToneMapper

# Formats that tell no frame size: FFmpeg's is that of the first frame
_SIZE_FROM_STREAM = {"h264", "mpeg", "mpegts"}
# Formats that store no times of presentation, so that none can be sought
_NOT_SOUGHT = {"avi"}
_PACKETS_BEFORE_JOINT = 3
# Without a frame count, a clip's end is judged by time, and how long its last frame shows is not always known
_UNNOTICED_SECONDS = Fraction(1, 2)


class ContainerClip:
    """One video track of a file, in constant memory.

    Args:
        path (`Path`): the file.
        track (`int`, *optional*): which video track; see [`find_film`].
        deinterlace (`bool`): whether to make whole pictures of fields (bwdif), one of every frame.
        high_bit_depth (`bool` or `None`): whether pixels are uint16 in the clip's own colours, not uint8 of
            standard range; by default where the clip has more than 8 bits.
        max_pixels (`int`): the largest picture that is decoded.

    Raises:
        OSError, ValueError: as [`open_clip`] does, or not one frame decodes.

    Attributes:
        info ([`VideoInfo`]): what the clip is.
        frames_damaged (`int`): packets that the latest iteration could not decode.
    """

    def __init__(
        self, path: Path, track: int | None, deinterlace: bool, high_bit_depth: bool | None, max_pixels: int
    ) -> None:
        self.path = path
        self.frames_damaged = 0
        self._deinterlace, self._max_pixels = deinterlace, max_pixels
        self._stream_index = find_film(path, track, max_pixels)
        self._hidden = 0
        self._clock: JoinedClock | None = None
        with self._opened() as (container, stream):
            first = next(self._decode(container, stream), None)
            if first is None:
                raise ValueError(f"`path` {str(path)!r} has a video track, but not one frame of it decodes")
            if high_bit_depth is None:
                high_bit_depth = max(component.bits for component in first.format.components) > 8
            self.high_bit_depth = high_bit_depth
            self.info = probe(path, container, stream, first, high_bit_depth)
            warn_of_losses(self.info, first, deinterlace)
        self._tone_mapper = ToneMapper(self.info.stored_color) if self.info.color != self.info.stored_color else None
        self._dtype = np.uint16 if high_bit_depth or self._tone_mapper else np.uint8

    def frames(self, start: int, after_pts: int | None) -> Iterator[tuple[np.ndarray, int, int]]:
        """Yields pixels `[height, width, 3]`, timestamp and duration from frame `start` on.

        Args:
            start (`int`): number of the first frame.
            after_pts (`int`, *optional*): the timestamp of the frame before it, a quick way there.

        Raises:
            ValueError: the clip has fewer than `start` frames.
        """
        self.frames_damaged = self._hidden = 0
        if after_pts is not None and self._can_seek():
            with self._opened() as (container, stream):
                following = self._jump(container, stream, after_pts)
                if following is not None:
                    yield from self._convert(self._timed(following, after_pts), start)
                    self._warn_of_damage(stream, start, expected=0)
                    return
        with self._opened() as (container, stream):
            frames = self._timed(self._whole(self._decode(container, stream)), None)
            passed = sum(1 for _ in islice(frames, start))
            if passed < start:
                raise ValueError(f"`frame` {start} is beyond the end of {str(self.path)!r}: {passed} frames")
            yield from self._convert(frames, start)
            self._warn_of_damage(stream, start, expected=stream.frames - self._hidden)

    def _opened(self):  # noqa: ANN202
        return open_clip(self.path, self._stream_index, self._max_pixels)

    def _can_seek(self) -> bool:
        """Whether equal times are equal places, and no filter needs the frames before."""
        if self._deinterlace or self.info.container in _NOT_SOUGHT:
            return False
        if self.info.container not in JOINED_FORMATS:
            return True
        with self._opened() as (container, stream):
            clock = JoinedClock(1 / self.info.fps)
            for packet in container.demux(stream):
                clock.see(packet)
            return not clock.offset

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
        """Yields what decodes, counting what does not and what an edit list hides."""
        # PyAV lets FFmpeg guess times of presentation where there are none, from those of decoding
        container.flags &= ~cast(int, Flags.gen_pts.value)
        stream.thread_type = "AUTO"
        if container.format.name in _SIZE_FROM_STREAM:
            # a size that the H.264 decoder is given crops later frames to it, where both fill the same macroblocks
            stream.codec_context.width = stream.codec_context.height = 0
        joined = container.format.name in JOINED_FORMATS and hasattr(self, "info")
        self._clock = JoinedClock(1 / self.info.fps) if joined else None
        for packet in self._demux(container, stream):
            self._hidden += packet.is_discard
            try:
                frames = [] if packet.is_corrupt else packet.decode()
            except av.FFmpegError:
                self.frames_damaged += 1
                continue
            self.frames_damaged += packet.is_corrupt
            yield from frames

    def _demux(self, container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
        """Yields the track's packets, on one clock, up to where the container itself is damaged."""
        ahead: deque[Packet] = deque()
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except av.FFmpegError:
                self.frames_damaged += 1
                break
            if self._set_clock(packet):
                # the counters' jump where files were joined makes whole packets before it damaged ones
                for former in ahead:
                    former.is_corrupt = False
            ahead.append(packet)
            if len(ahead) > _PACKETS_BEFORE_JOINT or self._clock is None:
                yield ahead.popleft()
        yield from ahead

    def _set_clock(self, packet: Packet) -> bool:
        """Puts a packet on the clip's one clock; returns whether another file begins with it."""
        if self._clock is None:
            return False
        former = self._clock.offset
        self._clock.see(packet)
        shift = round(self._clock.offset / self.info.time_base)
        if shift and packet.pts is not None:
            packet.pts += shift
        if shift and packet.dts is not None:
            packet.dts += shift
        return self._clock.offset != former

    def _whole(self, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """Makes whole pictures of fields, if that was asked for."""
        if not self._deinterlace:
            yield from frames
            return
        graph: Graph | None = None
        times: deque[tuple[int | None, int | None, int]] = deque()
        for frame in frames:
            if graph is None:
                graph = _deinterlacer(frame, self.info.time_base)
            times.append((frame.pts, frame.dts, frame.duration))
            graph.vpush(frame)
            yield from _pulled(graph, times)
        if graph is not None:
            graph.vpush(None)
            yield from _pulled(graph, times)

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
        repaired, info = 0, self.info
        best_effort = BestEffort(info.ticks_per_frame)
        for frame in frames:
            tick = best_effort(frame)
            if tick is None:
                pts, repaired = 0 if last_pts is None else last_pts + info.ticks_per_frame, repaired + 1
            else:
                pts = tick - info.start_pts
            if last_pts is not None and pts <= last_pts:
                pts, repaired = last_pts + 1, repaired + 1
            last_pts = pts
            self._end = info.start_pts + pts + (frame.duration or info.ticks_per_frame)
            yield pts, frame
        if repaired:
            self._warn(f"{repaired} timestamps were missing or out of order and have been filled in")

    def _convert(
        self, timed_frames: Iterator[tuple[int, av.VideoFrame]], start: int
    ) -> Iterator[tuple[np.ndarray, int, int]]:
        info, converter = self.info, RGBConverter(self.info.stored_color, self._dtype)
        left, top, right, bottom = info.crop
        self._last = start
        for pts, frame in timed_frames:
            pixels = converter.to_rgb(frame)
            pixels = pixels[top : pixels.shape[0] - bottom, left : pixels.shape[1] - right]
            pixels = info.orientation.apply(pixels)
            self._last += 1
            yield (
                self._tone_mapper(pixels) if self._tone_mapper else pixels,
                pts,
                frame.duration or info.ticks_per_frame,
            )

    def _warn_of_damage(self, stream: VideoStream, start: int, expected: int) -> None:
        total, promised = self._last, track_duration(stream)
        if total < expected:
            self._warn(f"cut short or damaged: {total} of the {expected} frames it promises could be used")
        elif self.frames_damaged:
            used = total - start
            self._warn(f"damaged: {self.frames_damaged} packets were skipped, {used} frames could be used")
        elif not stream.frames and promised and self._end * self.info.time_base < promised - _UNNOTICED_SECONDS:
            self._warn(
                f"cut short: {total} frames could be used, to {float(self._end * self.info.time_base):.2f} of the "
                f"{float(promised):.2f} seconds that it promises"
            )

    def _warn(self, message: str) -> None:
        warnings.warn(f"{str(self.path)!r}: {message}", stacklevel=4)


def _deinterlacer(frame: av.VideoFrame, time_base: Fraction) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=time_base, name="source"
    )
    bwdif = graph.add("bwdif", "mode=send_frame:deint=all")
    sink = graph.add("buffersink")
    source.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()
    return graph


def _pulled(graph: Graph, times: deque[tuple[int | None, int | None, int]]) -> Iterator[av.VideoFrame]:
    """Yields what a filter that makes one frame of each has ready, with the times that went in."""
    while True:
        try:
            frame = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        frame.pts, frame.dts, frame.duration = times.popleft()
        yield frame
