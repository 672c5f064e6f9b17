# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The two example clients, in Python and as a page, against a server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from helpers.browser import CHROMIUM, opened
from helpers.paths import ROOT
from helpers.realtime import PATH, decoded, running
from helpers.tiny import make_tiny_pipeline

from ultraflash_diffusers.serving import ServedModel, Server, create_app


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pipe = make_tiny_pipeline(default_width=96, default_height=64)
    with running(create_app(Server([ServedModel("tiny", pipe)]))) as address:
        yield f"ws://{address}{PATH}"


def test_the_client_saves_what_comes_and_changes_the_prompt(address, tmp_path):
    video = tmp_path / "live.mp4"
    command = [sys.executable, str(ROOT / "examples" / "realtime_client.py"), "a red ball", "--then", "a cube"]
    run = subprocess.run(
        [*command, "--num-frames", "125", "--url", address, "--output", str(video)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "from here on ['then']" in run.stdout and "'ended_by': 'end'" in run.stdout
    assert decoded(video.read_bytes()).shape == (125, 64, 96, 3)
    refused = subprocess.run(
        [*command, "--num-frames", "-1", "--url", address, "--output", str(video)], capture_output=True, text=True
    )
    assert refused.returncode == 1 and "num_frames" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_plays_while_later_frames_are_made(address, tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(ROOT / "examples")))
    Thread(target=files.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{files.server_address[1]}/realtime_client.html?server={address}"
    try:
        with opened(url, tmp_path / "profile") as page:
            press = "document.querySelector('button[value={}]').click()".format
            status = "document.querySelector('[role=status]').textContent"
            page.wait_for("Boolean(document.querySelector('button[value=start]'))")
            page.evaluate(press("start"))
            page.wait_for("video.currentTime > 1 && video.readyState >= 2")
            assert page.evaluate("video.videoWidth") == 96 and "frames/s" in page.evaluate(status)
            page.evaluate(press("change"))
            page.evaluate(press("stop"))
            page.wait_for(f"{status} === 'session.done'")
    finally:
        files.shutdown()
        files.server_close()
