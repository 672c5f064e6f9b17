# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Running an ASGI application on a port until a signal ends it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

_SEND_BUFFER = 128 * 1024  # bytes in the kernel: what a reader that has stopped can still be sent
_DEAD_SECONDS = 60
_LARGEST_MESSAGE = 64 * 2**20


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket of that address, whose connections tell soon that nobody reads.

    Until its server runs they are refused.

    Raises:
        OSError: the address is in use, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_SECONDS * 1000)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen at {host} port {port}: {error.strerror}") from error
    return listener


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, when_ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._when_ready = when_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_ready()


def make_server(app: Any, when_ready: Callable[[], object]) -> uvicorn.Server:
    """Returns the HTTP server of an application, to be run on a socket of [`bind`].

    Args:
        app: an ASGI application.
        when_ready (`callable`): called once, when connections are accepted.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        ws="websockets-sansio",
        ws_max_size=_LARGEST_MESSAGE,
        # a slow reader answers no pings behind the video that it has not read: sessions have limits of their own
        ws_ping_timeout=None,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=5,
        lifespan="on",
    )
    return _Server(config, when_ready)


def run_until_signal(app: Any, listener: socket.socket, when_ready: Callable[[], object]) -> None:
    """Serves until Ctrl-C, TERM or HUP; running sessions are closed first.

    Args:
        app: an ASGI application.
        listener (`socket.socket`): from [`bind`].
        when_ready (`callable`): called once, when connections are accepted and signals are heard.
    """
    server = make_server(app, when_ready)
    former = {
        signal.SIGHUP: signal.signal(signal.SIGHUP, lambda *_: setattr(server, "should_exit", True)),
        # uvicorn ends by the signal once more: it has been heard
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: None),
    }
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
