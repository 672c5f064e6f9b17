# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Clips that are drawn for training: what they show, that a seed settles them, and the folders of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.training_runs import script

from ultraflash_diffusers.training.data.drawing import PAGE_LINES, Page, area_resize, with_grain
from ultraflash_diffusers.training.data.drawn_clips import ORDER, SCENES, save_lossless
from ultraflash_diffusers.training.data.drawn_pages import captioned, moving_text
from ultraflash_diffusers.training.data.sources import MediaFile, find_sources
from ultraflash_diffusers.video_io import VideoReader

SIZE = (3, 48, 80)


def pixels(path: Path) -> np.ndarray:
    return np.stack([frame.pixels for frame in VideoReader(path)])


@pytest.mark.parametrize("kind", SCENES)
def test_scenes_are_full_varied_and_settled_by_the_seed(kind: str) -> None:
    clips = [SCENES[kind](*SIZE, np.random.default_rng(seed)) for seed in range(8)]
    for clip in clips:
        assert clip.shape == (*SIZE, 3) and clip.dtype == np.uint8
        assert clip.std() > 4 and len(np.unique(clip[0].reshape(-1, 3), axis=0)) > 20
    assert len({clip.tobytes() for clip in clips}) == len(clips)
    assert np.array_equal(clips[3], SCENES[kind](*SIZE, np.random.default_rng(3)))
    moving = [not np.array_equal(clip[0], clip[-1]) for clip in clips]
    assert not any(moving) if kind == "still" else sum(moving) > len(moving) / 2


def test_text_moves_steadily() -> None:
    shifts = []
    for seed in range(9):
        clip = moving_text(3, 96, 160, np.random.default_rng(seed)).astype(int)
        first, second = (abs(clip[t + 1] - clip[t]).mean() for t in range(2))
        shifts.append(second / first)
        assert first > 0
    assert np.median(np.abs(np.log(shifts))) < 0.2


def test_captions_leave_most_of_the_clip_as_it_was() -> None:
    clip = np.full((2, 96, 160, 3), 90, np.uint8)
    changed = [(captioned(clip, np.random.default_rng(seed)) != clip).any(-1).mean() for seed in range(6)]
    assert 0.005 < np.median(changed) and max(changed) < 0.7


def test_a_page_measures_text_as_it_sets_it() -> None:
    page = Page(40, 200, PAGE_LINES, (255, 255, 255))
    width = page.text((10, 30), "nnnnnnn", 20, (0, 0, 0))
    assert width == page.measure("nnnnnnn", 20)
    inked = np.flatnonzero((page.pixels() < 128).any((0, 2))) / 4
    assert inked[0] == pytest.approx(10, abs=3) and inked[-1] == pytest.approx(10 + width, abs=3)


def test_grain_leaves_black_and_white_alone() -> None:
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, None, :, None], 3, axis=3).repeat(64, axis=1)
    noise = with_grain(ramp, np.random.default_rng(0)).astype(int) - ramp
    assert abs(noise[:, :, 0]).max() == 0 == abs(noise[:, :, -1]).max()
    assert noise[:, :, 24:40].std() == pytest.approx(8, rel=0.15)
    assert np.array_equal(noise[..., 0], noise[..., 2])
    stronger = with_grain(ramp, np.random.default_rng(0), 12.0).astype(int) - ramp
    assert stronger[:, :, 24:40].std() == pytest.approx(12, rel=0.15)


def test_the_script_draws_shares_of_each_kind_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    drawer = script("draw_clips")
    flags = ["--output", str(tmp_path), "--seed", "5", "--height", "48", "--width", "80", "--frames", "2"]
    drawer.main(drawer.parse_arguments([*flags, "--count", "6"]))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mkv")}
    again = next(iter(kept))
    again.unlink()
    drawer.main(drawer.parse_arguments([*flags, "--count", "20"]))
    assert again.is_file()
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if again.name != path.name)
    sources = find_sources(tmp_path)
    kinds = [source.path.name.split("_")[0] for source in sources]
    assert Counter(kinds) == Counter(ORDER) == {"text": 7, "still": 3, "drawn": 7, "world": 3}
    assert 3 < sum(source.low is not None for source in sources) < 20
    for source, kind in zip(sources, kinds, strict=True):
        assert kind != "still" or source.low is not None
        check_pair(source, (2, 48, 80, 3))


def test_the_script_adds_grain_to_clips(tmp_path: Path) -> None:
    clean = np.full((3, 54, 82, 3), (90, 140, 60), np.uint8)
    save_lossless(tmp_path / "clips" / "plain.mkv", clean)
    drawer = script("draw_clips")
    flags = ["--output", str(tmp_path / "grain"), "--grain", str(tmp_path / "clips"), "--frames", "2"]
    drawer.main(drawer.parse_arguments(flags))
    (source,) = find_sources(tmp_path / "grain")
    grainy = check_pair(source, (2, 52, 80, 3))
    assert 2 < (grainy - clean[0, 0, 0].astype(int)).std() < 13
    assert np.abs(grainy.mean((0, 1, 2)) - clean[0, 0, 0]).max() < 1


def test_kinds_can_be_chosen_and_clips_lie_in_folders(tmp_path: Path) -> None:
    drawer = script("draw_clips")
    flags = ["--height", "48", "--width", "80", "--frames", "2"]
    clips = tmp_path / "clips"
    drawer.main(
        drawer.parse_arguments(["--output", str(clips / "a"), "--count", "3", "--kinds", "world", "text", *flags])
    )
    kinds = sorted(path.name.split("_")[0] for path in (clips / "a").glob("*.mkv"))
    assert kinds == ["text", "text", "world"]
    save_lossless(clips / "b" / "one.mkv", np.zeros((2, 16, 24, 3), np.uint8))
    for low in (clips / "a" / "low").glob("*"):
        low.unlink()
    drawer.main(drawer.parse_arguments(["--output", str(tmp_path / "grain"), "--grain", str(clips)]))
    assert (tmp_path / "grain" / "b_one_grain.mkv").is_file() and len(find_sources(tmp_path / "grain")) == 4
    save_lossless(clips / "b_one.mkv", np.zeros((2, 16, 24, 3), np.uint8))
    with pytest.raises(ValueError, match=r"--grain .*one\.mkv and .*one\.mkv would get the same name"):
        drawer.main(drawer.parse_arguments(["--output", str(tmp_path / "grain"), "--grain", str(clips)]))


def check_pair(source: MediaFile, shape: tuple[int, ...]) -> np.ndarray:
    high = pixels(source.path)
    assert high.shape == shape
    if source.low is not None:
        halved = np.stack([area_resize(frame, shape[1] // 2, shape[2] // 2) for frame in high])
        assert np.array_equal(pixels(source.low), halved)
    return high


def test_files_hold_colours_as_they_are(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    save_lossless(tmp_path / "noise.mkv", frames)
    assert np.array_equal(pixels(tmp_path / "noise.mkv"), frames)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--height", "50"], "--height must be a multiple of 4, got 50"),
        (["--count", "0"], "--count must be at least 1, got 0"),
    ],
)
def test_wrong_flags_are_named(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script("draw_clips").parse_arguments(["--output", "clips", *flags])
    assert message in capsys.readouterr().err


def test_a_folder_without_videos_is_named(tmp_path: Path) -> None:
    draw_clips = script("draw_clips")
    arguments = draw_clips.parse_arguments(["--output", str(tmp_path / "made"), "--grain", str(tmp_path)])
    with pytest.raises(ValueError, match="--grain .* holds no video"):
        draw_clips.main(arguments)
    assert not (tmp_path / "made").exists()
