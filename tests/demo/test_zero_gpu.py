# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Streams that are made in turns in forked processes, as ZeroGPU has it, here without a GPU."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from helpers.realtime import Client, decoded
from helpers.tiny import make_tiny_pipeline

zero_gpu = pytest.importorskip("ultraflash_diffusers.demo.zero_gpu")
demo_module = pytest.importorskip("ultraflash_diffusers.demo.page")

TEXT = {"prompt": "a red ball", "num_frames": 40, "output_type": "uint8", "first_chunk_frames": 1}


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(3)


class Forked:
    """Decorates a generator so that it runs in a forked process, as far ahead as it can: as `spaces.GPU` does."""

    def __init__(self) -> None:
        self.turns = 0

    def __call__(self, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        fork = multiprocessing.get_context("fork")

        def run(*arguments: Any) -> Iterator[Any]:
            self.turns += 1
            given, made = fork.SimpleQueue(), fork.SimpleQueue()
            stop = fork.Event()

            def work() -> None:
                for item in function(*given.get()):
                    made.put(("item", item))
                    if stop.is_set():
                        break
                made.put(("end", None))

            process = fork.Process(target=work, daemon=True)
            process.start()
            try:
                given.put(arguments)
                while (received := made.get())[0] == "item":
                    yield received[1]
            finally:
                stop.set()
                process.terminate()
                process.join()

        return run


@pytest.fixture(scope="module")
def pipe():
    return make_tiny_pipeline()


def chunks_of(stream: Any) -> list[np.ndarray]:
    return [chunk.frames[0] for chunk in stream]


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_stream_in_turns_has_the_frames_of_one_in_a_piece(pipe, seconds):
    gpu = Forked()
    made = chunks_of(zero_gpu.GpuTurns(pipe, gpu, seconds).stream(**TEXT, generator=seed()))
    whole = chunks_of(pipe.stream(**TEXT, generator=seed()))
    assert [len(each) for each in made] == [len(each) for each in whole]
    assert np.array_equal(np.concatenate(made), np.concatenate(whole))
    assert gpu.turns == (len(whole) + 1 if seconds == 0 else 1)  # one finds that there is no more


def test_a_new_prompt_shows_from_the_next_group_though_more_was_made_ahead(pipe):
    def play(stream: Any) -> np.ndarray:
        frames = [next(stream).frames[0], next(stream).frames[0]]
        stream.set_prompt("a blue cat")
        return np.concatenate([*frames, *chunks_of(stream)])

    gpu = Forked()
    in_turns = play(zero_gpu.GpuTurns(pipe, gpu).stream(**TEXT, generator=seed()))
    assert np.array_equal(in_turns, play(pipe.stream(**TEXT, generator=seed())))
    assert gpu.turns == 2


def test_the_state_goes_on_anywhere(pipe):
    with zero_gpu.GpuTurns(pipe, Forked()).stream(**TEXT, generator=seed()) as stream:
        first = [next(stream).frames[0], next(stream).frames[0]]
        state = stream.state()
    assert state.frames_done == sum(map(len, first)) and stream.size == (32, 48)
    rest = chunks_of(pipe.stream(**TEXT | {"prompt": None}, state=state))
    whole = chunks_of(pipe.stream(**TEXT, generator=seed()))
    assert np.array_equal(np.concatenate(first + rest), np.concatenate(whole))


def test_what_cannot_be_taken_to_another_process_is_named(pipe):
    with pytest.raises(ValueError, match="`source` is a ndarray: .* text or a video file"):
        zero_gpu.GpuTurns(pipe, Forked()).stream(source=np.zeros((5, 16, 24, 3), np.uint8))


def test_the_page_plays_in_turns_that_count_as_the_visitors(pipe, tmp_path, monkeypatch):
    """With a package `spaces` that notes whose request a turn is counted on."""
    (tmp_path / "spaces.py").write_text(
        "from gradio.context import LocalContext\n"
        "seen = []\n"
        "def GPU(duration):\n"
        "    def decorate(function):\n"
        "        def run(*arguments):\n"
        "            seen.append((duration, LocalContext.request.get().headers.get('x-ip-token')))\n"
        "            yield from function(*arguments)\n"
        "        return run\n"
        "    return decorate\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spaces", raising=False)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = demo_module.build_demo(pipe)
    demo_module.launch_demo(page, prevent_thread_lock=True, quiet=True)
    try:
        address = page.local_url.removeprefix("http://").rstrip("/")
        with Client(address, additional_headers={"X-IP-Token": "visitor"}) as client:
            client.start(prompt="a red ball", num_frames=20, seed=3)
            assert len(decoded(client.finish().video)) == 20
        with Client(address) as client:
            client.start(source="frames", width=24, height=16)
            assert client.read()["code"] == "unsupported_source"
        import spaces

        assert spaces.seen == [(zero_gpu.GPU_SECONDS, "visitor")]
    finally:
        page.end()
        sys.modules.pop("spaces", None)


def test_the_real_package_leaves_a_turn_alone_elsewhere(tmp_path):
    pytest.importorskip("spaces")
    code = (
        "from helpers.tiny import make_tiny_pipeline\n"
        "from ultraflash_diffusers.demo.zero_gpu import GpuTurns\n"
        "stream = GpuTurns(make_tiny_pipeline()).stream(prompt='a red ball', num_frames=20, generator=None)\n"
        "print(sum(chunk.num_frames for chunk in stream))\n"
    )
    path = f"{ROOT / 'src'}:{ROOT / 'tests'}:{Path(sys.modules['spaces'].__file__).parents[1]}"
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "20", done.stderr
