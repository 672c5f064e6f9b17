# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the stages of a stream take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class StageTimings(Mapping[str, float]):
    """Seconds by stage.

    On a GPU they are the time between two events on its streams, read when somebody looks: to measure holds nothing
    up, and what else the GPU did meanwhile counts too.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def add(self, stage: str, seconds: float) -> None:
        """Adds seconds to a stage."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def add_span(self, stage: str, start: torch.cuda.Event, end: torch.cuda.Event) -> None:
        """Adds the time from one recorded event to another."""
        self._spans.append((stage, start, end))

    def merge(self, other: Mapping[str, float]) -> None:
        """Adds all stages of `other`."""
        if isinstance(other, StageTimings):
            self._spans += other._spans
            other = other._seconds
        for stage, seconds in other.items():
            self.add(stage, seconds)

    def __getitem__(self, stage: str) -> float:
        return self._read()[stage]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._read()})"

    def _read(self) -> dict[str, float]:
        for stage, start, end in self._spans:
            end.synchronize()
            self.add(stage, start.elapsed_time(end) / 1000)
        self._spans = []
        return self._seconds


@contextmanager
def stage_timer(timings: StageTimings, stage: str, device: torch.device) -> Iterator[None]:
    """Adds the time that the block takes to `timings`; on a GPU, that of the work it queues on the current stream."""
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device)
        span = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        span[0].record(stream)
        yield
        span[1].record(stream)
        timings.add_span(stage, *span)
    else:
        start = time.perf_counter()
        yield
        timings.add(stage, time.perf_counter() - start)
