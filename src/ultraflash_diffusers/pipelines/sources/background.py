# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A worker thread whose results are read through a bounded queue, and which stops when nobody reads any more."""

from __future__ import annotations

from collections.abc import Callable, Generator
from queue import Full, Queue
from threading import Event, Thread
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class ReaderLeft(Exception):
    """Raised inside the worker when the reader has closed: it unwinds the worker and goes no further."""


class Channel(Generic[Item]):
    """The worker's end of the queue."""

    def __init__(self, size: int) -> None:
        self.queue: Queue[_Result[Item]] = Queue(size)
        self.closed = Event()

    def check(self) -> None:
        """Raises [`ReaderLeft`] if nobody reads any more."""
        if self.closed.is_set():
            raise ReaderLeft

    def put(self, item: Item) -> None:
        """Hands `item` over; waits while the queue is full.

        Raises:
            ReaderLeft: nobody reads any more.
        """
        self._put(_Result(item=item))

    def finish(self, error: BaseException | None = None) -> None:
        """Says that nothing more will come."""
        self._put(_Result(finished=True, error=error))

    def _put(self, result: _Result[Item]) -> None:
        while True:
            self.check()
            try:
                return self.queue.put(result, timeout=0.1)
            except Full:
                continue


class _Result(NamedTuple, Generic[Item]):
    item: Item | None = None
    finished: bool = False
    error: BaseException | None = None


def background(work: Callable[[Channel[Item]], None], queue_size: int = 1) -> Generator[Item, None, None]:
    """Runs `work(channel)` in a thread, from the first `next()` on, and yields what it puts into the channel.

    Args:
        work (`Callable`): calls `channel.put(item)`, and `channel.check()` where it could stop.
        queue_size (`int`, *optional*, defaults to 1): results that may wait; the worker pauses while so many do.

    Raises:
        Exception: what `work` raised, after everything that it had put before. Closing the generator raises
            [`ReaderLeft`] in the worker at its next `put` or `check`, and waits until it has ended.
    """
    channel: Channel[Item] = Channel(queue_size)
    thread = Thread(target=_run, args=(work, channel), name="ultraflash-source", daemon=True)
    thread.start()
    try:
        while not (result := channel.queue.get()).finished:
            yield result.item  # type: ignore[misc]
        if result.error is not None:
            raise result.error
    finally:
        channel.closed.set()
        thread.join()


def _run(work: Callable[[Channel[Item]], None], channel: Channel[Item]) -> None:
    try:
        try:
            work(channel)
        except ReaderLeft:
            return
        except BaseException as error:
            channel.finish(error)
        else:
            channel.finish()
    except ReaderLeft:
        return
