# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is measured of the server and of its page, on a tiny checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.browser import CHROMIUM
from helpers.paths import ROOT
from helpers.tiny import make_tiny_pipeline

from benchmarks import serving_overhead


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny_pipeline(default_width=96, default_height=64).save_pretrained(folder)
    return folder


def test_what_serving_costs_is_told(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))  # of the server, a process of its own
    serving_overhead.main(["--checkpoint", str(checkpoint), "--rounds", "1", "--chunks", "2", "--warmup", "2"])
    printed = capsys.readouterr().out
    alone, through = map(float, re.search(r"([\d.]+) frames/s alone, ([\d.]+) served", printed).groups())
    share = float(re.search(r"serving costs (-?[\d.]+) %", printed).group(1))
    assert alone > 0 and through > 0 and share == pytest.approx(100 * (1 - through / alone), abs=1)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_first_frame_on_the_page_is_timed(checkpoint, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio")
    from benchmarks import first_frame

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    first_frame.main(["--checkpoint", str(checkpoint), "--visits", "2", "--seconds", "0.5"])
    printed = capsys.readouterr().out
    visits = [float(seconds) for seconds in re.findall(r"first frame after ([\d.]+) s", printed)]
    assert len(visits) == 2 and all(0 < seconds < 20 for seconds in visits)
    assert f"median {sum(visits) / 2:.2f}"[:-1] in printed
