# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From frames, however they come, to latent chunks: the part that all sources of pixels share."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import torch
import torch.nn.functional as F

from ...models.stream_state import StreamState
from ...models.video_encoder import VideoEncoder
from ..execution.compilation import GuardedCalls
from ..execution.devices import execution_device
from ..execution.timing import StageTimings, stage_timer
from ..finite import all_finite
from ..frame_audio import FrameAudio
from .base import Source, SourceChunk, SourceEndedError, check_replayed, padded_size


@dataclass
class PixelSourceState(StreamState):
    """State of a [`PixelSource`]. To go on, hand the same frames over again, from their beginning.

    Args:
        frames (`int`): frames that were passed on, which are read and dropped when the stream resumes.
        encoder (`StreamState`): what the encoder carries.
    """

    frames: int
    encoder: StreamState


@dataclass
class VideoFileState(PixelSourceState):
    """State of a `VideoFileSource`, here because saved states are loaded before that is imported.

    Args:
        last_pts (`int`, *optional*): timestamp of the last of the `frames`, in the clip's ticks: a quick way there.
    """

    last_pts: int | None = None


@dataclass(frozen=True)
class TimedPixels:
    """Frames of a source that knows when they show, or what sounds with them.

    Args:
        pixels (`torch.Tensor`): `[batch, 3, frames, height, width]` in [-1, 1].
        times (`list[tuple[Fraction, Fraction]]`, *optional*): when and for how long each of them shows, in seconds
            from the video's start.
        audio ([`FrameAudio`], *optional*): what sounds with them.
    """

    pixels: torch.Tensor
    times: list[tuple[Fraction, Fraction]] | None = None
    audio: FrameAudio | None = None

    @classmethod
    def joined(cls, parts: list[TimedPixels]) -> TimedPixels:
        """One after the other."""
        times = [part.times for part in parts if part.times is not None]
        all_times = [time for each in times for time in each] if len(times) == len(parts) else None
        audio = FrameAudio.joined([part.audio for part in parts])
        return cls(torch.cat([part.pixels for part in parts], dim=2), all_times, audio)

    def __len__(self) -> int:
        return self.pixels.shape[2]

    def __getitem__(self, frames: slice) -> TimedPixels:
        times = None if self.times is None else self.times[frames]
        return TimedPixels(self.pixels[:, :, frames], times, None if self.audio is None else self.audio[frames])


