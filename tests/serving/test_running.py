# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""When a server says that it is ready."""

from __future__ import annotations

import signal
import socket

from fastapi import FastAPI

from ultraflash_diffusers.serving.running import bind, run_until_signal


def test_whoever_hears_that_it_is_ready_is_let_in():
    listener = bind("127.0.0.1", 0)
    heard = []

    def when_ready() -> None:
        heard.append(socket.create_connection(listener.getsockname(), 5))
        signal.raise_signal(signal.SIGTERM)

    with listener:
        run_until_signal(FastAPI(), listener, when_ready)
    (connection,) = heard
    connection.close()
