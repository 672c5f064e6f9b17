# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""When a server says that it is ready."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from fastapi import FastAPI
from helpers.paths import ROOT
from helpers.realtime import wait_until

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


@pytest.mark.slow
def test_a_server_whose_address_nobody_reads_serves_all_the_same(tmp_path):
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    words = ["serve", "--port", str(port), "--jobs", str(tmp_path), "--json"]
    command = [sys.executable, "-m", "ultraflash_diffusers.cli", *words]
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings) as process:
        process.stdout.close()
        try:
            wait_until(lambda: process.poll() is not None or answers(port), 120)
            process.send_signal(signal.SIGTERM)
            told = process.stderr.read()
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in told


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False
