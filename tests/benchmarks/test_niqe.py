# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How unnatural pictures look, against natural ones that are made here."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks import niqe
from benchmarks.niqe import PATCH, NaturalPictures


def picture(seed: int) -> np.ndarray:
    """Noise whose detail falls as natural pictures' does, uint8 `[2 * PATCH, 3 * PATCH, 3]`."""
    rng = np.random.default_rng(seed)
    rows, columns = 2 * PATCH, 3 * PATCH
    distance = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns))
    distance[0, 0] = 1
    waves = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((rows, columns))) / distance, (rows, columns))
    gray = 128 + 40 * (waves - waves.mean()) / waves.std()
    return np.rint(np.clip(gray, 0, 255)).astype(np.uint8)[..., None].repeat(3, axis=2)


@pytest.fixture(scope="module")
def natural() -> NaturalPictures:
    features = []
    for seed in range(20):
        gray = picture(seed)[..., 0].astype(np.float32)
        half = cv2.resize(gray, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        features.append(np.hstack([niqe._features(gray, PATCH), niqe._features(half, PATCH // 2)]))
    joined = np.concatenate(features)
    return NaturalPictures(joined.mean(axis=0), np.cov(joined.T))


def test_blur_noise_and_blocks_look_less_natural(natural: NaturalPictures) -> None:
    clean = picture(99)
    blurred = cv2.GaussianBlur(clean, (0, 0), 2)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 25, clean.shape), 0, 255).astype(np.uint8)
    blocky = clean[::4, ::4].repeat(4, axis=0).repeat(4, axis=1)
    own = natural.distance(clean[None])
    assert all(natural.distance(other[None]) > 1.5 * own for other in (blurred, noisy, blocky))


def test_every_so_manieth_frame_counts(natural: NaturalPictures) -> None:
    frames = np.stack([picture(50), *[np.zeros_like(picture(0))] * 4, picture(51)])
    alone = [natural.distance(frames[[number]]) for number in (0, 5)]
    assert natural.distance(frames) == pytest.approx(np.mean(alone))


def test_flat_pictures_have_a_distance_too(natural: NaturalPictures) -> None:
    assert natural.distance(np.full((1, 2 * PATCH, 2 * PATCH, 3), 90, np.uint8)) > natural.distance(picture(5)[None])


def test_small_pictures_are_refused(natural: NaturalPictures) -> None:
    with pytest.raises(ValueError, match=r"`frames` must have sides of 192 or more, got \(190, 288\)"):
        natural.distance(picture(0)[None, :190])


def test_a_gaussian_has_the_shape_of_one() -> None:
    patches = np.random.default_rng(0).normal(0, 2, (3, 96, 96))
    shape, left, right, mean = niqe._asymmetric_fit(patches)
    assert shape == pytest.approx(2, abs=0.1) and mean == pytest.approx(0, abs=0.1)
    assert left == pytest.approx(2 * 2**0.5, rel=0.05) and right == pytest.approx(2 * 2**0.5, rel=0.05)
