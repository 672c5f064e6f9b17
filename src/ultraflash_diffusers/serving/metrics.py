# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .runner import Places

_CHUNK_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)


class Metrics:
    """The counters of one server.

    Args:
        places ([`Places`]): whose streams and queue are shown.
    """

    def __init__(self, places: Places) -> None:
        self._registry = CollectorRegistry()
        running = Gauge("ultraflash_streams_running", "Streams that have a place", registry=self._registry)
        running.set_function(lambda: places.running)
        waiting = Gauge("ultraflash_streams_waiting", "Clients that wait for a place", registry=self._registry)
        waiting.set_function(lambda: places.waiting)
        self.sessions = Counter(
            "ultraflash_sessions", "Sessions that ended, by how they did", ["outcome"], registry=self._registry
        )
        self.jobs = Counter("ultraflash_jobs", "Jobs that ended, by how they did", ["status"], registry=self._registry)
        self._frames = Counter("ultraflash_frames", "Frames made", registry=self._registry)
        self._bytes = Counter("ultraflash_media_bytes", "Bytes of video sent", registry=self._registry)
        self._chunks = Histogram(
            "ultraflash_chunk_seconds",
            "From asking for a chunk to having it",
            buckets=_CHUNK_SECONDS,
            registry=self._registry,
        )
        self._stages = Counter(
            "ultraflash_stage_seconds", "Time spent in each stage", ["stage"], registry=self._registry
        )

    def count_chunk(self, frames: int, seconds: float, stages: Mapping[str, float]) -> None:
        """Counts a chunk that was made."""
        self._frames.inc(frames)
        self._chunks.observe(seconds)
        for stage, spent in stages.items():
            self._stages.labels(stage).inc(spent)

    def count_bytes(self, number: int) -> None:
        """Counts bytes of video that were sent."""
        self._bytes.inc(number)

    def exposition(self) -> bytes:
        """Returns all of them in Prometheus' text format."""
        return generate_latest(self._registry)
