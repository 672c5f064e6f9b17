# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Streams into a file: frames are written as they are made, with a progress bar; what is done survives anything."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..models.stream_state import StreamState
from ..video_io import FRAGMENT_FRAMES, VideoWriter
from .pipeline_output import Frames, StreamChunk
from .resampling import resampled
from .video_stream import PipelineStreamState, VideoStream

_LARGEST_SHARE_OF_SAVING = 1 / 20


@dataclass
class FileStreamState(StreamState):
    """What a run needs to go on after a checkpoint, beside the frames in the file.

    Args:
        stream ([`PipelineStreamState`]): of the stream, which may be some frames ahead of the file.
        unwritten (`torch.Tensor`): these frames, `[frames, height, width, 3]` as the file takes them.
        times (`list[tuple[int, int]]`): timestamp and duration of these, in the file's ticks; empty where the frames
            come from no clip.
    """

    stream: PipelineStreamState
    unwritten: torch.Tensor
    times: list[tuple[int, int]]


@dataclass
class Report:
    """What a run did.

    Args:
        output (`Path`): the file.
        width, height (`int`): of its frames.
        frames (`int`): frames in the file.
        frames_made (`int`): frames made by this run; fewer, if it went on from an earlier one.
        seconds (`float`): from the first request for frames to the last one written.
        seconds_to_first_frames (`float`): until the first chunk was there.
        stage_seconds (`dict[str, float]`): time in each stage, `"writing"` included.
        made_width, made_height (`int`, *optional*): of the frames as they were made, where they were resampled.
    """

    output: Path
    width: int
    height: int
    frames: int = 0
    frames_made: int = 0
    seconds: float = 0.0
    seconds_to_first_frames: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    made_width: int | None = None
    made_height: int | None = None

    @property
    def fps(self) -> float:
        """Frames a second, reading, writing and all stages included; loading the checkpoint is not."""
        return self.frames_made / self.seconds if self.seconds else 0.0

    def add(self, timings: Mapping[str, float]) -> None:
        """Counts seconds of stages."""
        for name, seconds in timings.items():
            self.stage_seconds[name] = self.stage_seconds.get(name, 0.0) + seconds

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON data, `fps` included."""
        return vars(self) | {"output": str(self.output), "fps": self.fps}

    def show(self, as_json: bool) -> None:
        """Prints the report."""
        if as_json:
            print(json.dumps(self.as_dict()))
            return
        size = f"{self.width}x{self.height}"
        if self.made_width is not None:
            size = f"{size} (resampled from {self.made_width}x{self.made_height})"
        print(
            f"{self.output}: {self.frames} frames of {size}, {self.frames_made} of them made in "
            f"{self.seconds:.1f} s ({self.fps:.2f} FPS; the first after {self.seconds_to_first_frames:.1f} s)"
        )


class FileStream:
    """Writes a stream's frames to a file as they are made, and saves every few seconds what is needed to go on.

    The file is cut into fragments of a fixed length, and states are saved at its cuts alone: frames that the stream
    has made beyond one are saved with its state. So a resumed run writes the very file of an uninterrupted one,
    whenever states were saved. Frames have the times of the clip that they come from.

    Args:
        writer ([`VideoWriter`]): takes the frames, brought to its size; finishing it is left to its `with` block.
        num_frames (`int`, *optional*): frames of the whole video, as far as known, for the progress bar.
        save_every (`float`): least seconds between two saved states; more pass where saving would otherwise take over
            a twentieth of the time, since a state holds the networks' caches.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.
    """

    def __init__(
        self,
        writer: VideoWriter,
        num_frames: int | None,
        save_every: float,
        progress: bool = True,
    ) -> None:
        self._writer = writer
        self._num_frames = num_frames
        self._save_every = save_every
        self._progress = progress
        self._next_save = 0.0

    def run(self, open_stream: Callable[[PipelineStreamState | None], VideoStream]) -> Report:
        """Makes and writes all frames that are missing.

        Args:
            open_stream (`Callable`): returns the stream that goes on from a state or, given `None`, starts, with
                `output_type="uint8"`, or `"np"` for a file of more than 8 bits.

        Raises:
            ValueError: the state to go on from does not fit.
        """
        writer = self._writer
        report = self._report = Report(writer.path, writer.settings.width, writer.settings.height)
        report.frames = writer.frames_written
        if writer.complete:  # only finishing the file was interrupted
            return report
        stream = self._go_on(open_stream)
        start = time.perf_counter()
        self._next_save = start + self._save_every
        with stream, self._progress_bar() as bar:
            for chunk in stream:
                writing = time.perf_counter()
                report.seconds_to_first_frames = report.seconds_to_first_frames or writing - start
                self._write(chunk)
                report.add({"writing": time.perf_counter() - writing})
                report.add(chunk.timings)
                report.frames_made += chunk.num_frames
                bar.update(chunk.num_frames)
        report.seconds = time.perf_counter() - start
        report.frames = writer.frames_written
        return report

    def _go_on(self, open_stream: Callable[[PipelineStreamState | None], VideoStream]) -> VideoStream:
        """Opens the stream at the writer's last checkpoint, with the frames that were made beyond it."""
        if self._writer.state_path is None:
            return open_stream(None)
        state = FileStreamState.load(self._writer.state_path)
        stream = open_stream(state.stream)
        # earlier versions kept the times of all frames that were read
        self._put(state.unwritten.numpy(), state.times[: len(state.unwritten)] or None)
        return stream

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self._num_frames,
            initial=self._writer.frames_written,
            unit="frame",
            desc=self._writer.path.name,
            file=sys.stderr,
            disable=not self._progress,
        )

    def _write(self, chunk: StreamChunk) -> None:
        frames, times = self._fitted(chunk.frames), self._ticks(chunk)
        if chunk.audio is not None and chunk.audio_sample_rate is not None:
            # before a state is saved, which goes on behind the chunk
            self._writer.write_audio(chunk.audio[0], chunk.audio_sample_rate)
        to_last_cut = len(frames) - (self._writer.frames_written + len(frames)) % FRAGMENT_FRAMES
        if to_last_cut > 0 and time.perf_counter() >= self._next_save:
            self._put(frames[:to_last_cut], times and times[:to_last_cut])
            frames, times = frames[to_last_cut:], times and times[to_last_cut:]
            self._save(chunk, frames, times or [])
        self._put(frames, times)

    def _fitted(self, frames: Frames) -> np.ndarray:
        """A chunk's frames in the type and the size of the file."""
        video, settings = np.asarray(frames[0]), self._writer.settings
        if video.dtype != np.uint8:
            video = np.round(video * 65535).astype(np.uint16)
        height, width = video.shape[1:3]
        if (width, height) == (settings.width, settings.height):
            return video
        self._report.made_width, self._report.made_height = width, height
        return resampled(video, settings.width, settings.height)

    def _ticks(self, chunk: StreamChunk) -> list[tuple[int, int]] | None:
        if chunk.times is None or self._writer.source is None:
            return None
        tick = self._writer.settings.time_base
        return [(round(start / tick), round(duration / tick)) for start, duration in chunk.times]

    def _put(self, frames: np.ndarray, times: list[tuple[int, int]] | None) -> None:
        if not len(frames):
            return
        pts, durations = zip(*times, strict=True) if times else (None, None)
        self._writer.write(frames, pts, durations)

    def _save(self, chunk: StreamChunk, unwritten: np.ndarray, times: list[tuple[int, int]]) -> None:
        start = time.perf_counter()
        state = FileStreamState(chunk.state(), torch.from_numpy(unwritten), times)
        self._writer.checkpoint(state.save)
        end = time.perf_counter()
        self._next_save = end + max(self._save_every, (end - start) / _LARGEST_SHARE_OF_SAVING)
