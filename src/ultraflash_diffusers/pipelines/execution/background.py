# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A worker thread whose results are read through a bounded queue, and which stops when nobody reads any more."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from queue import Full, Queue
from threading import Event, Thread
from typing import Generic, NamedTuple, TypeVar

from .compilation import GuardedCalls
from .threads import for_another_thread

Item = TypeVar("Item")


class ReaderLeft(Exception):
    """Raised inside the worker when the reader has closed: it unwinds the worker and goes no further."""


class Channel(Generic[Item]):
    """The worker's end of the queue, in which one result may wait; until it is read, the worker pauses.

    Args:
        compiled (`bool`): whether the work calls compiled networks. What it does between two calls of this object then
            counts as one guarded call.
    """

    def __init__(self, compiled: bool) -> None:
        self.queue: Queue[_Result[Item]] = Queue(1)
        self.closed = Event()
        self._calls = GuardedCalls() if compiled else nullcontext
        self._working = ExitStack()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Surrounds all of the work."""
        self._working.enter_context(self._calls())
        try:
            yield
        finally:
            self._working.close()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Surrounds what the work does beside its networks, and what may wait for others.

        Raises:
            ReaderLeft: nobody reads any more.
        """
        self._working.close()
        self._check()
        yield
        self._working.enter_context(self._calls())

    def put(self, item: Item) -> None:
        """Hands `item` over; waits while the queue is full.

        Raises:
            ReaderLeft: nobody reads any more.
        """
        with self.pause():
            self._put(_Result(item=item))

    def finish(self, error: BaseException | None = None) -> None:
        """Says that nothing more will come."""
        self._put(_Result(finished=True, error=error))

    def _put(self, result: _Result[Item]) -> None:
        while True:
            self._check()
            try:
                return self.queue.put(result, timeout=0.1)
            except Full:
                continue

    def _check(self) -> None:
        if self.closed.is_set():
            raise ReaderLeft


class _Result(NamedTuple, Generic[Item]):
    item: Item | None = None
    finished: bool = False
    error: BaseException | None = None


def background(work: Callable[[Channel[Item]], None], compiled: bool = False) -> Generator[Item, None, None]:
    """Runs `work(channel)` in a thread, from the first `next()` on, and yields what it puts into the channel.

    Args:
        work (`Callable`): calls `channel.put(item)`, and `channel.pause()` where it could stop.
        compiled (`bool`, *optional*, defaults to `False`): whether `work` calls compiled networks.

    Raises:
        Exception: what `work` raised, after everything that it had put before. Closing the generator raises
            [`ReaderLeft`] in the worker at its next `put` or `pause`, and waits until it has ended.
    """
    channel: Channel[Item] = Channel(compiled)
    thread = Thread(target=for_another_thread(_run), args=(work, channel), name="ultraflash-source", daemon=True)
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
            with channel.working():
                work(channel)
        except ReaderLeft:
            return
        except BaseException as error:
            channel.finish(error)
        else:
            channel.finish()
    except ReaderLeft:
        return
