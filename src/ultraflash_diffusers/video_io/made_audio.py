# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sound that is made with the frames: kept beside them while a run lasts, and encoded when the file is finished."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.container import OutputContainer
from av.packet import Packet

from .durable import checksum, synchronise
from .interrupts import interrupts_deferred
from .sound import LAYOUTS, AACEncoder

_BLOCK = 1 << 16  # samples


class MadeAudio:
    """A file of samples as they are, float32, the channels in turns.

    Args:
        path (`Path`): the file, which need not be there.

    Attributes:
        samples (`int`): how many there are of each channel.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kind: tuple[int, int] | None = None  # sample rate, channels
        self._checksum = 0
        self.samples = 0

    def append(self, samples: torch.Tensor | np.ndarray, sample_rate: int) -> None:
        """Adds what sounds next.

        Args:
            samples (`torch.Tensor` or `np.ndarray`): floating point `[channels, samples]` in [-1, 1].
            sample_rate (`int`): samples a second.

        Raises:
            OSError: the file cannot be written.
            TypeError, ValueError: no such samples, or of another kind than those before.
        """
        array = np.asarray(samples.detach().float().cpu() if isinstance(samples, torch.Tensor) else samples)
        if not np.issubdtype(array.dtype, np.floating):
            raise TypeError(f"`samples` must be floating point in [-1, 1], got {array.dtype}")
        if array.ndim != 2 or array.shape[0] not in LAYOUTS:
            raise ValueError(f"`samples` must be [channels, samples], of up to 8 channels, got shape {array.shape}")
        if sample_rate < 1 or not np.isfinite(array).all():
            raise ValueError(f"`samples` at `sample_rate` {sample_rate} must be finite, and the rate positive")
        kind = (int(sample_rate), array.shape[0])
        if kind != (self._kind or kind):
            raise ValueError(f"`samples` are {kind[1]} channels of {kind[0]} a second, those before were {self._kind}")
        data = np.ascontiguousarray(array.T, "<f4").tobytes()
        with interrupts_deferred(), self._path.open("r+b" if self.samples else "wb") as file:
            file.seek(self._bytes)  # over what a write that failed may have left
            file.write(data)
        self._kind, self._checksum = kind, crc32(data, self._checksum)
        self.samples += array.shape[1]

    def record(self) -> dict[str, Any] | None:
        """What is needed to go on from here, as JSON data; `None` where there is no sound."""
        if self._kind is None:
            return None
        synchronise(self._path)
        rate, channels = self._kind
        return {"sample_rate": rate, "channels": channels, "samples": self.samples, "checksum": self._checksum}

    def take_up(self, record: dict[str, Any] | None, advice: str) -> None:
        """Goes on from a record; what was written after it is dropped.

        Raises:
            ValueError: the file is not the one that the record is of; it ends with the `advice`.
        """
        if record is None:
            return
        self._kind = (record["sample_rate"], record["channels"])
        self.samples, self._checksum = record["samples"], record["checksum"]
        if not self._path.exists() or checksum(self._path, self._bytes) != self._checksum:
            raise ValueError(f"{str(self._path)!r}, the sound that was made, is lost or damaged: {advice}")

    def packets(self, result: OutputContainer, end: Fraction) -> Iterator[tuple[Fraction, Packet]]:
        """Encodes the sound as AAC into a new track of `result`; yields packets with their times, up to `end`."""
        if self._kind is None:
            return iter(())
        rate, channels = self._kind
        return self._encoded(AACEncoder(result, rate, channels), min(self.samples, round(end * rate)))

    def _encoded(self, encoder: AACEncoder, samples: int) -> Iterator[tuple[Fraction, Packet]]:
        assert self._kind is not None
        rate, channels = self._kind
        with self._path.open("rb") as file:
            for start in range(0, samples, _BLOCK):
                count = min(_BLOCK, samples - start)
                block = np.frombuffer(file.read(4 * channels * count), "<f4").reshape(1, -1)
                frame = AudioFrame.from_ndarray(block, "flt", LAYOUTS[channels])
                frame.sample_rate = rate
                for packet in encoder.add(frame):
                    yield (packet.dts or 0) * packet.time_base, packet
        for packet in encoder.end():
            yield (packet.dts or 0) * packet.time_base, packet

    @property
    def _bytes(self) -> int:
        return 0 if self._kind is None else 4 * self._kind[1] * self.samples
