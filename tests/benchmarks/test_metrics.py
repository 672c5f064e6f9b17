# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The benchmark's measures against values found elsewhere or by hand, and the clips that it measures on."""

import av
import cv2
import numpy as np
import pytest

from benchmarks import clips, metrics
from benchmarks.peers import bicubic
from ultraflash_diffusers.training.data.drawing import area_resize
from ultraflash_diffusers.training.losses.perceptual import PerceptualLoss


def pattern(height: int = 193, width: int = 210) -> np.ndarray:
    """Two frames of crossed waves, odd sized."""
    y, x = np.mgrid[:height, :width]
    frame = np.stack([127.5 + 90 * np.sin(x / (3 + c)) * np.cos(y / (5 - c)) for c in range(3)], axis=-1)
    return np.stack([frame, frame[::-1]]).round().astype(np.uint8)


def disturbed(frames: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]]
    return np.clip(frames + 20 * np.sin(x * 7.0 + y * 13.0)[..., None] + 5, 0, 255).round().astype(np.uint8)


def sliding(texture: np.ndarray, frames: int, step: int, width: int) -> np.ndarray:
    return np.stack([texture[:, t * step : t * step + width] for t in range(frames)])


@pytest.fixture(scope="module")
def texture() -> np.ndarray:
    """Smooth grey random blobs, [192, 400, 3]: something that optical flow can hold on to."""
    coarse = np.random.default_rng(0).integers(0, 256, (24, 50, 1), dtype=np.uint8).repeat(3, axis=2)
    return bicubic(bicubic(bicubic(coarse[None])))[0]


def test_psnr_by_hand():
    truth = np.full((2, 8, 8, 3), 100, np.uint8)
    frames = truth.copy()
    frames[0] += 1
    frames[1] += 10
    expected = 20 * np.log10(255) - 10 * np.log10([1, 100]).mean()
    assert metrics.psnr(frames, truth) == pytest.approx(expected)
    assert metrics.psnr(frames[:1] * 0, frames[:1] * 0) == np.inf


def test_psnr_does_not_wrap_around():
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    assert metrics.psnr(black, white) == metrics.psnr(white, black) == 0


def test_structural_similarity_against_public_implementations():
    pytest.importorskip("torchmetrics")
    truth = pattern()
    frames = disturbed(truth)
    # scikit-image 0.26, structural_similarity: Gaussian window, sigma 1.5, population covariance
    assert metrics.ssim(frames, truth) == pytest.approx(0.6985715662010299, abs=1e-9)
    # pytorch-msssim 1.0: 0.92775; it counts no window over the border at the coarsest scale
    assert metrics.ms_ssim(frames, truth) == pytest.approx(0.92775, abs=2e-3)
    assert metrics.ssim(truth, truth) == pytest.approx(1) == metrics.ms_ssim(truth, truth)


def test_batches_do_not_change_the_mean():
    pytest.importorskip("torchmetrics")
    truth = np.concatenate([pattern()] * 5)
    frames = np.concatenate([disturbed(pattern())] * 5)
    assert metrics.ssim(frames, truth) == pytest.approx(metrics.ssim(frames[:2], truth[:2]))


@pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim, metrics.ms_ssim])
def test_wrong_pairs_are_refused(measure):
    pytest.importorskip("torchmetrics")
    frames = pattern()
    with pytest.raises(ValueError, match="equal"):
        measure(frames, frames[:1])
    with pytest.raises(ValueError, match="uint8"):
        measure(frames.astype(np.float32), frames)


def test_ms_ssim_needs_room_for_five_scales():
    pytest.importorskip("torchmetrics")
    frames = pattern(176, 176)
    assert metrics.ms_ssim(frames, frames) == pytest.approx(1)
    with pytest.raises(ValueError, match="176"):
        metrics.ms_ssim(frames[:, :175], frames[:, :175])


def test_sharpness_falls_with_blur():
    y, x = np.mgrid[:192, :208]
    truth = pattern(192, 208) // 2 + 16 * ((x + y) % 2)[..., None].astype(np.uint8)
    blurred = bicubic(np.stack([area_resize(frame, 96, 104) for frame in truth]))
    assert metrics.laplacian_variance(blurred) < 0.1 * metrics.laplacian_variance(truth)
    assert metrics.laplacian_variance(truth * 0 + 7) == pytest.approx(0, abs=1e-6)


def test_motion_follows_a_slide(texture):
    truth = sliding(texture, frames=3, step=4, width=320)
    motion = metrics.estimate_motion(truth)
    # A pixel at x was at x + 4 one frame before, so that the last columns come from outside the frame.
    flow = motion.maps[:, 96, 160, 0] - 160
    assert flow == pytest.approx(4, abs=0.2)
    assert motion.visible[:, 20:-20, 20:-20].mean() > 0.95
    assert not motion.visible[:, :, -3:].any()


