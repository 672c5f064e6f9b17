# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Degradations: seeded, effective, exact where they can be, and clear about bad input."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import ROOT
from PIL import Image

from ultraflash_diffusers.degradation import (
    H264,
    PRESETS,
    Compose,
    CutMix,
    Downscale,
    FrameDrop,
    GaussianBlur,
    GaussianNoise,
    GridWarp,
    Jpeg,
    MotionBlur,
    OneOf,
    Rescale,
    Sometimes,
    TemporalMorph,
    Transform,
    UnsharpMask,
    degradation_preset,
    from_config,
    low_resolution,
    smooth_trajectory,
    to_config,
)
from ultraflash_diffusers.degradation.temporal import line_kernel

EXAMPLES = ROOT / "examples"
TRANSFORMS: list[Transform] = [
    TemporalMorph(),
    FrameDrop(),
    MotionBlur(),
    GridWarp(),
    UnsharpMask(),
    Downscale((2, 4)),
    Downscale(2, "bicubic"),
    Rescale(inside=Compose(GaussianNoise(), Jpeg())),
    GaussianBlur(),
    GaussianBlur((0.2, 3.0), kernel_size=(15, 37)),
    GaussianNoise(),
    H264(),
    Jpeg(),
    low_resolution(3),
    degradation_preset("aigc"),
    degradation_preset("classic", 3),
    OneOf(Jpeg(), GaussianBlur()),
    Sometimes(Jpeg(), 0.5),
    CutMix(Jpeg(), GaussianBlur()),
]


def moving_texture(frames: int = 6, height: int = 48, width: int = 72) -> np.ndarray:
    """A soft texture that slides to the right, two pixels a frame."""
    rows, columns = np.mgrid[:height, : width + 2 * frames]
    waves = np.sin(rows / 2.3) * np.cos(columns / 3.1) + 0.5 * np.sin((rows + 2 * columns) / 1.7)
    grey = 128 + 60 * waves
    clip = np.stack([grey[:, 2 * t : 2 * t + width] for t in range(frames)])
    return np.stack([clip, 255 - clip, clip * 0.5 + 40], axis=-1).clip(0, 255).astype(np.uint8)


def error(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.square(one.astype(float) - other).mean())


def high_frequencies(clip: np.ndarray) -> float:
    return float(np.square(np.diff(clip.astype(float), axis=2)).mean())


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: type(transform).__name__)
def test_equal_seeds_give_equal_clips_and_the_input_stays(transform: Transform) -> None:
    clip = moving_texture()
    before = clip.copy()
    one, two = (transform(clip, np.random.default_rng(7)) for _ in range(2))
    assert one.dtype == np.uint8 and len(one) == len(clip)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(clip, before)


def seeded(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: type(transform).__name__)
def test_other_seeds_give_other_clips(transform: Transform) -> None:
    clip = moving_texture()
    results = [transform(clip, seeded(seed)) for seed in range(6)]
    if transform == Downscale(2, "bicubic"):  # the one that draws nothing
        assert all(np.array_equal(results[0], other) for other in results[1:])
    else:
        assert any(not np.array_equal(results[0], other) for other in results[1:])


def test_h264_gives_the_same_every_time() -> None:
    # x264's macroblock tree made about one result in 25 another one at this size
    clip = moving_texture(6, 96, 160)
    assert len({H264(27)(clip, seeded(0)).tobytes() for _ in range(100)}) == 1


