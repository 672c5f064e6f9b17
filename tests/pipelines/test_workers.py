# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which threads streams run in."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import pytest
import torch

from ultraflash_diffusers.pipelines.execution.workers import borrow_worker, return_worker

DEVICE = torch.device("meta")


def test_a_worker_serves_one_stream_after_the_other() -> None:
    first = borrow_worker(DEVICE)
    thread = first.submit(threading.get_ident).result()
    second = borrow_worker(DEVICE)  # a stream beside it
    assert second.submit(threading.get_ident).result() != thread
    return_worker(first)
    again = borrow_worker(DEVICE)
    assert again is first and again.submit(threading.get_ident).result() == thread
    other = borrow_worker(torch.device("cpu"))
    assert other.device.type == "cpu" and other.decoding_stream is None
    for worker in (second, again, other):
        return_worker(worker)


def test_a_worker_comes_back_when_its_work_is_done() -> None:
    worker, begun, ended = borrow_worker(DEVICE), threading.Event(), []
    worker.submit(lambda: (begun.set(), time.sleep(0.1), ended.append(1)))
    assert begun.wait(10)
    return_worker(worker)
    assert ended == [1]


def test_what_has_not_begun_is_dropped() -> None:
    worker, gate = borrow_worker(DEVICE), threading.Event()
    running, waiting = worker.submit(gate.wait, 10), worker.submit(lambda: 1)
    threading.Timer(0.1, gate.set).start()
    return_worker(worker)
    with pytest.raises(CancelledError):
        waiting.result()
    assert running.result()
