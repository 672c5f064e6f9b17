# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What serving a stream costs beside making it: frames a second of `pipe.stream(...)` and of a session, in turns.

    python -m benchmarks.serving_overhead --rounds 3

The server is a process of its own, as is the client, which throws away what comes. Times count from the end of the
warm-up chunks on, in both alike; encoding H.264 is part of what serving costs.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from websockets.sync.client import ClientConnection, connect

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint

_PROMPT = "a red ball moves left over grass"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder or Hub name; the packaged one by default")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--chunks", type=int, default=8, help="to measure in each (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=4, help="chunks before them (default: %(default)s)")
    return parser.parse_args(arguments)


def direct(pipe: UltraFlashStreamingPipeline, warmup: int, chunks: int) -> float:
    """Frames a second of the pipeline alone."""
    frames, begin = 0, 0.0
    generator = torch.Generator().manual_seed(0)
    with pipe.stream(_PROMPT, num_frames=None, generator=generator, output_type="uint8") as stream:
        for number, chunk in enumerate(stream, 1):
            if number > warmup:
                frames += chunk.num_frames
            if number == warmup:
                begin = time.perf_counter()
            if number == warmup + chunks:
                break
        return frames / (time.perf_counter() - begin)


def served(url: str, warmup: int, chunks: int) -> float:
    """Frames a second of a session."""
    frames, begin = 0, 0.0
    with connect(url, max_size=None) as socket:
        start = {"type": "session.start", "prompt": _PROMPT, "num_frames": None, "seed": 0}
        socket.send(json.dumps(start))
        for number in range(1, warmup + chunks + 1):
            arrived = _next_chunk(socket)
            if number > warmup:
                frames += arrived
            if number == warmup:
                begin = time.perf_counter()
        return frames / (time.perf_counter() - begin)


def _next_chunk(socket: ClientConnection) -> int:
    """Takes all up to the bytes of the next chunk; returns its frames."""
    frames = 0
    while isinstance(message := socket.recv(), str):
        told = json.loads(message)
        if told["type"] == "error":
            raise SystemExit(told["message"])
        frames = told.get("num_frames", 0)
    return frames


@contextmanager
def server(checkpoint: str | None) -> Iterator[str]:
    """Runs `ultraflash serve`; gives the address of its sessions."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "ultraflash_diffusers.cli", "serve", "--port", "0", "--json", "--jobs", folder]
        words += [] if checkpoint is None else ["--checkpoint", checkpoint]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r"http://([^\"]+)", process.stdout.readline())
            assert found is not None, "the server did not start"
            yield f"ws://{found.group(1)}/v1/realtime/video"
        finally:
            process.terminate()
            process.wait(30)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    pipe = UltraFlashStreamingPipeline.from_pretrained(options.checkpoint or default_checkpoint(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    alone, through = [], []
    with server(options.checkpoint) as url:
        for _ in range(options.rounds):
            alone.append(direct(pipe, options.warmup, options.chunks))
            through.append(served(url, options.warmup, options.chunks))
            print(f"{alone[-1]:.2f} frames/s alone, {through[-1]:.2f} served", flush=True)
    share = 1 - statistics.median(through) / statistics.median(alone)
    print(f"serving costs {100 * share:.1f} % of the frames a second (medians)")


if __name__ == "__main__":
    main()
