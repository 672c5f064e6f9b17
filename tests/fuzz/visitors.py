# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Visitors of a server who start, change prompts, stop, leave and reload at random, and what stays behind them.

    PYTHONPATH=src:tests python -m fuzz.visitors --visitors 50 --seconds 120

The server is a process of its own, with tiny networks. Each stream must have the frames of its prompt and seed and of
no other. Afterwards what the server holds is compared with what it held before, once warm: memory, threads, files,
and, which no allocator blurs, the objects of sessions that live on.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from helpers.realtime import Client, encoded, wait_until
from helpers.tiny import make_tiny_pipeline
from websockets.exceptions import ConnectionClosed

from ultraflash_diffusers import UltraFlashStreamingPipeline
from ultraflash_diffusers.pipelines.video_stream import VideoStream
from ultraflash_diffusers.serving import ServedModel, Server, ServerSettings, create_app
from ultraflash_diffusers.serving.fragments import FragmentEncoder
from ultraflash_diffusers.serving.playback import Playback
from ultraflash_diffusers.serving.running import bind, run_until_signal
from ultraflash_diffusers.serving.session import RealtimeSession

_FRAMES = 61
_SEEDS = (1, 2)
_PROMPTS = ("a red ball", "a blue cat", "the table", "the ball rolls over the cat")
_STEPS = ("finish", "finish", "stop", "leave", "leave at once", "change the prompt")
_GONE_SECONDS = 1.0


@dataclass
class Visits:
    """What came of all visits.

    Args:
        ends (`Counter`): how they ended.
        wrong (`list[str]`): streams that had other frames than theirs, and errors.
    """

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Usage:
    """What a server's process holds: memory in bytes, threads beside its pools', open files, objects of sessions."""

    memory: int
    threads: int
    files: int
    objects: dict[str, int]

    @classmethod
    def of(cls, process: int, address: str) -> Usage:
        """That of a server now."""
        running = psutil.Process(process)
        held = httpx.get(f"http://{address}/held", timeout=60).json()
        # the server may close the connection of an answer after that has arrived
        wait_until(lambda: all(each.status == psutil.CONN_LISTEN for each in running.net_connections()), 10)
        threads = running.num_threads() - held["pool_threads"]
        return cls(running.memory_info().rss, threads, running.num_fds(), held["objects"])


def make_pipeline() -> UltraFlashStreamingPipeline:
    """Tiny networks whose frames depend on the prompt, and differ enough to be told apart after compression."""
    pipe = make_tiny_pipeline(default_width=96, default_height=64)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        for block in pipe.generator_transformer.blocks:
            block.attn2.to_out[0].weight.mul_(100)
        pipe.autoencoder.decoder[-1].weight.mul_(30)
    return pipe


def expected_frames() -> dict[tuple[str, int], np.ndarray]:
    """The frames `[frames, height, width, 3]` of each prompt and seed, made without a server."""
    pipe = make_pipeline()
    return {
        (prompt, seed): pipe(
            prompt, num_frames=_FRAMES, generator=torch.Generator().manual_seed(seed), output_type="uint8"
        ).frames[0]
        for prompt in _PROMPTS
        for seed in _SEEDS
    }


@contextmanager
def server(max_streams: int) -> Iterator[tuple[str, int]]:
    """A server in a process of its own; gives its address and the process's number."""
    command = [sys.executable, "-m", "fuzz.visitors", "--serve", str(max_streams)]
    # the tests' folder is on the path of this process, which may have got it from pytest
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the server has ended"
        yield address, process.pid
        assert process.poll() is None, "the server has ended"
    finally:
        process.terminate()
        process.wait(30)


def visit(address: str, chance: random.Random, expected: dict[tuple[str, int], np.ndarray], visits: Visits) -> None:
    """One visit: a stream of a random prompt and seed, and something that a visitor does with it."""
    prompt, seed, step = chance.choice(_PROMPTS), chance.choice(_SEEDS), chance.choice(_STEPS)
    try:
        with Client(address) as client:
            client.start(prompt=prompt, seed=seed, num_frames=_FRAMES)
            if step == "leave at once":
                visits.ends[step] += 1
                return
            client.read_until("video.start", 300)
            client.read_until("video.chunk_metadata", 300)
            if step == "leave":
                visits.ends[step] += 1
                return
            if step == "stop":
                client.send("session.stop")
            elif step == "change the prompt":
                client.send("session.interaction", interaction={"event": {"prompt": chance.choice(_PROMPTS)}})
            client.finish(300)
            _check(client, expected, (prompt, seed), step, visits)
    except (AssertionError, ConnectionClosed, OSError, TimeoutError) as error:
        visits.wrong.append(f"{step}: {type(error).__name__}: {error}"[:300])


