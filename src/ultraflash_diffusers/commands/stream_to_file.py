# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Streams into a file: frames are written as they are made, with a progress bar; what is done survives anything."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..models.stream_state import StreamState
from ..pipelines.pipeline_output import StreamChunk
from ..pipelines.video_stream import PipelineStreamState, VideoStream
from ..video_io import DecodedFrame, VideoReader, VideoWriter

# A checkpoint holds the SR transformer's whole cache: rare enough to cost little, at fixed frames so that an
# interrupted run and its continuation cut the file at the same places as an uninterrupted one
_FRAMES_A_CHECKPOINT = 48


@dataclass
class FileStreamState(StreamState):
    """What a run needs to go on after a checkpoint.

    Args:
        stream ([`PipelineStreamState`]): of the stream.
        times (`list[tuple[int, int]]`): timestamp and duration of the clip's frames that were read and whose results
            were not written yet.
    """

    stream: PipelineStreamState
    times: list[tuple[int, int]]


class TimedReader(VideoReader):
    """A reader that remembers the timestamps of the frames that it has handed out, for the frames made from them."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.times: deque[tuple[int, int]] = deque()

    def __iter__(self) -> Iterator[DecodedFrame]:
        for frame in super().__iter__():
            self.times.append((frame.pts, frame.duration))
            yield frame


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
        stage_seconds (`dict[str, float]`): time in each stage.
    """

    output: Path
    width: int
    height: int
    frames: int = 0
    frames_made: int = 0
    seconds: float = 0.0
    seconds_to_first_frames: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def fps(self) -> float:
        """Frames a second, reading, writing and all stages included; loading the checkpoint is not."""
        return self.frames_made / self.seconds if self.seconds else 0.0

    def show(self, as_json: bool) -> None:
        """Prints the report."""
        if as_json:
            values = {name: value for name, value in vars(self).items() if name != "output"}
            print(json.dumps({"output": str(self.output), **values, "fps": self.fps}))
            return
        print(
            f"{self.output}: {self.frames} frames of {self.width}x{self.height}, {self.frames_made} of them made in "
            f"{self.seconds:.1f} s ({self.fps:.2f} FPS; the first after {self.seconds_to_first_frames:.1f} s)"
        )


def write_stream(
    stream: VideoStream,
    writer: VideoWriter,
    num_frames: int | None,
    times: deque[tuple[int, int]] | None = None,
) -> Report:
    """Writes a stream's frames as they are made, with a checkpoint every few seconds of video.

    Args:
        stream ([`VideoStream`]): with `output_type="np"`; closed afterwards, whatever happens.
        writer ([`VideoWriter`]): takes the frames; finishing it is left to the caller's `with` block.
        num_frames (`int`, *optional*): frames to come, as far as known, for the progress bar.
        times (`deque[tuple[int, int]]`, *optional*): timestamp and duration of each frame to come; at the writer's
            frame rate without them.

    Returns:
        [`Report`]: what was done.
    """
    report = Report(writer.path, writer.settings.width, writer.settings.height)
    start = time.perf_counter()
    bar = tqdm(total=num_frames, initial=writer.frames_done, unit="frame", file=sys.stderr, desc=writer.path.name)
    with stream, bar:
        for chunk in stream:
            report.seconds_to_first_frames = report.seconds_to_first_frames or time.perf_counter() - start
            _write_chunk(writer, chunk, times)
            before, after = chunk.frame_range
            if before // _FRAMES_A_CHECKPOINT != after // _FRAMES_A_CHECKPOINT:
                writer.checkpoint(FileStreamState(chunk.state(), list(times or ())).save)
            for name, seconds in chunk.timings.items():
                report.stage_seconds[name] = report.stage_seconds.get(name, 0.0) + seconds
            report.frames_made += chunk.num_frames
            bar.update(chunk.num_frames)
        report.seconds = time.perf_counter() - start
        report.frames = writer.frames_written
    return report


def _write_chunk(writer: VideoWriter, chunk: StreamChunk, times: deque[tuple[int, int]] | None) -> None:
    frames = np.rint(np.asarray(chunk.frames[0]) * 255).astype(np.uint8)
    if times is None:
        writer.write(frames)
    else:
        shown = [times.popleft() for _ in range(chunk.num_frames)]
        writer.write(frames, [pts for pts, _ in shown], [duration for _, duration in shown])
