# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What killed runs and broken disks leave in a cache."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.training_runs import texture, write_video

from ultraflash_diffusers.degradation import Downscale
from ultraflash_diffusers.training.data.preparation import Preparation, prepare_clips
from ultraflash_diffusers.training.data.sources import find_sources
from ultraflash_diffusers.training.files import delete_dead_files, written_whole


def test_what_a_killed_process_was_writing_goes_and_what_lives_stays(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with written_whole(tmp_path / "clips" / "0000.npy") as temporary:
            temporary.write_text("half")
            os._exit(0)  # without a word, as a kill would
    os.waitpid(child, 0)
    (dead,) = (tmp_path / "clips").iterdir()
    (tmp_path / "clips" / "notes.tmp").write_text("not ours")
    with written_whole(tmp_path / "clips" / "0001.npy") as living:
        living.write_text("all")
        assert delete_dead_files(tmp_path) == [dead] and living.exists()
    assert {path.name for path in (tmp_path / "clips").iterdir()} == {"0001.npy", "notes.tmp"}
    assert delete_dead_files(tmp_path / "nothing") == []


@pytest.mark.parametrize("damage", ["short", "foreign", "empty index"])
def test_a_damaged_file_is_named_and_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "clips").mkdir()
    for seed in (1, 2):
        write_video(tmp_path / "clips" / f"{seed}.mp4", texture(seed))
    how = Preparation(scale=2, degradation=Downscale(2), versions=1)

    def prepared() -> list[Path]:
        clips = prepare_clips(find_sources(tmp_path / "clips"), tmp_path / "cache", how)
        return [file for clip in clips for file in (clip.high, *clip.lows)]

    before = {file: file.read_bytes() for file in prepared()}
    broken = next(file for file in before if "low" in file.name)
    untouched = {file: os.stat(file).st_mtime_ns for file in before if file != broken}
    if damage == "empty index":
        broken = broken.parent / "index.json"
    broken.write_bytes(before[broken][:-100] if damage == "short" else b"x" if damage == "foreign" else b"")
    assert prepared() == list(before)
    assert {file: file.read_bytes() for file in before} == before
    assert {file: os.stat(file).st_mtime_ns for file in untouched} == untouched
    assert str(broken) in caplog.text and "made anew" in caplog.text
    assert np.load(next(iter(before))).shape == (9, 48, 64, 3)
