# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Frame noise and colour correction by themselves."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ultraflash_diffusers.pipelines.color_correction import wavelet_color_correction
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise, draw_seeds

# ---- noise


def test_noise_belongs_to_the_frame():
    noise = SeededFrameNoise([7], 2)
    whole = noise("sr", 0, 6, (3, 4, 5))
    assert torch.equal(noise("sr", 2, 3, (3, 4, 5)), whole[:, :, 2:5])
    frames = [*whole.unbind(2), *noise("condition", 0, 6, (3, 4, 5)).unbind(2)]
    samples = [sample for frame in frames for sample in frame]
    assert all(not torch.equal(one, other) for i, one in enumerate(samples) for other in samples[:i])


def test_noise_is_normal():
    noise = SeededFrameNoise([1], 1)("sr", 0, 20, (4, 32, 32))
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01


def test_a_sample_s_noise_does_not_depend_on_its_batch():
    seeds = [11, 12, 13]
    together = SeededFrameNoise(seeds, 3)("sr", 5, 2, (2, 3, 4))
    for number, value in enumerate(seeds):
        assert torch.equal(SeededFrameNoise([value], 1)("sr", 5, 2, (2, 3, 4))[0], together[number])
    assert torch.equal(SeededFrameNoise([11], 4)("sr", 5, 2, (2, 3, 4))[0], together[0])


def test_seeds_come_from_the_generators():
    generators = [torch.Generator().manual_seed(number) for number in (1, 2)]
    singles = [draw_seeds(torch.Generator().manual_seed(number))[0] for number in (1, 2)]
    assert draw_seeds(generators) == singles
    with pytest.raises(ValueError, match="list of 2, the source has a batch of 3"):
        SeededFrameNoise(singles, 3)


# ---- colour correction


def bicubic(reference, scale):
    frames = reference.transpose(1, 2).flatten(0, 1)
    scaled = F.interpolate(frames, scale_factor=scale, mode="bicubic", align_corners=False)
    return scaled.unflatten(0, (reference.shape[0], -1)).transpose(1, 2)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    scale=st.integers(2, 4),
    levels=st.integers(0, 6),
    frames=st.integers(1, 3),
    batch=st.integers(1, 2),
)
def test_the_upscaled_source_stays_as_it_is(height, width, scale, levels, frames, batch):
    reference = torch.rand(batch, 3, frames, height, width) * 2 - 1
    upscaled = bicubic(reference, scale)
    result = wavelet_color_correction(upscaled, reference, levels)
    torch.testing.assert_close(result, upscaled, rtol=0, atol=1e-5)


def test_colours_come_from_the_source_and_detail_from_the_result():
    reference = torch.rand(1, 3, 2, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.2
    detail = torch.zeros(1, 3, 2, 128, 128)
    detail[..., ::2, :] = 0.1
    detail[..., 1::2, :] = -0.1
    shifted = bicubic(reference, 2) + detail + torch.tensor([0.5, -0.3, 0.1]).view(1, 3, 1, 1, 1)
    result = wavelet_color_correction(shifted, reference)
    torch.testing.assert_close(result, bicubic(reference, 2) + detail, rtol=0, atol=1e-4)


def test_it_is_linear_and_frame_by_frame():
    torch.manual_seed(0)
    ours, reference = torch.rand(2, 3, 4, 24, 40), torch.rand(2, 3, 4, 12, 20)
    whole = wavelet_color_correction(ours, reference)
    torch.testing.assert_close(wavelet_color_correction(3 * ours, 3 * reference), 3 * whole)
    for frame in range(4):
        one = slice(frame, frame + 1)
        torch.testing.assert_close(wavelet_color_correction(ours[:, :, one], reference[:, :, one]), whole[:, :, one])


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_its_reach_is_that_of_the_wavelet_decomposition(levels):
    """An impulse spreads as over `levels` smoothings with doubling distance, pooling or not."""
    size = 256
    impulse = torch.zeros(1, 1, 1, size, size)
    impulse[..., size // 2, size // 2] = 1.0
    low = impulse - wavelet_color_correction(impulse, torch.zeros(1, 1, 1, size // 2, size // 2), levels)
    profile = low.sum(dim=(0, 1, 2, 3))
    position = torch.arange(size)
    centre = (profile * position).sum()
    variance = (profile * (position - centre) ** 2).sum()
    assert profile.sum().item() == pytest.approx(1.0, abs=1e-4)
    assert variance.item() == pytest.approx((4**levels - 1) / 6, rel=0.15)


def test_levels_set_what_counts_as_low():
    torch.manual_seed(0)
    ours, reference = torch.rand(1, 3, 1, 64, 64), torch.rand(1, 3, 1, 32, 32)
    distances = [
        (wavelet_color_correction(ours, reference, levels) - bicubic(reference, 2)).abs().mean().item()
        for levels in range(5)
    ]
    assert distances[0] < 1e-6
    assert distances == sorted(distances)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`reference` of shape"):
        wavelet_color_correction(torch.zeros(1, 3, 2, 8, 8), torch.zeros(1, 3, 3, 4, 4))
    with pytest.raises(ValueError, match="`levels` must be 0 or more, got -1"):
        wavelet_color_correction(torch.zeros(1, 3, 2, 8, 8), torch.zeros(1, 3, 2, 4, 4), levels=-1)