def test_warping_error_sees_flicker_and_not_motion(texture):
    truth = sliding(texture, frames=4, step=4, width=320)
    motion = metrics.estimate_motion(truth)
    own = metrics.warping_error(truth, motion)
    still = np.abs(np.diff(truth.astype(float), axis=0)).mean()
    assert own < 0.25 * still
    flicker = np.clip(truth.astype(int) + 6 * (np.arange(4) % 2)[:, None, None, None], 0, 255).astype(np.uint8)
    assert metrics.warping_error(flicker, motion) == pytest.approx(6, rel=0.15)
    with pytest.raises(ValueError, match="4 frames"):
        metrics.warping_error(truth[:2], motion)


@pytest.fixture(scope="module")
def clip_file(texture, tmp_path_factory):
    """A file of six frames of 192 x 320; the tests ask for 192 x 256, so that only its sides are cropped."""
    path = tmp_path_factory.mktemp("clips") / "slide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 192, 320, "yuv420p"
        for frame in sliding(texture, frames=6, step=4, width=320):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_centre_crop():
    frame = np.arange(6 * 10)[:, None].reshape(6, 10, 1).repeat(3, axis=2)
    assert clips.centre_crop(frame, 1.0)[0, :, 0].tolist() == [2, 3, 4, 5, 6, 7]
    assert clips.centre_crop(frame, 0.2)[:, 0, 0].tolist() == [20, 30]


def test_prepared_clip(clip_file, texture, tmp_path):
    pair = clips.prepare_clip(clip_file, 192, 256, tmp_path / "cache")
    assert pair.truth.shape == (6, 192, 256, 3) and pair.low.shape == (6, 96, 128, 3)
    expected = sliding(texture, frames=6, step=4, width=320)[:, :, 32:-32]
    assert metrics.psnr(pair.truth, expected) > 38
    uncompressed = np.stack([area_resize(frame, 96, 128) for frame in pair.truth])
    assert 20 < metrics.psnr(pair.low, uncompressed) < 45

    again = clips.prepare_clip(clip_file, 192, 256, tmp_path / "cache")
    anew = clips.prepare_clip(clip_file, 192, 256)
    for other in (again, anew):
        assert np.array_equal(other.truth, pair.truth) and np.array_equal(other.low, pair.low)
    with pytest.raises(ValueError, match="190x256"):
        clips.prepare_clip(clip_file, 190, 256)


def test_a_clip_without_a_rate_is_refused(tmp_path):
    path = tmp_path / "one_frame.nut"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, width=32, height=16)
        container.mux(stream.encode(av.VideoFrame(32, 16, "yuv420p")))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="frames a second"):
        clips.prepare_clip(path, 16, 32)


def test_flicker_is_the_largest_change_and_that_of_nearly_all_values():
    held = np.full((4, 100, 100, 3), 200, np.uint8)
    assert metrics.flicker(held) == (0, 0)
    held[2] -= 1
    held[3, 0, 0] = 20
    assert metrics.flicker(held) == (179, 1)
    with pytest.raises(ValueError, match="two frames"):
        metrics.flicker(held[:1])


def test_grain_is_what_differs_from_the_clean_frames():
    clean = np.full((3, 64, 64, 3), 128, np.uint8)
    noise = np.rint(np.random.default_rng(0).normal(0, 6, (3, 64, 64, 1)))
    grainy = np.clip(clean + noise, 0, 255).astype(np.uint8)
    assert metrics.grain_deviation(grainy, clean) == pytest.approx(noise.std(), rel=0.02)
    with pytest.raises(ValueError, match="one shape"):
        metrics.grain_deviation(grainy[:1], clean)


def test_seams_are_steps_at_the_borders_of_tiles():
    truth = pattern(192, 208)
    tiles = (np.indices((192, 208)) // 8).sum(0) % 2 * 20
    tiled = np.clip(truth // 2 + tiles[..., None], 0, 255).astype(np.uint8)
    assert metrics.seam_ratio(truth, 8) == pytest.approx(1, abs=0.05)
    assert metrics.seam_ratio(tiled, 8) > 1.5 and metrics.seam_ratio(tiled, 7) < 1.1


def test_the_perceptual_distance_of_large_frames_is_that_of_their_middle():
    distance, truth = PerceptualLoss("quality_scorer"), pattern(128, 160)
    frames = disturbed(truth)
    inner = (slice(None), slice(32, 96), slice(40, 120))
    whole = metrics.perceptual_distance(frames, truth, distance, 1, (64, 80))
    assert whole == pytest.approx(metrics.perceptual_distance(frames[inner], truth[inner], distance, 1)) and whole > 0


def test_large_frames_are_as_similar_in_single_precision(monkeypatch):
    rng = np.random.default_rng(0)
    truth = cv2.resize(rng.integers(0, 255, (20, 30, 3)).astype(np.uint8), (300, 200), interpolation=cv2.INTER_CUBIC)
    frames = np.clip(truth + rng.normal(0, 6, truth.shape), 0, 255).astype(np.uint8)
    exact = [measure(frames[None], truth[None]) for measure in (metrics.ssim, metrics.ms_ssim)]
    monkeypatch.setattr(metrics, "_EXACT_PIXELS", 1)
    single = [measure(frames[None], truth[None]) for measure in (metrics.ssim, metrics.ms_ssim)]
    assert single != exact and single == pytest.approx(exact, abs=1e-5)
