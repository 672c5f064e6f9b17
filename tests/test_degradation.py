# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Degradations: seeded, effective, exact where they can be, and clear about bad input."""

from __future__ import annotations

import numpy as np
import pytest

from ultraflash_diffusers.degradation import (
    H264,
    Compose,
    Downscale,
    GaussianBlur,
    GaussianNoise,
    Jpeg,
    OneOf,
    Sometimes,
    Transform,
    low_resolution,
)

TRANSFORMS: list[Transform] = [
    Downscale((2, 4)),
    Downscale(2, "bicubic"),
    GaussianBlur(),
    GaussianNoise(),
    H264(),
    Jpeg(),
    low_resolution(3),
    OneOf(Jpeg(), GaussianBlur()),
    Sometimes(Jpeg(), 0.5),
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


@pytest.mark.parametrize("transform", [GaussianBlur(), GaussianNoise(), H264(), Jpeg(), low_resolution()])
def test_other_seeds_give_other_clips(transform: Transform) -> None:
    clip = moving_texture()
    results = [transform(clip, np.random.default_rng(seed)) for seed in range(4)]
    assert any(not np.array_equal(results[0], other) for other in results[1:])


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


@pytest.mark.parametrize("shape", [(3, 15, 21), (1, 16, 16), (2, 2, 3)])
def test_h264_takes_odd_sizes_and_single_frames(shape: tuple[int, int, int]) -> None:
    clip = moving_texture(*shape)
    assert H264(10)(clip, np.random.default_rng(0)).shape == clip.shape


def test_jpeg_blur_and_noise_are_effective() -> None:
    clip, rng = moving_texture(), np.random.default_rng(0)
    assert error(Jpeg(20)(clip, rng), clip) > 2 * error(Jpeg(90)(clip, rng), clip)
    assert high_frequencies(GaussianBlur(2.0)(clip, rng)) < 0.5 * high_frequencies(GaussianBlur(0.3)(clip, rng))
    grey = np.full((4, 64, 64, 3), 128, np.uint8)
    assert np.std(GaussianNoise(6.0)(grey, rng).astype(float)) == pytest.approx(6.0, rel=0.05)


def test_choices_are_made_as_often_as_asked() -> None:
    grey, rng = np.full((1, 4, 4, 3), 128, np.uint8), np.random.default_rng(0)

    def black(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.zeros_like(frames)

    def white(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.full_like(frames, 255)

    assert sum(not Sometimes(black, 0.3)(grey, rng).any() for _ in range(1000)) == pytest.approx(300, abs=50)
    assert sum(not OneOf(black, white)(grey, rng).any() for _ in range(1000)) == pytest.approx(500, abs=60)
    assert Compose(black, white)(grey, rng).min() == 255


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: H264(crf=60), "`crf`.*60"),
        (lambda: H264(crf=(30, 20)), "`crf`"),
        (lambda: Downscale(5), "`scale`.*5"),
        (lambda: Downscale(2, "nearest"), "`method`.*nearest"),
        (lambda: Jpeg(0), "`quality`"),
        (lambda: GaussianBlur(0), "`sigma`"),
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
