# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whole files from Python: one call writes a file, says what is kept where it breaks off, and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.clips import make_clip
from helpers.small_disk import small_disk
from helpers.tiny import make_tiny_pipeline

from ultraflash_diffusers import generate_file, upscale_file
from ultraflash_diffusers.pipelines.video_files import LazyPipeline
from ultraflash_diffusers.video_io import VideoReader

WIDTH, HEIGHT = SIZE = 32, 16
QUIET = {"progress": False, "save_every": 0.0, "crf": 1}


@pytest.fixture(scope="module")
def pipe():
    return make_tiny_pipeline()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 300, size=SIZE, audio="aac", seconds_of_audio=12.5)


def test_a_clip_is_upscaled_and_goes_on_after_a_full_disk(pipe, clip, tmp_path):
    whole, output = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    report = upscale_file(pipe, clip, whole, height=24, seed=3, **QUIET)
    assert (report.frames, report.frames_made, report.width, report.height) == (300, 300, 48, 24)
    assert (report.made_width, report.made_height) == (2 * WIDTH, 2 * HEIGHT)
    assert VideoReader(whole).info.has_audio
    with small_disk(whole.stat().st_size // 2), pytest.raises(OSError) as caught:
        upscale_file(pipe, clip, output, height=24, seed=3, **QUIET)
    (note,) = caught.value.__notes__
    assert f"frames are kept in {output}.partial.mp4, which plays" in note and "resume=True goes on from" in note
    with pytest.raises(ValueError, match="strength is 0.5, was 1.0"):
        upscale_file(pipe, clip, output, height=24, seed=3, strength=0.5, resume=True, **QUIET)
    with pytest.raises(ValueError, match="num_frames is 200, was None"):
        upscale_file(pipe, VideoReader(clip, num_frames=200), output, height=24, seed=3, resume=True, **QUIET)
    assert upscale_file(pipe, clip, output, height=24, seed=3, resume=True, **QUIET).frames_made < 300
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("seed", 2**64), ("seed", "x"), ("strength", 2), ("width", 0), ("height", 1.5), ("prompt", ["a"])]
    + [("num_inference_steps", 0), ("color_correction", "sepia"), ("save_every", None), ("scale", -1), ("crf", 99)],
)
def test_arguments_are_named_before_any_work(name, value, pipe, clip, tmp_path):
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        upscale_file(pipe, clip, tmp_path / "out.mp4", **{name: value})
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_one_line(pipe, clip, tmp_path):
    lazy = LazyPipeline(pipe.config, 2, lambda height, width: torch.empty(height * width * 10**12))
    with pytest.raises(MemoryError, match="64x32 frames need more memory than there is") as caught:
        upscale_file(lazy, clip, tmp_path / "out.mp4", **QUIET)
    assert caught.value.__notes__ == ["nothing was finished that could be kept"]


def test_a_text_becomes_a_file(pipe, tmp_path):
    output = tmp_path / "out.mp4"
    assert generate_file(pipe, "a red ball", output, num_frames=7, fps=8, **QUIET).frames == 7
    info = VideoReader(output).info
    assert (info.width, info.height, info.fps) == (pipe.config.default_width, pipe.config.default_height, 8)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        generate_file(pipe, "a red ball", output, **QUIET)


def test_one_progress_bar_is_shown_or_none(clip, tmp_path, capsys):
    pipe = make_tiny_pipeline()
    pipe.set_progress_bar_config(desc="the pipeline's")
    reader = VideoReader(clip, num_frames=9)
    for progress in (True, False):
        upscale_file(pipe, reader, tmp_path / "out.mp4", overwrite=True, progress=progress)
        generate_file(pipe, "a red ball", tmp_path / "text.mp4", num_frames=7, overwrite=True, progress=progress)
        shown = capsys.readouterr().err
        assert [line in shown for line in ("out.mp4: 100%", "text.mp4: 100%")] == [progress, progress]
        assert "the pipeline's" not in shown
    list(pipe.stream("a red ball", num_frames=5))
    assert "the pipeline's: 100%" in capsys.readouterr().err
