# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the demo gives away of its host, and how it ends."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from helpers.realtime import Client, wait_until
from helpers.server_process import server_process
from helpers.tiny import make_tiny_pipeline

from ultraflash_diffusers.video_io import VideoWriter

gradio_client = pytest.importorskip("gradio_client")
demo_module = pytest.importorskip("ultraflash_diffusers.demo.page")

WIDTH, HEIGHT = 24, 16


def write_clip(path: Path, frames: int) -> Path:
    with VideoWriter(path, WIDTH, HEIGHT, fps=12) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (frames, HEIGHT, WIDTH, 3), np.uint8))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An offered clip among files that are nobody's business."""
    folder = tmp_path_factory.mktemp("examples")
    write_clip(folder / "clip.mp4", 30)
    for name in (".hidden", "notes.txt", "sub/deep.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("secret")
    return folder


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory) -> Iterator[demo_module.DemoPage]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        page = demo_module.build_demo(make_tiny_pipeline(), [folder / "clip.mp4"])
        demo_module.launch_demo(page, [folder / "clip.mp4"], prevent_thread_lock=True, quiet=True)
        yield page
        page.end()


@pytest.fixture
def address(page) -> str:
    return re.search("//([^/]+)", page.local_url).group(1)


def test_offered_clips_are_served_and_nothing_beside_them(folder, address):
    def status(path: Path | str) -> int:
        return httpx.get(f"http://{address}/gradio_api/file={path}").status_code

    assert status(folder / "clip.mp4") == 200
    for name in (".hidden", "notes.txt", "sub/deep.txt", "", "clip.mp4/../notes.txt"):
        assert status(folder / name) in (403, 404)
    assert status("/etc/passwd") in (403, 404)


def test_the_page_plays_over_the_realtime_protocol(address):
    with Client(address, origin=f"http://{address}") as client:
        client.start(prompt="a red ball", num_frames=20, seed=1)
        assert client.finish().messages[-1]["ended_by"] == "end"


def test_a_live_stream_works_on_an_offered_file_once(page, folder, address):
    token = page.live.offer(folder / "clip.mp4")
    with Client(address) as client:
        client.start(source="video", video={"token": token})
        assert sum(chunk["num_frames"] for chunk, _ in client.finish().chunks) == 30
    for wrong in (token, "guessed", str(folder / "clip.mp4")):
        with Client(address) as client:
            client.start(source="video", video={"token": wrong})
            assert client.read()["code"] == "not_found"


def test_an_upload_that_was_cut_off_is_said(page, folder, address, tmp_path):
    data = (folder / "clip.mp4").read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) * 2 // 3])  # its index comes first
    with Client(address) as client:
        client.start(source="video", video={"token": page.live.offer(cut)})
        done = client.finish().messages[-1]
    made = sum(chunk["num_frames"] for chunk, _ in client.received.chunks)
    assert done["missing_frames"] == 30 - made > 0
    assert str(tmp_path) not in json.dumps(client.received.messages)


@pytest.mark.slow
def test_memory_does_not_grow_with_visitors(page, address):
    """The page library keeps what a visitor's components hold: of the last ones alone."""

    def visit(number: int) -> None:
        call = f"http://{address}/gradio_api/call/stop_generate"
        event = httpx.post(call, json={"data": [], "session_hash": f"visitor{number}"}).json()["event_id"]
        assert "complete" in httpx.get(f"{call}/{event}").text

    for number in range(80):
        visit(number)
    before = psutil.Process().memory_info().rss
    for number in range(80, 160):
        visit(number)
    assert len(page.app.state_holder.session_data) <= 64
    assert psutil.Process().memory_info().rss < 1.02 * before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_demo_cleanly(number, tmp_path):
    make_tiny_pipeline().save_pretrained(tmp_path / "pipe")
    (tmp_path / "temporary").mkdir()
    words = ["demo", "--checkpoint", str(tmp_path / "pipe")]
    with server_process(*words, TMPDIR=str(tmp_path / "temporary")) as (process, url):
        client = gradio_client.Client(url, verbose=False, download_files=str(tmp_path))
        job = client.submit("a cat", "48 × 32", 480, 0, api_name="/generate")
        wait_until(lambda: bool(job.outputs()), 60)
        process.send_signal(number)
        assert process.wait(60) in (0, 130)
        left = [path.name for path in (tmp_path / "temporary").glob("ultraflash-*")]
        assert left == []
