# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Named sets of clips: what they show, that a seed settles them, and that each degradation does what its name says."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from benchmarks import drawn_cels, drawn_text, kinds, metrics
from benchmarks.clips import shrunk
from benchmarks.kinds import KINDS, Material, Sample
from benchmarks.peers import bicubic

HEIGHT, WIDTH, FRAMES = 48, 80, 3
DRAWN = [name for name, kind in KINDS.items() if not kind.needs_clips]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth texture that slides, four times as large as the truth."""
    path = tmp_path_factory.mktemp("kinds") / "slide.mp4"
    coarse = np.random.default_rng(0).integers(0, 256, (12, 30, 3), dtype=np.uint8)
    texture = cv2.resize(coarse, (480, 192), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 4 * HEIGHT, 4 * WIDTH, "yuv420p"
        for t in range(5):
            window = np.ascontiguousarray(texture[:, 8 * t : 8 * t + 4 * WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode())
    return path


def make(kind: str, *files: Path, seed: int = 0) -> list[Sample]:
    return list(KINDS[kind].make(Material(files, HEIGHT, WIDTH, FRAMES, seed)))


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "720p"])
def test_every_kind_gives_the_truth_and_an_input_half_as_large(kind: str, file: Path) -> None:
    samples, again = make(kind, file), make(kind, file)
    assert samples and len({sample.name for sample in samples}) == len(samples)
    for sample, other in zip(samples, again, strict=True):
        assert sample.truth.shape == (FRAMES, HEIGHT, WIDTH, 3) and sample.low.shape == (FRAMES, 24, 40, 3)
        assert sample.truth.dtype == sample.low.dtype == np.uint8
        assert np.array_equal(sample.truth, other.truth) and np.array_equal(sample.low, other.low)
        assert sample.still == (kind in ("text_still", "still", "still_compressed", "sharp"))
        assert np.array_equal(sample.truth[0], sample.truth[-1]) == sample.still
        assert metrics.psnr(bicubic(sample.low), sample.truth) > 12


@pytest.mark.parametrize("kind", DRAWN)
def test_drawn_sets_need_no_clips_and_follow_the_seed(kind: str) -> None:
    for one, other in zip(make(kind), make(kind, seed=1), strict=True):
        assert not np.array_equal(one.truth, other.truth)


def test_files_need_enough_frames(file: Path) -> None:
    with pytest.raises(ValueError, match="`frames` is 9.* only 5"):
        list(kinds.natural(Material((file,), HEIGHT, WIDTH, 9)))
    assert len(next(kinds.natural(Material((file,), HEIGHT, WIDTH))).truth) == 5


def test_degradations(file: Path) -> None:
    (natural,), (heavy,), (dark,) = make("natural", file), make("heavy", file), make("dark", file)
    plain = shrunk(natural.truth)
    assert metrics.psnr(heavy.low, plain) < metrics.psnr(natural.low, plain) - 2
    # three stops at a gamma of 2.2
    assert dark.truth.mean() / natural.truth.mean() == pytest.approx(2 ** (-3 / 2.2), rel=0.03)
    (grainy,), (still,), (compressed,) = make("grain", file), make("still", file), make("still_compressed", file)
    assert np.array_equal(grainy.clean, plain)
    assert 1 < metrics.grain_deviation(grainy.low, grainy.clean) < metrics.grain_deviation(grainy.truth, natural.truth)
    assert np.array_equal(still.truth[0], natural.truth[1]) and np.array_equal(still.low[0], plain[1])
    assert not np.array_equal(compressed.low[0], still.low[0])
    (sharp,) = make("sharp", file)
    assert metrics.laplacian_variance(sharp.low) > metrics.laplacian_variance(shrunk(sharp.truth))


def test_720p_needs_a_clip_of_twice_the_lines(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make("720p", file) == []
    monkeypatch.setattr(kinds, "HD_LINES", 96)
    (sample,) = make("720p", file)
    assert sample.truth.shape == (FRAMES, 192, 320, 3) and sample.low.shape == (FRAMES, 96, 160, 3)


def test_rolling_text_moves_by_what_it_says() -> None:
    frames = drawn_text.credits(5, 96, 160, np.random.default_rng(0)).astype(int)
    # 1.25 of 384 lines a frame are 5 of 384 after four: of 96 lines, 1.25, of which a quarter is seen as a blend
    moved = 0.75 * frames[0, 1:-1] + 0.25 * frames[0, 2:]
    assert abs(frames[4, :-2] - moved).mean() < 0.25 * abs(frames[4, :-2] - frames[0, :-2]).mean()


def test_drawn_scenes_stay_put_but_for_what_moves() -> None:
    for scene in drawn_cels.SCENES:
        clip = drawn_cels.animate(scene, 3, 96, 160, 5).astype(int)
        changed = (abs(clip[2] - clip[0]).max(-1) > 8).mean()
        assert 0.002 < changed < 0.3, scene
    with pytest.raises(ValueError, match="'rain'"):
        drawn_cels.animate("rain", 1, 48, 80, 0)
