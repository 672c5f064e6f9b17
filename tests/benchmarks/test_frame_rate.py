# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Frames a second, on a tiny checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers.tiny import make_tiny_pipeline

from benchmarks import frame_rate


def test_text_and_frames_of_each_checkpoint_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--frames", "13", "--rounds", "2", "--threads", str(torch.get_num_threads())]
    for name in ("one", "other"):
        make_tiny_pipeline(default_width=96, default_height=64).save_pretrained(tmp_path / name)
        words += ["--checkpoint", str(tmp_path / name)]
    frame_rate.main(words)
    printed = capsys.readouterr().out
    rows = re.findall(r"\| (one|other) \| from (text|frames) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", printed)
    assert [row[:2] for row in rows] == [(name, kind) for name in ("one", "other") for kind in ("text", "frames")]
    assert all(0 < float(lowest) <= float(median) <= float(highest) for *_, median, lowest, highest in rows)
    assert "- command: python -m benchmarks.frame_rate" in printed


@pytest.mark.parametrize(("count", "height", "width"), [(9, 193, 320), (9, 192, 338), (10**4, 192, 320)])
def test_a_file_with_too_little_is_refused(count: int, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=r"`file` '.*' has \d+ frames of 336x192, .* are needed"):
        frame_rate.middle_frames(frame_rate._FILE, count, height, width)


def test_the_middle_is_taken() -> None:
    whole = frame_rate.middle_frames(frame_rate._FILE, 2, 192, 336)
    assert (frame_rate.middle_frames(frame_rate._FILE, 2, 190, 320) == whole[:, 1:191, 8:328]).all()


def test_the_file_has_as_many_frames_as_are_taken_by_default() -> None:
    options = frame_rate.parse_arguments([])
    assert len(frame_rate.middle_frames(options.file, options.frames, 192, 320)) == options.frames
