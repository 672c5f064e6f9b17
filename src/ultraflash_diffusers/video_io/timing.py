# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Timestamps of what was stored without them, or with those of another file."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import av
from av.packet import Packet

from .opening import to_fraction

# Formats whose files may be joined end to end, each part with a clock of its own
JOINED_FORMATS = {"mpegts", "mpeg"}
_LONGEST_GAP = 10


class BestEffort:
    """A frame's time as FFmpeg's tools tell it: the stored one, or that of decoding where this has failed less often.

    Containers such as AVI store when a frame is decoded, not when it is shown. The last frames, which a decoder gives
    when nothing is left to be decoded, then follow one by one.

    Args:
        ticks_per_frame (`int`): how long a frame shows.
    """

    def __init__(self, ticks_per_frame: int) -> None:
        self._ticks_per_frame = ticks_per_frame
        self._last: dict[str, int] = {}
        self._faults = {"pts": 0, "dts": 0}
        self._by_decoding: int | None = None

    def __call__(self, frame: av.VideoFrame) -> int | None:
        """Returns the presentation time of the next frame, in ticks, or `None` where nothing tells it."""
        for name, tick in (("pts", frame.pts), ("dts", frame.dts)):
            if tick is not None:
                self._faults[name] += name in self._last and tick <= self._last[name]
                self._last[name] = tick
        if frame.pts is not None and (frame.dts is None or self._faults["pts"] <= self._faults["dts"]):
            return frame.pts
        if frame.dts is not None:
            self._by_decoding = frame.dts
        elif self._by_decoding is not None:
            self._by_decoding = max(self._last.values()) + self._ticks_per_frame
            self._last["dts"] = self._by_decoding
        return self._by_decoding


class JoinedClock:
    """One clock for files that were joined: each part goes on where the pictures of the one before have ended.

    Args:
        frame_seconds (`Fraction`): how long a frame shows.
    """

    def __init__(self, frame_seconds: Fraction) -> None:
        self._frame = frame_seconds
        self._last_dts: Fraction | None = None
        self._end = Fraction(0)
        self.offset = Fraction(0)
        self.former_offset = Fraction(0)

    def see(self, packet: Packet) -> None:
        """Takes note of the next packet of the pictures, in the file's order; `offset` is then its own, in seconds."""
        ticks = packet.dts if packet.dts is not None else packet.pts
        time_base = to_fraction(packet.time_base)
        if ticks is None or time_base is None:
            return
        dts = ticks * time_base
        pts = dts if packet.pts is None else packet.pts * time_base
        if self._last_dts is not None and not -2 * self._frame <= dts - self._last_dts <= _LONGEST_GAP:
            self.former_offset, self.offset = self.offset, self._end - pts
        self._last_dts = dts
        self._end = max(self._end, pts + self.offset + self._frame)

    def place(self, time: Fraction, expected: Fraction | None) -> Fraction:
        """Returns the offset for another track's packet, around whose place in the file the clock may change.

        Args:
            time (`Fraction`): the packet's own time, in seconds.
            expected (`Fraction`, *optional*): when the one before it ended, on the common clock.
        """
        if expected is None:
            return self.offset
        return min((self.offset, self.former_offset), key=lambda offset: abs(time + offset - expected))


def check_times(pts: Sequence[int], durations: Sequence[int], frames: int, last_pts: int | None) -> None:
    """Checks the times of frames that follow one at `last_pts`.

    Raises:
        ValueError: there are not as many as frames, or they do not grow.
    """
    if len(pts) != frames or len(durations) != frames:
        raise ValueError(f"{frames} `frames` with {len(pts)} `pts` and {len(durations)} `durations`")
    before = -1 if last_pts is None else last_pts
    for tick, duration in zip(pts, durations, strict=True):
        if tick <= before or duration < 1:
            raise ValueError(f"`pts` must grow, from 0, with `durations` of 1 or more: {tick} follows {before}")
        before = tick