def test_area_downscale_is_the_mean_of_the_pixels() -> None:
    clip = moving_texture()
    small = Downscale(3)(clip, np.random.default_rng(0))
    means = clip.reshape(6, 16, 3, 24, 3, 3).mean((2, 4))
    assert np.abs(small - means).max() <= 1.01  # rows and columns are each rounded


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_downscale_reaches_every_scale(scale: int) -> None:
    small = Downscale(scale, "bicubic")(moving_texture(), np.random.default_rng(0))
    assert small.shape == (6, 48 // scale, 72 // scale, 3)


def test_h264_hurts_more_at_a_higher_rate_factor() -> None:
    clip = moving_texture()
    errors = [error(H264(crf)(clip, np.random.default_rng(0)), clip) for crf in (8, 20, 40)]
    assert errors[0] < errors[1] < errors[2]
    # frames come back in their order: each one is nearest to its own original
    decoded = H264(8)(clip, np.random.default_rng(0))
    assert [min(range(6), key=lambda t: error(frame, clip[t])) for frame in decoded] == list(range(6))


@pytest.mark.parametrize("shape", [(3, 15, 21), (1, 16, 16), (2, 2, 3), (1, 1, 1), (3, 1, 5)], ids=str)
def test_odd_and_tiny_clips_keep_their_size(shape: tuple[int, int, int]) -> None:
    clip = moving_texture(*shape)
    for transform in TRANSFORMS:
        if not isinstance(transform, (Downscale, Compose)):
            assert transform(clip, seeded(0)).shape == clip.shape


def test_jpeg_blur_and_noise_are_effective() -> None:
    clip, rng = moving_texture(), np.random.default_rng(0)
    assert error(Jpeg(20)(clip, rng), clip) > 2 * error(Jpeg(90)(clip, rng), clip)
    assert high_frequencies(GaussianBlur(2.0)(clip, rng)) < 0.5 * high_frequencies(GaussianBlur(0.3)(clip, rng))
    grey = np.full((4, 64, 64, 3), 128, np.uint8)
    assert np.std(GaussianNoise(6.0)(grey, rng).astype(float)) == pytest.approx(6.0, rel=0.05)


@pytest.mark.parametrize("std", [3.0, 60.0])
def test_noise_is_white_normal_and_other_on_every_frame(std: float) -> None:
    grey = np.full((6, 96, 96, 3), 128, np.uint8)
    noise = GaussianNoise(std)(grey, seeded(0)).astype(float) - 128
    middle = np.abs(noise) < 120
    assert (noise < std).mean() == pytest.approx(0.8413 if std > 10 else 0.8, abs=0.01)  # whole levels: below 3
    assert noise[middle].mean() == pytest.approx(0, abs=0.03 * std)
    flat = noise.reshape(6, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(6)).max() < 0.03
    neighbours = (noise[:, :, 1:] * noise[:, :, :-1]).mean() / noise.var()
    assert abs(neighbours) < 0.02


def test_codec_and_filter_are_those_of_other_software() -> None:
    clip = moving_texture()
    for quality in (70, 95):
        stream = io.BytesIO()
        Image.fromarray(clip[0]).save(stream, format="JPEG", quality=quality)
        assert np.array_equal(Jpeg(quality)(clip, seeded(0))[0], np.asarray(Image.open(stream)))
    for scale in (2, 3, 4):
        size = (72 // scale, 48 // scale)
        small = np.asarray(Image.fromarray(clip[0]).resize(size, Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(Downscale(scale, "bicubic")(clip, seeded(0))[0] - small).max() <= 1


def test_frames_that_go_through_a_row_of_transforms_are_those_of_one_after_the_other() -> None:
    """Bit for bit, with the same choices; also where something in the middle needs the whole clip."""
    parts = (
        UnsharpMask(),
        Rescale((0.5, 1.5), inside=Compose(GaussianNoise(), Jpeg())),
        Sometimes(MotionBlur(), 0.5),
        TemporalMorph(),
        Sometimes(GridWarp(), 0.5),
        GaussianBlur(),
    )
    for seed in range(6):
        clip, rng = moving_texture(), seeded(seed)
        expected = clip
        for part in parts:
            expected = part(expected, rng)
        np.testing.assert_array_equal(Compose(*parts)(clip, seeded(seed)), expected)
    spatial = Compose(*parts[:3])
    assert spatial.per_frame and not Compose(*parts).per_frame and not Rescale(inside=H264()).per_frame


def test_choices_are_made_as_often_as_asked() -> None:
    grey, rng = np.full((1, 4, 4, 3), 128, np.uint8), np.random.default_rng(0)

    def black(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.zeros_like(frames)

    def white(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.full_like(frames, 255)

    assert sum(not Sometimes(black, 0.3)(grey, rng).any() for _ in range(1000)) == pytest.approx(300, abs=50)
    assert sum(not OneOf(black, white)(grey, rng).any() for _ in range(1000)) == pytest.approx(500, abs=60)
    assert Compose(black, white)(grey, rng).min() == 255


# ---- over time


def test_trajectories_stay_in_their_range_and_move_slowly() -> None:
    curves = smooth_trajectory(seeded(0), 200, 2, 10, count=500, period=24)
    assert curves.shape == (500, 200) and curves.min() >= 2 and curves.max() <= 10
    assert curves.min() < 2.1 and curves.max() > 9.9  # and use all of it
    assert np.abs(np.diff(curves)).max() <= 8 * np.pi / 24
    assert np.ptp(curves, axis=1).min() > 1  # none stands still for so long
    assert smooth_trajectory(seeded(0), 5).shape == (5,)


def test_morphing_blends_with_one_neighbour_by_a_smooth_weight() -> None:
    levels = np.array([0, 200, 10, 180, 30, 250, 0, 220])
    clip = np.broadcast_to(levels[:, None, None, None], (8, 4, 4, 3)).astype(np.uint8)
    steps = set()
    for seed in range(12):
        result = TemporalMorph()(clip, seeded(seed))[:, 0, 0, 0].astype(float)
        step = 1 if result[-1] == levels[-1] else -1  # the frame that has no neighbour stays
        steps.add(step)
        own, other = (levels[:-1], levels[1:]) if step == 1 else (levels[1:], levels[:-1])
        blended = result[:-1] if step == 1 else result[1:]
        alphas = (blended - other) / (own - other)
        assert alphas.min() >= 0.19 and alphas.max() <= 0.91
        assert np.abs(np.diff(alphas)).max() < 0.7 * np.pi / 24 + 0.02
    assert steps == {1, -1}
    np.testing.assert_array_equal(TemporalMorph(1.0)(clip, seeded(0)), clip)


def test_lost_frames_are_interpolated_between_those_that_are_left() -> None:
    clip = moving_texture(10, 16, 24)
    result = FrameDrop(probability=1.0, longest=3)(clip, seeded(0))
    kept = [0, 4, 8, 9]
    np.testing.assert_array_equal(result[kept], clip[kept])
    for t, expected in ((1, 0.75 * clip[0] + 0.25 * clip[4]), (6, 0.5 * clip[4] + 0.5 * clip[8])):
        assert np.abs(result[t] - expected).max() <= 0.51
    np.testing.assert_array_equal(FrameDrop(probability=0.0)(clip, seeded(0)), clip)
    for few in (clip[:1], clip[:2]):
        np.testing.assert_array_equal(FrameDrop(probability=1.0)(few, seeded(0)), few)
    # lost as often as asked
    lost = [(FrameDrop(0.3)(clip, seeded(seed)) != clip).any((1, 2, 3))[1:-1].mean() for seed in range(100)]
    assert np.mean(lost) == pytest.approx(0.3, abs=0.05)


def test_motion_blur_is_along_its_line() -> None:
    for degrees, stretched in ((0, 1), (90, 0)):
        kernel = line_kernel(9, degrees)
        assert kernel.sum() == pytest.approx(1)
        extent = [np.flatnonzero(kernel.sum(1 - axis) > 1e-4).size for axis in (0, 1)]
        assert extent[stretched] in (9, 10, 11) and extent[1 - stretched] in (1, 2)
    rising, falling = line_kernel(9, -45), line_kernel(9, 45)
    np.testing.assert_allclose(rising, falling[::-1], atol=1e-6)
    assert falling[1:4, 1:4].sum() > 0.2 > 1e-3 > falling[1:4, -4:-1].sum()
    clip = moving_texture()
    np.testing.assert_array_equal(MotionBlur(length=1)(clip, seeded(0)), clip)
    assert high_frequencies(MotionBlur(length=9)(clip, seeded(0))) < 0.7 * high_frequencies(clip)


@pytest.mark.parametrize("seed", range(4))
def test_warps_move_pixels_no_farther_than_asked_and_only_within_the_ellipse(seed: int) -> None:
    # two grey levels a pixel: a pixel's value tells where it came from
    rows, columns = np.mgrid[:96, :120]
    clip = np.broadcast_to(np.stack([2 * rows, 2 * columns, 0 * rows], -1), (12, 96, 120, 3)).astype(np.uint8)
    result = GridWarp(displacement=10.0, radius=0.4)(clip, seeded(seed))
    moved = (result[..., :2].astype(float) - clip[..., :2]) / 2
    distance = np.hypot(moved[..., 0], moved[..., 1])
    assert 2 < distance.max() < 10.9
    assert np.mean(distance[0] == 0) > 0.3  # outside of the ellipse
    assert np.abs(np.diff(moved, axis=0)).max() < 5  # smooth in time
    middle = moved[:, :-1, :-1]
    assert np.abs(middle - moved[:, 1:, :-1]).max() < 2.6 and np.abs(middle - moved[:, :-1, 1:]).max() < 2.6
    np.testing.assert_array_equal(GridWarp(displacement=0)(clip, seeded(seed)), clip)


# ---- frame by frame, and mixed


def test_unsharp_masks_overshoot_at_edges_and_leave_flat_parts() -> None:
    clip = np.full((2, 20, 40, 3), 100, np.uint8)
    clip[:, :, 20:] = 150
    result = UnsharpMask(amount=0.8, sigma=1.5)(clip, seeded(0))
    assert result.min() < 95 and result.max() > 155
    np.testing.assert_array_equal(result[:, :, :5], clip[:, :, :5])
    np.testing.assert_array_equal(UnsharpMask(amount=0)(clip, seeded(0)), clip)


def test_rescaling_works_inside_at_another_size_and_comes_back() -> None:
    clip, sizes = moving_texture(), []

    def note(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        sizes.append(frames.shape)
        return frames

    for scale in (0.25, 1.5, 0.01):
        assert Rescale(scale, inside=note)(clip, seeded(0)).shape == clip.shape
    assert sizes == [(6, 12, 18, 3), (6, 72, 108, 3), (6, 1, 1, 3)]
    np.testing.assert_array_equal(Rescale(1.0)(clip, seeded(0)), clip)
    assert high_frequencies(Rescale(0.25)(clip, seeded(0))) < 0.2 * high_frequencies(clip)
    with pytest.raises(ValueError, match="`inside`.*24x36"):
        Rescale(0.5, inside=Downscale(2))(clip, seeded(0))


def test_cutmix_puts_a_box_of_one_branch_into_the_other() -> None:
    def black(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.zeros_like(frames)

    clip, inside = np.full((10, 20, 30, 3), 255, np.uint8), []
    for seed in range(40):
        dark = ~CutMix(Compose(), black, share=(0.3, 0.6))(clip, seeded(seed)).all(-1)
        box = dark if dark.mean() < 0.5 else ~dark
        inside.append(box is dark)
        places = np.nonzero(box)
        lengths = [int(np.ptp(axis)) + 1 for axis in places]
        assert np.prod(lengths) == box.sum()  # nothing but the box
        assert all(0.29 * size <= length <= 0.61 * size for length, size in zip(lengths, box.shape, strict=True))
    assert 8 < sum(inside) < 32
    with pytest.raises(ValueError, match="`first` and `second`"):
        CutMix(Compose(), Downscale(2))(clip, seeded(0))


@pytest.mark.slow
def test_the_sheet_shows_every_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["degradation_sheet.py", "--output", str(output)])
    sheet = runpy.run_path(str(EXAMPLES / "degradation_sheet.py"))
    sheet["main"]()
    picture = np.asarray(Image.open(output))
    rows = picture.reshape(len(sheet["ROWS"]), -1, *picture.shape[1:])[:, :, sheet["LABEL"] :]
    assert rows.shape[1:] == (192, 5 * 336, 3)
    assert all(error(row, rows[0]) > 1 for row in rows[1:])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: type(transform).__name__)
def test_frames_may_lie_in_memory_as_they_like(transform: Transform) -> None:
    clip = moving_texture(3, 48, 72)
    planes = np.ascontiguousarray(clip.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert np.array_equal(transform(planes, seeded(0)), transform(clip, seeded(0)))


# ---- presets, and degradations as data


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_clips_smaller_and_worse(name: str) -> None:
    clip = moving_texture(9, 96, 144)
    reference = Downscale(3)(clip, seeded(0))
    results = [degradation_preset(name, 3)(clip, seeded(seed)) for seed in range(6)]
    assert all(result.shape == (9, 32, 48, 3) for result in results)
    assert np.mean([error(result, reference) for result in results]) > 5


def test_the_aigc_preset_alone_harms_motion() -> None:
    # what stands still: only the box of CutMix, noise and compression change from frame to frame in any preset
    clip = moving_texture(9, 96, 144)

    def lag(result: np.ndarray, reference: np.ndarray) -> int:
        """How many frames look more like another one of the reference than like their own."""
        errors = [[error(one, other) for other in reference] for one in result]
        return sum(int(np.argmin(row)) != t for t, row in enumerate(errors))

    reference = Downscale(2, "bicubic")(clip, seeded(0))
    lags = {
        name: sum(lag(degradation_preset(name, 2)(clip, seeded(seed)), reference) for seed in range(12))
        for name in ("aigc", "mild")
    }
    assert lags["mild"] == 0 and lags["aigc"] > 5


@pytest.mark.parametrize(
    "transform", [*TRANSFORMS, *map(degradation_preset, PRESETS)], ids=lambda transform: type(transform).__name__
)
def test_degradations_survive_as_json(transform: Transform) -> None:
    config = json.loads(json.dumps(to_config(transform)))
    again = from_config(config)
    assert again == transform and to_config(again) == config
    clip = moving_texture()
    np.testing.assert_array_equal(again(clip, seeded(1)), transform(clip, seeded(1)))


def test_a_config_names_types_and_arguments() -> None:
    assert to_config(Sometimes(H264((25, 30)), 0.5)) == {
        "type": "Sometimes",
        "transform": {"type": "H264", "crf": [25, 30], "preset": "veryfast"},
        "probability": 0.5,
    }
    assert from_config({"type": "Jpeg"}) == Jpeg()  # the rest are defaults
    with pytest.raises(ValueError, match="`transform`.*lambda"):
        to_config(Compose(lambda frames, rng: frames))
    for config, message in (
        ({"type": "Mpeg2"}, "Mpeg2"),
        ([1, 2], "`config`"),
        ({"type": "Jpeg", "qualty": 3}, "Jpeg.*qualty"),
        ({"type": "Sometimes", "probability": 1}, "Sometimes.*transform"),
        ({"type": "Compose", "transforms": [{"type": "Jpeg", "quality": 200}]}, "`quality`.*200"),
    ):
        with pytest.raises(ValueError, match=message):
            from_config(config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: H264(crf=60), "`crf`.*60"),
        (lambda: H264(crf=(30, 20)), "`crf`"),
        (lambda: Downscale(5), "`scale`.*5"),
        (lambda: Downscale(2, "nearest"), "`method`.*nearest"),
        (lambda: Jpeg(0), "`quality`"),
        (lambda: GaussianBlur(0), "`sigma`"),
        (lambda: GaussianBlur(1.0, kernel_size=4), "`kernel_size`.*4"),
        (lambda: UnsharpMask(amount=-1), "`amount`.*-1"),
        (lambda: Rescale(0), "`scale`.*0"),
        (lambda: CutMix(Jpeg(), Jpeg(), share=2), "`share`.*2"),
        (lambda: TemporalMorph((0.5, 1.2)), "`alpha`.*1.2"),
        (lambda: FrameDrop(longest=0), "`longest`.*0"),
        (lambda: MotionBlur(length=0.5), "`length`.*0.5"),
        (lambda: GridWarp(displacement=(5, 3)), "`displacement`"),
        (lambda: GridWarp(cells=(1, 6)), "`cells`"),
        (lambda: degradation_preset("hard"), "`name`.*aigc.*'hard'"),
        (lambda: degradation_preset("aigc", 5), "`scale`.*5"),
        (lambda: Sometimes(Jpeg(), 1.5), "`probability`"),
        (lambda: OneOf(), "`transforms`"),
        (lambda: Downscale(4)(moving_texture(2, 50, 50), np.random.default_rng(0)), "50x50"),
        (lambda: H264()(moving_texture().astype(np.float32), np.random.default_rng(0)), "`frames`.*float32"),
        (lambda: Jpeg()(moving_texture()[0], np.random.default_rng(0)), "`frames`"),
    ],
)
def test_bad_values_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
