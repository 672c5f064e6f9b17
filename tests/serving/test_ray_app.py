# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Replicas of the server by Ray Serve: one of them is killed, and they come and go with their streams."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.realtime import Client, Received, is_played, play_to_the_end, wait_until
from helpers.tiny import make_tiny_pipeline

from ultraflash_diffusers import UltraFlashStreamingPipeline

ray = pytest.importorskip("ray")
pytest.importorskip("ray.serve")

pytestmark = pytest.mark.slow

PORT, FPS, FRAMES = 28765, 12, 400


@pytest.fixture
def pipe(tmp_path) -> UltraFlashStreamingPipeline:
    """As the replicas load it: weights in other places of memory may be multiplied with other roundings."""
    make_tiny_pipeline().save_pretrained(tmp_path / "pipe")
    return UltraFlashStreamingPipeline.from_pretrained(tmp_path / "pipe", dtype=torch.float32)


@contextmanager
def deployed(tmp_path: Path, **arguments: Any) -> Iterator[str]:
    """The application on a Ray of its own, on this machine; gives its address."""
    from ultraflash_diffusers.serving.ray_app import RayArguments, build

    before = _session_folders()
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        ray.serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        common = {"sessions": tmp_path / "sessions", "checkpoint": str(tmp_path / "pipe"), "num_cpus": 0.1}
        ray.serve.run(build(RayArguments(**common | arguments)), route_prefix="/")
        yield f"127.0.0.1:{PORT}"
        ray.serve.shutdown()
    finally:
        ray.shutdown()
        for folder in _session_folders() - before:  # what the killed replica had
            shutil.rmtree(folder)


def _session_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("ultraflash-session-*"))


def replicas() -> list[int]:
    """Process numbers of the replicas that live."""
    from ray._private.state import actors

    return [
        actor["Pid"]
        for actor in actors().values()
        if actor["State"] == "ALIVE" and actor["ActorClassName"].startswith("ServeReplica")
    ]


@pytest.fixture
def address(pipe, tmp_path) -> Iterator[str]:
    with deployed(tmp_path, min_replicas=2, max_replicas=2, max_streams=3, save_every=0) as address:
        yield address


def test_streams_of_a_killed_replica_end_with_the_frames_of_an_uninterrupted_one(address, pipe):
    played: dict[int, list[Received]] = {}
    chunks: Counter[int] = Counter()

    def play(seed: int) -> None:
        def count() -> None:
            chunks[seed] += 1

        start = {"prompt": "a red ball", "num_frames": FRAMES, "seed": seed}
        played[seed] = play_to_the_end(address, count, 300, **start)

    threads = [threading.Thread(target=play, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(chunks) == 6 and min(chunks.values()) >= 2, 120)
    killed = replicas()[0]
    os.kill(killed, signal.SIGKILL)
    for thread in threads:
        thread.join()
    moved = [seed for seed, connections in played.items() if len(connections) > 1]
    assert moved, "the killed replica had no stream"
    for seed in range(6):
        frames = pipe(
            "a red ball", num_frames=FRAMES, generator=torch.Generator().manual_seed(seed), output_type="uint8"
        ).frames[0]
        assert is_played(played[seed], frames, FPS), f"stream {seed}"
    wait_until(lambda: len(replicas()) == 2 and killed not in replicas(), 120)  # Ray has replaced it


def test_replicas_come_with_streams_and_go_after_them(pipe, tmp_path):
    scaling = {"max_replicas": 2, "max_streams": 1, "add_after": 2.0, "remove_after": 4.0}
    with deployed(tmp_path, **scaling) as address, ExitStack() as streams:
        assert len(replicas()) == 1

        def begun() -> Client:
            client = streams.enter_context(Client(address))
            client.start(prompt="a red ball", num_frames=None, seed=3)
            client.send("session.ping")
            client.read()
            return client

        staying = begun()
        staying.read_until("video.chunk_metadata")
        assert len(replicas()) == 1
        others = [begun() for _ in range(3)]
        wait_until(lambda: len(replicas()) == 2, 120)
        for each in others:
            each.close()
        staying.close()
        wait_until(lambda: len(replicas()) == 1, 120)
        with Client(address) as last:  # the one that is left serves
            last.start(prompt="a red ball", num_frames=20, seed=3)
            assert sum(chunk["num_frames"] for chunk, _ in last.finish().chunks) == 20
