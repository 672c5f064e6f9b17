# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Threads that denoise and CUDA streams that decode: lent to a running stream, kept for the next one.

cuDNN plans its attention anew in every thread (0.1 s and more for a stream's first frame), and PyTorch's allocator
keeps what is free apart for every CUDA stream. So a stream that begins takes what an ended one has left. Streams that
run at the same time have a worker each: one that waits for a camera holds no other one up.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import Any

import torch


class Worker:
    """A thread, and on a GPU the CUDA stream on which its user decodes beside it.

    Args:
        device (`torch.device`): of the networks that it runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.decoding_stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            # of high priority: a finished group's frames are waited for, the next group's latents are not
            self.decoding_stream = torch.cuda.Stream(device, priority=-1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ultraflash-denoiser")
        self._last: Future[Any] | None = None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Calls a function in the thread, after all that was submitted before."""
        self._last = self._thread.submit(function, *arguments)
        return self._last

    def finish(self) -> None:
        """Drops the last call, if it has not begun, and else waits for its end."""
        if self._last is not None and not self._last.cancel():
            wait([self._last])
        self._last = None


_IDLE: dict[torch.device, list[Worker]] = {}
_LOCK = Lock()


def borrow_worker(device: torch.device) -> Worker:
    """Returns a worker for networks on `device` that nobody else has; to be given back by [`return_worker`]."""
    with _LOCK:
        idle = _IDLE.get(device)
        return idle.pop() if idle else Worker(device)


def return_worker(worker: Worker) -> None:
    """Gives a worker back, once its last work is done."""
    worker.finish()
    with _LOCK:
        _IDLE.setdefault(worker.device, []).append(worker)
