# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Interactions with a stream, and which chunks they show in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class _Event:
    name: str
    first_chunk: int
    last_chunk: int


class EventLog:
    """Remembers interactions until their last chunk has been reported."""

    def __init__(self) -> None:
        self._events: list[_Event] = []

    def begin(self, name: str, first_chunk: int, transition_chunks: int) -> None:
        """Notes an interaction that shows from chunk `first_chunk` on and for how many, at least one, it is active."""
        self._events.append(_Event(name, first_chunk, first_chunk + max(1, transition_chunks) - 1))

    def of_chunk(self, chunk: int) -> dict[str, list[str]]:
        """Returns which interactions start in a chunk, are active in it, and are completed with it."""
        self._events = [event for event in self._events if event.last_chunk >= chunk]
        return {
            "started_event_ids": [event.name for event in self._events if event.first_chunk == chunk],
            "active_event_ids": [event.name for event in self._events if event.first_chunk <= chunk],
            "completed_event_ids": [event.name for event in self._events if event.last_chunk == chunk],
        }
