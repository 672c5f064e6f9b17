# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Chromium without a window, steered over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-port=0",
)


def button(name: str) -> str:
    """The JavaScript expression of the button with this text, of those that are shown."""
    shown = "[...document.querySelectorAll('button')].filter((each) => each.offsetParent)"
    return f"{shown}.find((each) => each.textContent.trim() === {json.dumps(name)})"


class Page:
    """A tab of the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._calls = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol."""
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv(60))).get("id") != self._calls:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60) -> Any:
        """Waits until an expression is true; returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"{expression} did not become true"
            time.sleep(0.1)
        return value

    def press(self, name: str) -> None:
        """Presses a button."""
        assert self.evaluate(f"Boolean({button(name)})"), f"no button {name!r}"
        self.evaluate(f"{button(name)}.click()")

    def screenshot(self, path: Path) -> bytes:
        """Saves what the page looks like, as PNG."""
        data = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        path.write_bytes(data)
        return data


@contextmanager
def opened(url: str, profile: Path, width: int = 1200, height: int = 1000) -> Iterator[Page]:
    """Opens an address in a browser of its own."""
    assert CHROMIUM is not None
    words = [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        host = next(found.group(1) for line in lines if (found := re.search(r"listening on ws://([^/]+)/", line)))
        target = httpx.put(f"http://{host}/json/new?{quote(url, safe='')}", timeout=60).json()
        with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(30)