class PixelSource(Source):
    """Encodes frames into latent chunks as soon as enough of them have come.

    Args:
        pieces (`Generator`): yields `[batch, 3, frames, height, width]` in [-1, 1], all of one size but for the number
            of frames, which may be anything from 1; or [`TimedPixels`] of such.
        encoder ([`VideoEncoder`]): encodes them.
        latent_frames (`int`): latent frames a chunk.
        multiple_of (`int`): height and width are padded to this multiple by repeating the right and bottom edges.
        num_frames (`int`, *optional*): ends after so many frames. `None` reads to the end.
        height, width (`int`, *optional*): the expected size; `None` takes what comes.
        frame_rate (`Fraction`, *optional*): frames per second, where known.
        state ([`PixelSourceState`], *optional*): goes on after the frames that the state has seen.
        first_frame (`int`, *optional*, defaults to 0): number of the first frame that `pieces` yields.

    Raises:
        ValueError: the autoencoder has no encoder; while reading: no frames at all, frames of another size, or frames
            that are not finite.
    """

    def __init__(
        self,
        pieces: Generator[torch.Tensor | TimedPixels, None, None],
        encoder: VideoEncoder,
        *,
        latent_frames: int,
        multiple_of: int,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        frame_rate: Fraction | None = None,
        state: PixelSourceState | None = None,
        first_frame: int = 0,
    ) -> None:
        if not encoder.has_encoder:
            raise ValueError(
                "`source` gives pixels, but `autoencoder` holds a decoder alone and cannot encode them: load one that "
                "has an encoder, give the pipeline an `encoder`, or pass latents"
            )
        self._pieces = pieces
        self._encoder = encoder
        self._latent_frames = latent_frames
        self._multiple_of = multiple_of
        self._state = None if state is None else state.to(execution_device(encoder))
        self._position = first_frame
        self._failure: Exception | None = None
        self._timings = StageTimings()
        self._calls = GuardedCalls()
        self.num_frames = num_frames
        self.height, self.width, self.frame_rate = height, width, frame_rate

    def state(self) -> PixelSourceState | None:
        return self._state

    def close(self) -> None:
        self._pieces.close()

    def _chunks(self) -> Iterator[SourceChunk]:
        waiting: list[TimedPixels] = []
        try:
            for piece in self._read():
                waiting.append(piece)
                while sum(map(len, waiting)) >= self._chunk_frames():
                    frames, size = TimedPixels.joined(waiting), self._chunk_frames()
                    waiting = [frames[size:]]
                    yield self._encode(frames[:size])
            if sum(map(len, waiting)):
                yield self._encode(TimedPixels.joined(waiting))
            self._check_end()
        finally:
            self.close()

    def _chunk_frames(self) -> int:
        ratio = self._encoder.temporal_compression_ratio
        return ratio * self._latent_frames - (ratio - 1 if self._state is None else 0)

    def _read(self) -> Iterator[TimedPixels]:
        """Yields the frames that are still wanted. A failure ends them and is kept, so that none before it is lost."""
        done = 0 if self._state is None else self._state.frames
        try:
            while self.num_frames is None or self._position < self.num_frames:
                with stage_timer(self._timings, "source", execution_device(self._encoder)):
                    piece = next(self._pieces, None)
                if piece is None:
                    check_replayed(self._position, done, "frames")
                    return
                frames = piece if isinstance(piece, TimedPixels) else TimedPixels(piece)
                self._check(frames.pixels, self._position)
                end = None if self.num_frames is None else self.num_frames - self._position
                wanted = frames[max(0, done - self._position) : end]
                self._position += len(frames)
                if len(wanted):
                    yield wanted
        except Exception as error:
            self._failure = error

    def _check(self, piece: torch.Tensor, position: int) -> None:
        batch, _, _, height, width = piece.shape
        expected = (self.batch_size or batch, self.height or height, self.width or width)
        if (batch, height, width) != expected:
            raise ValueError(
                f"`source` gave frame {position} with batch {batch}, height {height} and width {width}, expected "
                f"batch {expected[0]}, height {expected[1]} and width {expected[2]}"
            )
        if not all_finite(piece):
            raise ValueError(f"`source` gave values that are not finite in or after frame {position}")
        self.batch_size, self.height, self.width = batch, height, width

    def _check_end(self) -> None:
        done = 0 if self._state is None else self._state.frames
        if self._failure is not None:
            raise self._failure
        if done == 0:
            raise ValueError("`source` is empty: it gave no frames")
        if self.num_frames is not None and done < self.num_frames:
            raise SourceEndedError(f"`source` ended after {done} frames, `num_frames` is {self.num_frames}")

    def _encode(self, frames: TimedPixels) -> SourceChunk:
        state = self._state
        timings, self._timings = self._timings, StageTimings()
        device, dtype = execution_device(self._encoder), self._encoder.dtype
        with stage_timer(timings, "encoder", device), torch.no_grad():
            pixels = self._padded(frames.pixels.to(device, dtype))
            with self._calls((pixels.shape[2], state is None)):
                encoded: Any = self._encoder.encode(pixels, state=None if state is None else cast(Any, state.encoder))
        self._state = PixelSourceState((0 if state is None else state.frames) + len(frames), encoded.state)
        return SourceChunk(
            encoded.latents, len(frames), pixels=pixels, timings=timings, times=frames.times, audio=frames.audio
        )

    def _padded(self, frames: torch.Tensor) -> torch.Tensor:
        """Repeats the right and bottom edges up to the padded size, and the last frame up to whole latent frames."""
        height, width = frames.shape[-2:]
        padded_height, padded_width = padded_size(height, width, self._multiple_of)
        ratio = self._encoder.temporal_compression_ratio
        missing = ((1 if self._state is None else 0) - frames.shape[2]) % ratio
        return F.pad(frames, (0, padded_width - width, 0, padded_height - height, 0, missing), mode="replicate")
