# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sound that is encoded as AAC, in time."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import OutputContainer
from av.packet import Packet

from .opening import to_fraction

_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_USUAL_RATE = 48000
# What a number of channels means where a file does not say it; AAC has no names for others
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
_BITS_PER_CHANNEL = 64000
_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "flt": "f4", "dbl": "f8"}
_BLOCK = 1024  # samples of an AAC packet
_UNNOTICED_SECONDS = Fraction(1, 20)
_LONGEST_SILENCE = 600  # seconds; a longer gap is a broken timestamp


class AACEncoder:
    """Makes AAC packets from decoded sound.

    Where its times leave a gap, silence is put; where it tells no times, the sound is taken to be continuous.

    Args:
        result (`OutputContainer`): gets an AAC track, `target`.
        sample_rate (`int`): of the sound; where AAC has none like it, 48000 becomes of it.
        channels (`int`): of the sound; where they have no usual layout, two become of them.
    """

    def __init__(self, result: OutputContainer, sample_rate: int, channels: int) -> None:
        self._rate = sample_rate if sample_rate in _AAC_RATES else _USUAL_RATE
        self._layout = LAYOUTS.get(channels, "stereo")
        self.target = result.add_stream("aac", rate=self._rate, layout=self._layout)
        # a second generation should not be heard
        self.target.codec_context.bit_rate = _BITS_PER_CHANNEL * max(2, channels)
        self._resampler: AudioResampler | None = None
        self._kind: tuple[str, str, int] | None = None
        self._channels = av.AudioLayout(self._layout).nb_channels
        self._waiting = np.zeros((0, self._channels), np.float32)
        self._position: int | None = None

    def add(self, frame: AudioFrame) -> list[Packet]:
        """Returns what is ready after the next frame."""
        time_base = to_fraction(frame.time_base)
        if frame.pts is not None and time_base is not None:
            self._keep_time(frame.pts * time_base)
        self._append(self._converter_of(frame).resample(_named(frame)))
        return self._encode(last=False)

    def fill(self, end: Fraction) -> list[Packet]:
        """Puts silence up to `end` seconds; returns what is ready then."""
        self._position = self._position or 0
        gap = max(0, round(end * self._rate) - self._position - len(self._waiting))
        self._waiting = np.concatenate([self._waiting, np.zeros((gap, self._channels), np.float32)])
        return self._encode(last=False)

    def end(self) -> list[Packet]:
        """Returns what is left."""
        if self._resampler is not None:
            self._append(self._resampler.resample(None))
        return self._encode(last=True) + self.target.encode(None)

    def _keep_time(self, time: Fraction) -> None:
        """Starts the track at `time`, or fills the gap that has come before it."""
        if self._position is None:
            self._position = round(time * self._rate)
            return
        gap = round(time * self._rate) - self._position - len(self._waiting)
        if _UNNOTICED_SECONDS * self._rate < gap < _LONGEST_SILENCE * self._rate:
            self._waiting = np.concatenate([self._waiting, np.zeros((gap, self._channels), np.float32)])

    def _converter_of(self, frame: AudioFrame) -> AudioResampler:
        """The resampler for frames of this kind; what one of a former kind still holds is taken first."""
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or kind != self._kind:
            if self._resampler is not None:
                self._append(self._resampler.resample(None))
            self._resampler, self._kind = AudioResampler("flt", self._layout, self._rate), kind
        return self._resampler

    def _append(self, frames: list[AudioFrame]) -> None:
        samples = [frame.to_ndarray().reshape(-1, self._channels) for frame in frames]
        self._waiting = np.concatenate([self._waiting, *samples])

    def _encode(self, last: bool) -> list[Packet]:
        packets: list[Packet] = []
        self._position = self._position or 0
        while len(self._waiting) >= (1 if last else _BLOCK):
            block, self._waiting = np.split(self._waiting, [_BLOCK])
            # interleaved: PyAV 18 fails at eight planes
            frame = AudioFrame.from_ndarray(block.reshape(1, -1), "flt", self._layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._position, Fraction(1, self._rate)
            packets += self.target.encode(frame)
            self._position += len(block)
        return packets


def _named(frame: AudioFrame) -> AudioFrame:
    """Returns the frame with the usual layout of its channels where it names none."""
    channels = frame.layout.nb_channels
    usual = LAYOUTS.get(channels)
    if usual is None or not frame.layout.name.endswith("channels"):
        frame.pts = None
        return frame
    kind = frame.format.packed
    if frame.format.is_planar:
        # not `to_ndarray`, which reads past the end of eight planes in PyAV 18
        planes = [np.frombuffer(bytes(plane), _DTYPES[kind.name], frame.samples) for plane in frame.planes[:channels]]
        samples = np.stack(planes, axis=1).reshape(1, -1)
    else:
        samples = frame.to_ndarray()
    named = AudioFrame.from_ndarray(samples, kind.name, usual)
    named.sample_rate, named.time_base = frame.sample_rate, frame.time_base
    return named