def _check(
    client: Client, expected: dict[tuple[str, int], np.ndarray], own: tuple[str, int], step: str, visits: Visits
) -> None:
    """What was sent are the bytes of the own prompt and seed, up to where a prompt may have changed."""
    chunks = client.received.chunks[: 1 if step == "change the prompt" else None]
    sizes = [metadata["num_frames"] for metadata, _ in chunks]
    frames = expected[own]
    if step == "finish" and sum(sizes) != len(frames):
        visits.wrong.append(f"{sum(sizes)} frames of {len(frames)}")
    visits.ends[step] += 1
    fps = client.received.of_type("video.start")[0]["config"]["fps"]
    if [data for _, data in chunks] != encoded(frames[: sum(sizes)], sizes, fps):
        others = [key for key in expected if [chunks[0][1]] == encoded(expected[key][: sizes[0]], sizes[:1], fps)]
        visits.wrong.append(f"asked for {own}, got other frames: {others}")


def campaign(visitors: int, seconds: float, seed: int) -> tuple[Visits, Usage, Usage, float]:
    """Runs it; returns the visits, what the server held before and after, and how soon a place was free again."""
    expected, visits = expected_frames(), Visits()

    def come(seconds: float, name: str) -> None:
        end = time.monotonic() + seconds

        def stay(number: int) -> None:
            chance = random.Random(f"{seed} {name} {number}")
            while time.monotonic() < end:
                visit(address, chance, expected, visits)

        threads = [threading.Thread(target=stay, args=(number,)) for number in range(visitors)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with server(max_streams=2) as (address, process):
        come(seconds / 3, "warm")  # then all threads and pools of memory are there
        before = _settled(address, process)
        come(seconds, "counted")
        return visits, before, _settled(address, process), _freed_after(address)


def _settled(address: str, process: int) -> Usage:
    """What the server holds once nobody is there; connections that were broken off may take a few seconds to close."""
    _wait_for_places(address, 30)
    end = time.monotonic() + 10
    while any((usage := Usage.of(process, address)).objects.values()) and time.monotonic() < end:
        time.sleep(1)
    return usage


def _wait_for_places(address: str, seconds: float) -> float:
    begin = time.monotonic()
    while _running(address):
        assert time.monotonic() - begin < seconds, "places are still taken"
        time.sleep(0.02)
    return time.monotonic() - begin


def _running(address: str) -> float:
    text = httpx.get(f"http://{address}/metrics").text
    counts = [line.split() for line in text.splitlines() if line.startswith("ultraflash_streams_running ")]
    return float(counts[0][1])


def _freed_after(address: str) -> float:
    """Seconds from a visitor's disappearance in mid-stream to the place being free."""
    client = Client(address)
    client.start(prompt=_PROMPTS[0], seed=1, num_frames=None)
    client.read_until("video.chunk_metadata", 60)
    client.socket.socket.close()  # without a goodbye
    return _wait_for_places(address, 30)


def serve(max_streams: int) -> None:
    """The server's process: says its address, and serves until it is ended."""
    listener = bind("127.0.0.1", 0)
    app = create_app(
        Server([ServedModel("tiny", make_pipeline())], ServerSettings(max_streams=max_streams, max_queue=500))
    )
    app.add_api_route("/held", held)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    run_until_signal(app, listener, lambda: print(address, flush=True))


def held() -> dict[str, Any]:
    """How many there are of what only a running session has, and of threads that asyncio's and AnyIO's pools keep.

    Those pools are bounded, and have as many threads as there ever was to do at once, which is chance.
    """
    gc.collect()
    kinds = (RealtimeSession, Playback, FragmentEncoder, VideoStream)
    # by type alone: to ask objects of other libraries for their class wakes what they load lazily
    found = Counter(type(each) for each in gc.get_objects())
    objects = {kind.__name__: sum(n for each, n in found.items() if issubclass(each, kind)) for kind in kinds}
    pools = [thread for thread in threading.enumerate() if thread.name.startswith(("asyncio_", "AnyIO worker"))]
    return {"objects": objects, "pool_threads": len(pools)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)  # what the server's process is told
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    visits, before, after, freed = campaign(options.visitors, options.seconds, options.seed)
    print(json.dumps({"visits": visits.ends, "before": vars(before), "after": vars(after), "freed_seconds": freed}))
    for wrong in visits.wrong:
        print(wrong)
    sys.exit(bool(visits.wrong) or freed > _GONE_SECONDS)


if __name__ == "__main__":
    main()
