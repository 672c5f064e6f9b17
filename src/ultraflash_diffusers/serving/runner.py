# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Many streams on one set of weights: whose turn it is, and who has a place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from .errors import ClientError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_POSITION_SECONDS = 5.0


class StreamRunner:
    """Does the work of all streams in one thread, in the order in which it was asked for.

    A stream asks for its next chunk when it has the one before, so that each of them gets one chunk in turn; prompts
    are embedded and streams opened and closed between chunks.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ultraflash-streams")

    def submit(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """Asks for a turn, in which `function` is called, with the context variables of whoever asks."""
        return self._thread.submit(copy_context().run, partial(function, *args, **kwargs))

    async def run(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Waits for a turn and returns what `function` returns in it."""
        return await asyncio.wrap_future(self.submit(function, *args, **kwargs))

    def close(self) -> None:
        """Drops what has not begun, and waits for what has."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class Places:
    """The places of running streams, and the queue of those who wait for one.

    Args:
        count (`int`): places.
        max_waiting (`int`): how many may wait.
    """

    def __init__(self, count: int, max_waiting: int) -> None:
        self._count = count
        self._max_waiting = max_waiting
        self._tickets: list[object] = []  # the first `count` of them have places
        self._moved = asyncio.Event()

    @property
    def running(self) -> int:
        """Places that are taken."""
        return min(len(self._tickets), self._count)

    @property
    def waiting(self) -> int:
        """Those who wait."""
        return len(self._tickets) - self.running

    @asynccontextmanager
    async def taken(self, on_position: Callable[[int], Awaitable[None]]) -> AsyncIterator[None]:
        """Holds a place while the block runs.

        Args:
            on_position (`Callable`): is told the position in the queue, 1 for the next one, now and then.

        Raises:
            ClientError: too many are waiting.
        """
        if self.waiting >= self._max_waiting and len(self._tickets) >= self._count:
            raise ClientError("server_busy", f"{self.waiting} clients are waiting already: try again later", 503)
        ticket = object()
        self._tickets.append(ticket)
        try:
            while (position := self._position(ticket)) > 0:
                await on_position(position)
                await self._move()
            yield
        finally:
            self._tickets.remove(ticket)
            self._tell()

    def _position(self, ticket: object) -> int:
        return self._tickets.index(ticket) - self._count + 1

    async def _move(self) -> None:
        try:
            async with asyncio.timeout(_POSITION_SECONDS):
                await self._moved.wait()
        except TimeoutError:
            pass

    def _tell(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
