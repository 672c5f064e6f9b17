# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Many files by one command: in turns and by Ray, resumed, and one that fails beside others that do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.clips import make_clip
from helpers.tiny import make_tiny_pipeline

from ultraflash_diffusers.cli import main
from ultraflash_diffusers.commands.upscale_folder import plan
from ultraflash_diffusers.video_io import VideoReader

SIZE = (32, 16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny_pipeline(text=False, generator=False).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two clips, one of them in a sub-folder, one that cannot be read, and what is no video."""
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    make_clip(folder / "a.mp4", 5, size=SIZE)
    make_clip(folder / "more" / "b.avi", 7, size=SIZE, codec="mpeg4")
    (folder / "broken.mov").write_bytes(b"nothing of a video")
    (folder / "notes.txt").write_text("mine")
    return folder


def run(capsys, *words: object) -> tuple[int, dict]:
    code = main(["upscale", *map(str, words), "--device", "cpu", "--crf", "1", "--json"])
    printed = capsys.readouterr().out
    return code, json.loads(printed)


@pytest.mark.parametrize("ray", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_failed_file_does_not_stop_the_others(ray, folder, checkpoint, tmp_path, capsys):
    if ray:
        pytest.importorskip("ray")
    out = tmp_path / "out"
    words = [folder, out, "--checkpoint", checkpoint, *(["--ray"] if ray else [])]
    code, result = run(capsys, *words)
    assert code == 1
    assert {each["source"]: each["frames"] for each in result["files"]} == {
        str(folder / "a.mp4"): 5,
        str(folder / "more" / "b.avi"): 7,
    }
    assert list(result["failed"]) == [str(folder / "broken.mov")]
    assert "is no video file" in result["failed"][str(folder / "broken.mov")]
    assert len(list(VideoReader(out / "more" / "b.mp4"))) == 7
    assert main(["upscale", *map(str, words)]) == 2
    assert "2 of 3 outputs exist already" in capsys.readouterr().err
    # mended and gone on with: what is there stays as it is
    before = (out / "a.mp4").stat().st_mtime_ns
    shutil.copy(folder / "a.mp4", folder / "broken.mov")
    code, result = run(capsys, *words, "--resume")
    assert code == 0 and [each["source"] for each in result["files"]] == [str(folder / "broken.mov")]
    assert sorted(result["already_there"]) == [str(out / "a.mp4"), str(out / "more" / "b.mp4")]
    assert (out / "a.mp4").stat().st_mtime_ns == before


def test_the_summary_and_the_progress_of_all(folder, checkpoint, tmp_path, capsys):
    assert main(["upscale", str(folder), str(tmp_path / "out"), "--checkpoint", str(checkpoint)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "3 files: 2 made, 1 failed\n"
    assert "3/3" in printed.err and f"ultraflash: {folder / 'broken.mov'}:" in printed.err


def test_what_is_taken_and_where_it_goes(folder, tmp_path):
    inside = folder / "out"
    inside.mkdir()
    for name in ("out/a.mp4", ".hidden.mp4", "a.mp4.partial.mp4"):
        shutil.copy(folder / "a.mp4", folder / name)
    outputs = {str(task.output.relative_to(inside)) for task in plan(folder, inside)}
    assert outputs == {"a.mp4", "broken.mov", "more/b.mp4"}
    shutil.copy(folder / "a.mp4", folder / "a.avi")
    with pytest.raises(ValueError, match="a.avi' and .*a.mp4' would both become .*a.mp4"):
        plan(folder, inside)


def test_ray_is_for_folders(folder, checkpoint, tmp_path, capsys):
    words = ["upscale", str(folder / "a.mp4"), str(tmp_path / "out.mp4"), "--checkpoint", str(checkpoint), "--ray"]
    assert main(words) == 2
    assert "--ray is for a folder of videos" in capsys.readouterr().err
