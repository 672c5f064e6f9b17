# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Files with flipped, missing and added bytes: read as far as they go, or named as unreadable; never anything else.

`ULTRAFLASH_FUZZ_SECONDS=3600 pytest -s tests/fuzz/test_damaged_files.py` goes on for an hour
and counts; a seed of its own tells a failure's input.
"""

from __future__ import annotations

import json
import os
import random
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from helpers.clips import HEIGHT, WIDTH, make_clip, picture
from helpers.media import make_media
from PIL import Image

from ultraflash_diffusers.video_io import VideoReader, VideoWriter

SECONDS = float(os.environ.get("ULTRAFLASH_FUZZ_SECONDS", "8"))
LEAST = 20  # files, however slow the machine is
SLOWEST = 10  # seconds for one small file
FRAMES = np.stack([picture(index) for index in range(10)])


def seeds(seconds: float) -> Iterator[int]:
    """1, 2 and so on, for so long."""
    end = time.monotonic() + seconds
    for seed in count(1):
        if seed > LEAST and time.monotonic() > end:
            return
        yield seed


def damaged(content: bytes, dice: random.Random) -> bytes:
    """Content with a few of the things that happen to files."""
    data = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        place, length = dice.randrange(len(data)), dice.choice((1, 1, 4, 64, 1024))
        kind = dice.choice(("flip", "zero", "noise", "cut", "drop", "repeat", "largest"))
        if kind == "flip":
            data[place] ^= 1 << dice.randrange(8)
        elif kind == "cut":
            del data[max(place, 16) :]
        elif kind == "drop":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length]
        else:
            piece = {"zero": bytes(length), "noise": dice.randbytes(length), "largest": b"\xff" * min(length, 4)}[kind]
            data[place : place + len(piece)] = piece
        if not data:
            return content[:1]
    return bytes(data)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("originals")
    first, *others = (Image.fromarray(picture(index)) for index in range(4))
    for name in ("a.webp", "a.gif"):
        first.save(folder / name, save_all=True, append_images=others)
    first.save(folder / "a.png")
    return [
        make_clip(folder / "a.mp4", 12, audio="aac"),
        make_media(folder / "a.mkv", "flac", frames=12, codec="libx264"),
        make_media(folder / "a.avi", "pcm_s16le", frames=12),
        make_media(folder / "a.ts", "mp2", frames=12, codec="mpeg2video"),
        make_clip(folder / "a.mov", 4, codec="png", pixel_format="rgb24"),
        *(folder / name for name in ("a.webp", "a.gif", "a.png")),
    ]


def test_damaged_clips(originals: list[Path], tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for seed in seeds(SECONDS):
        dice = random.Random(seed)
        original = dice.choice(originals)
        path = tmp_path / f"seed_{seed}{original.suffix}"
        path.write_bytes(damaged(original.read_bytes(), dice))
        start = time.monotonic()
        try:
            with warnings.catch_warnings(action="ignore"):
                frames = list(VideoReader(path))
            outcomes["read" if frames else "empty"] += 1
        except (ValueError, OSError) as error:
            assert str(error), f"seed {seed}"
            outcomes["named"] += 1
        assert time.monotonic() - start < SLOWEST, f"seed {seed}"
        path.unlink()
    print(f"{outcomes.total()} damaged clips: {dict(outcomes)}")
    assert outcomes["read"] and outcomes["named"], outcomes


def test_damaged_leftovers_of_a_run(tmp_path: Path) -> None:
    """Whatever has happened to the files of an interrupted run, resuming finishes them right or names them."""
    outcomes: Counter[str] = Counter()
    with VideoWriter(tmp_path / "whole.mp4", WIDTH, HEIGHT, fps=24, preset="ultrafast") as writer:
        writer.write(FRAMES)
    writer = VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, fps=24, preset="ultrafast")
    writer.write(FRAMES[:6])
    writer.checkpoint(lambda path: path.write_text("six"))
    writer.abort()
    left = {path.name: path.read_bytes() for path in tmp_path.glob("out.mp4.partial.*")}
    for seed in seeds(SECONDS / 2):
        dice = random.Random(seed)
        victim = dice.choice(sorted(left))
        for name, content in left.items():
            (tmp_path / name).write_bytes(damaged(content, dice) if name == victim else content)
        try:
            with VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, fps=24, preset="ultrafast", resume=True) as again:
                again.write(FRAMES[again.frames_done :])
            same = (tmp_path / "out.mp4").read_bytes()
            frames = len(list(VideoReader(tmp_path / "out.mp4")))
            outcomes["finished" if frames == len(FRAMES) and same else "wrong"] += 1
        except (ValueError, OSError) as error:
            assert "overwrite=True" in str(error) or victim in str(error), f"seed {seed}: {error}"
            outcomes["named"] += 1
        for path in tmp_path.glob("out.mp4*"):
            path.unlink()
    print(f"{outcomes.total()} damaged leftovers: {dict(outcomes)}")
    assert outcomes["named"] and not outcomes["wrong"], json.dumps(outcomes)
