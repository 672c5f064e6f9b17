# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The sound of a clip whose pictures are streamed."""

from __future__ import annotations

from contextlib import ExitStack
from fractions import Fraction

from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet

from ..video_io.opening import open_container
from ..video_io.probe import VideoInfo
from ..video_io.sound import AACEncoder
from ..video_io.tracks import decoded_kind

_AHEAD = 1  # second of silence behind what is asked for, so that the encoder gives that


class ClipSound:
    """A clip's first sound track as AAC, in step with its pictures; silence where it is shorter than they are.

    Args:
        source ([`VideoInfo`]): the clip.
        kind (`tuple[int, int]`): sample rate and channels of that track.
        result (`OutputContainer`): gets the track, `target`.

    Attributes:
        target (`AudioStream`): the track to write into, opened.
        sample_rate (`int`): of it.
    """

    def __init__(self, source: VideoInfo, kind: tuple[int, int], result: OutputContainer) -> None:
        # closed with this object, not before: a thread may still be reading when its session ends
        self._open = ExitStack()
        clip = self._open.enter_context(open_container(source.path))
        self._track = clip.streams.audio[0]
        self._encoder = AACEncoder(result, *kind)
        self.target: AudioStream = self._encoder.target
        self.target.codec_context.open()
        self.sample_rate = self.target.codec_context.sample_rate
        self._origin = round(source.start_pts * source.time_base * self.sample_rate)
        self._unread = clip.demux(self._track)
        self._waiting: list[Packet] = []

    @classmethod
    def of(cls, source: VideoInfo, result: OutputContainer) -> ClipSound | None:
        """Returns the sound of a clip; `None` where its first sound track is not there or cannot be decoded."""
        with open_container(source.path) as clip:
            first = next((track.index for track in clip.streams.audio), None)
        kind = None if first is None else decoded_kind(source, first)
        return None if kind is None else cls(source, kind, result)

    def between(self, start: Fraction, end: Fraction) -> list[Packet]:
        """Returns the packets that begin in this time, which follows the last call's, in seconds of the pictures."""
        first, last = (round(time * self.sample_rate) for time in (start, end))
        while self._begin_of_newest() < last:
            packet = next(self._unread, None)
            if packet is not None:
                for frame in self._track.decode(packet):
                    self._waiting += self._encoder.add(frame)
            else:
                self._waiting += self._encoder.fill(end + Fraction(self._origin, self.sample_rate) + _AHEAD)
        ready = [packet for packet in self._waiting if self._begin(packet) < last]
        self._waiting = self._waiting[len(ready) :]
        kept = [packet for packet in ready if self._begin(packet) >= first]
        for packet in kept:
            packet.pts = packet.dts = self._begin(packet)
        return kept

    def _begin(self, packet: Packet) -> int:
        return (packet.pts or 0) - self._origin

    def _begin_of_newest(self) -> int:
        return self._begin(self._waiting[-1]) if self._waiting else -1
