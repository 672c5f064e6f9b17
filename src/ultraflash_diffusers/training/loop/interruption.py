# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Ctrl-C and requests to terminate, which end a run after the step in progress."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interruption:
    """Turns the first Ctrl-C or request to terminate into `signal`; a second one acts at once.

    Signals reach the main thread alone: in another one nothing is watched.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Interruption:
        watched = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._note) for number in watched}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.__exit__()
