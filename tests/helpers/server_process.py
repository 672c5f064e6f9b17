# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A command that serves, in a process of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from helpers.paths import ROOT


@contextmanager
def server_process(
    *words: str, seconds: float = 240, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs `ultraflash WORDS --json`; gives the process and its URL, where somebody listens as soon as it is told.

    What it writes to stderr is pytest's to show; how it ended is said beside what failed.
    """
    command = [sys.executable, "-m", "ultraflash_diffusers.cli", *words, "--json"]
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=settings) as process:
        killer = threading.Timer(seconds, process.kill)
        killer.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            killer.cancel()
            found = re.fullmatch(r'{"url": "(http://[^"]+)"}\n', line)
            assert found, f"{line!r} in the place of an address"
            url = urlsplit(found.group(1))
            assert url.hostname is not None
            socket.create_connection((url.hostname, url.port or 80), 30).close()
            yield process, found.group(1)
        except BaseException as error:
            error.add_note(f"the server {_end(process)}")
            raise
        finally:
            killer.cancel()
            process.kill()


def _end(process: subprocess.Popen[str]) -> str:
    try:
        return f"had ended with {process.wait(1)}"
    except subprocess.TimeoutExpired:
        return "was running"
