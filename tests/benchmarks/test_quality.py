# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The table of all kinds and methods, its measures by other programs, what is asked for, and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import make_tiny_pipeline

from benchmarks import aims, kinds, metrics, ours, quality, sheet, tables
from benchmarks.machine import machine_facts
from benchmarks.peers import LANCZOS, SPAN, Method, bicubic, sharpened_lanczos
from benchmarks.vmaf import ffmpeg_with_vmaf, vmaf
from ultraflash_diffusers.training.losses.perceptual import PerceptualLoss

MATERIAL = kinds.Material((), 192, 320, 3)


@pytest.fixture(scope="module")
def moving() -> kinds.Sample:
    return next(kinds.text_moving(MATERIAL))


@pytest.fixture(scope="module")
def held() -> kinds.Sample:
    return next(kinds.text_still(MATERIAL))


def test_one_run_one_table(moving: kinds.Sample) -> None:
    methods = [Method("bicubic", "resize", bicubic), Method("copy", "nothing", lambda frames: frames, "truth")]
    results, rows = quality.run(methods, [moving], quality.Judges(PerceptualLoss("quality_scorer")))
    summary = quality.summarise(results)
    assert summary["copy"]["psnr"] == np.inf and summary["copy"]["relative_sharpness"] == pytest.approx(1)
    assert summary["copy"]["relative_seams"] == pytest.approx(1)
    assert summary["bicubic"]["psnr"] == pytest.approx(metrics.psnr(bicubic(moving.low), moving.truth))
    text = quality.markdown({"natural": summary}, methods, machine_facts("benchmarks.quality", 1))
    table = text.splitlines()
    assert [line.split(" | ")[:2] for line in table[2:5]] == [
        ["| natural", name] for name in ("bicubic", "copy", "truth")
    ]
    assert f"{summary['bicubic']['psnr']:.2f}" in table[2] and table[4].count(" - ") == 5
    # what nothing was measured of is no column
    assert "ST-LPIPS" in table[0] and "VMAF" not in text and "flicker" not in table[0] and "grain ×" not in table[0]
    row = rows[0]
    assert list(row.tiles) == ["input", "bicubic", "copy", "truth"] and row.kind == "natural"
    assert np.array_equal(row.tiles["copy"].pixels, row.tiles["truth"].pixels)
    assert row.tiles["input"].pixels.shape == (sheet.CROP // 2, sheet.CROP // 2, 3)
    json.dumps({"bicubic": results["bicubic"], "truth": results["truth"]}, allow_nan=False)


def test_stills_are_judged_by_their_flicker(held: kinds.Sample) -> None:
    calls = []

    def restless(frames: np.ndarray) -> np.ndarray:
        calls.append(len(frames))
        return bicubic(frames) // 2 + np.arange(len(frames), dtype=np.uint8)[:, None, None, None] * 3

    methods = [Method("restless", "", restless), Method("calm", "", restless, by_frame=True)]
    results, _ = quality.run(methods, [held], quality.Judges())
    summary = quality.summarise(results)
    assert calls == [3, 1]  # equal frames need one call of what looks at a frame at a time
    assert (summary["restless"]["flicker"], summary["restless"]["flicker_share"]) == (3, 3)
    assert summary["calm"]["flicker"] == 0 and "warping_error" not in summary["calm"]
    json.dumps(results, allow_nan=False)


def test_grain_is_counted_relative_to_the_source(moving: kinds.Sample) -> None:
    noise = np.random.default_rng(0).normal(0, 8, (*moving.low.shape[:3], 1))
    grey = np.full_like(moving.low, 120)
    grainy = np.rint(grey + noise).astype(np.uint8)
    sample = kinds.Sample("grey", moving.truth, grainy, clean=grey)
    nearest = Method("nearest", "", lambda frames: frames.repeat(2, axis=1).repeat(2, axis=2))
    results, _ = quality.run([nearest, Method("bicubic", "", bicubic)], [sample], quality.Judges())
    assert results["nearest"]["grey"]["grain"] == pytest.approx(1)
    assert results["bicubic"]["grey"]["grain_resampled"] == pytest.approx(1)
    assert results["bicubic"]["grey"]["grain"] < 0.95


@pytest.mark.skipif(ffmpeg_with_vmaf() is None, reason="no ffmpeg with libvmaf")
def test_vmaf_falls_with_blur(moving: kinds.Sample) -> None:
    program = ffmpeg_with_vmaf()
    assert program is not None
    equal, blurred = (vmaf(frames, moving.truth, program) for frames in (moving.truth, bicubic(moving.low)))
    assert equal > 95 and 0 < blurred < 80
    with pytest.raises(RuntimeError, match="could not measure VMAF"):
        vmaf(moving.truth, np.zeros((3, 0, 0, 3), np.uint8), program)


def test_sharpened_lanczos_keeps_flat_colours_and_sharpens(moving: kinds.Sample) -> None:
    flat = np.full((1, 8, 8, 3), 77, np.uint8)
    assert (sharpened_lanczos(flat) == 77).all()
    plain, more = (sharpened_lanczos(moving.low, amount=amount) for amount in (0.0, 0.5))
    assert metrics.laplacian_variance(plain) < metrics.laplacian_variance(more)


def test_aims_are_read_off_the_table() -> None:
    row = {"psnr": 30.0, "vmaf": 70.0, "st_lpips": 0.1, "flicker": 2.0, "flicker_share": 1.0, "grain": 1.2, "fps": 9.0}
    worse = {**row, "psnr": 29.6, "vmaf": 71.0, "fps": 4.0}
    rows = {ours.CASCADE: row, "bicubic": worse, LANCZOS: worse, SPAN: worse}
    names = ("still", "text_moving", "grain", "anime", "natural")
    judged = {aim.text: aim for aim in aims.aims(dict.fromkeys(names, rows), resamples_exactly=True)}
    met = [aim.met for aim in judged.values()]
    assert met == [True, True, False, False, False, True, True, True]
    assert judged["anime: 0.5 dB above bicubic"].figure == "+0.40 dB"
    assert [aim.met for aim in aims.aims({}, resamples_exactly=False)] == [False]
    assert "**not met**" in quality.aims_table(judged.values())


def test_strength_zero_is_the_resampled_source() -> None:
    pipe = make_tiny_pipeline()
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        assert ours.resamples_exactly(pipe, frames)


def test_our_rows(moving: kinds.Sample) -> None:
    pipe = make_tiny_pipeline()
    assert [method.name for method in ours.ours(pipe)] == [ours.CASCADE]
    low, truth = moving.low[:, :16, :32], moving.truth[:, :32, :64]
    with torch.inference_mode():
        for method in ours.ours(pipe, stages=True):
            assert method.upscale(truth if method.source == "truth" else low).shape == truth.shape, method.name


def test_the_sheet_has_a_row_for_each_kind() -> None:
    tile = sheet.Tile(np.full((sheet.CROP, sheet.CROP, 3), 20, np.uint8), "30.00 dB")
    rows = [sheet.Row(kind, "clip", {"input": tile, "truth": tile}) for kind in ("natural", "dark")]
    drawn = np.asarray(sheet.draw(rows, "truth"))
    one = np.asarray(sheet.draw(rows[:1], "truth"))
    assert drawn.shape[1] == one.shape[1] and drawn.shape[0] > 1.5 * one.shape[0]
    # the dark row is shown brighter
    middle = one.shape[1] - 100
    assert drawn[200, middle].tolist() == [20, 20, 20] and drawn[-200, middle].tolist() == [255, 255, 255]


def test_columns_of_nothing_are_left_out() -> None:
    columns = {"a": ("first", "{a:.1f}"), "b": ("second", "{b:.1f}")}
    table = tables.grouped(("kind", "method"), {"k": {"m": {"a": 1.0}}}, columns, [], {})
    assert table.splitlines()[0] == "| kind | method | a |" and "second" not in table


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--frames", "1"], "at least 2"),
        (["--threads", "0"], "at least 1"),
        (["--seed", "-1"], "at least 0"),
        (["--json", "/nowhere/x.json"], "no folder"),
        (["--names", "y"], "no y"),
        (["--kinds", "rain"], "'rain'"),
    ],
)
def test_bad_options_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    (tmp_path / "slide.mp4").touch()
    with pytest.raises(SystemExit):
        quality.parse(["--clips", str(tmp_path), "--names", "slide", *extra])
    assert message in capsys.readouterr().err


def test_kinds_that_are_drawn_need_no_clips(capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.parse([]).kinds == ["anime", "text_moving", "text_still"]
    with pytest.raises(SystemExit):
        quality.parse(["--kinds", "dark", "anime"])
    assert "--clips FOLDER is needed" in capsys.readouterr().err
