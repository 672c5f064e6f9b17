# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One-step distillation: on Gaussians, whose answers are known, and with tiny networks."""

from __future__ import annotations

import pytest
import torch

from ultraflash_diffusers.training.distribution_matching import (
    DistributionMatching,
    Flow,
    clean_from_flow,
    flow_from_clean,
    guided,
    integrate,
    surrogate_loss,
)
from ultraflash_diffusers.training.losses import (
    PixelLoss,
    add_noise,
    inverse_wavelet_transform,
    wavelet_details,
    wavelet_loss,
    wavelet_transform,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- wavelets


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_wavelets_give_the_pixels_back(levels: int) -> None:
    pixels = torch.randn(2, 3, 2, 16, 24, generator=seeded(), dtype=torch.float64)
    low, details = wavelet_transform(pixels, levels)
    assert low.shape == (2, 3, 2, 16 >> levels, 24 >> levels) and len(details) == levels
    torch.testing.assert_close(inverse_wavelet_transform(low, details), pixels, rtol=0, atol=1e-12)
    # orthonormal: the energy is that of the pixels; and the finest bands are those of the one-level function
    energy = low.square().sum() + sum(bands.square().sum() for bands in details)
    assert energy.item() == pytest.approx(pixels.square().sum().item())
    assert torch.equal(details[0], wavelet_details(pixels))


def test_wavelet_levels_see_what_is_coarser() -> None:
    fine = torch.tensor([1.0, -1.0]).repeat(8).expand(16, 16)
    broad = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(4).expand(16, 16)
    nothing = torch.zeros(16, 16)
    assert wavelet_loss(broad, nothing).item() == 0
    # one of three bands is 2, or at the second level 4; the mean over both levels
    assert wavelet_loss(fine, nothing, levels=2).item() == pytest.approx(2 / 3 / 2)
    assert wavelet_loss(broad, nothing, levels=2).item() == pytest.approx(4 / 3 / 2)
    two_levels = PixelLoss(0, 0, 0, wavelet_weight=1, wavelet_levels=2)
    pixels = (picture.expand(1, 3, 1, 16, 16) for picture in (broad, nothing))
    assert two_levels(*pixels)["wavelet"].item() == pytest.approx(4 / 3 / 2)


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="12x16"):
        wavelet_transform(torch.zeros(12, 16), levels=3)
    with pytest.raises(ValueError, match="`levels` is 0"):
        wavelet_transform(torch.zeros(12, 16), levels=0)


def test_a_pixel_loss_without_weights_is_empty() -> None:
    assert PixelLoss(0, 0, 0).is_empty and not PixelLoss(0, 0, 0, wavelet_weight=0.1).is_empty


# ---- distribution matching, on Gaussians of which the best possible networks are known


class Gaussian:
    """Samples that are normal, independent in each of `mean`'s dimensions, all with one deviation."""

    def __init__(self, mean: torch.Tensor, deviation: float = 0.5) -> None:
        self.mean, self.deviation = mean, deviation

    def flow(self, noisy: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        """What a perfectly trained network says: it points to the conditional mean of the clean sample."""
        kept, sigma = 1 - sigmas[:, None], sigmas[:, None]
        share = kept * self.deviation**2 / (kept**2 * self.deviation**2 + sigma**2)
        return flow_from_clean(noisy, self.mean + share * (noisy - kept * self.mean), sigmas)

    def sample(self, number: int, generator: torch.Generator) -> torch.Tensor:
        return self.mean + self.deviation * torch.randn(number, len(self.mean), generator=generator)


def pull(sigmas: torch.Tensor, deviation: float = 0.5) -> torch.Tensor:
    """How far apart the clean predictions for two Gaussians are, for each unit between their means."""
    return sigmas**2 / ((1 - sigmas) ** 2 * deviation**2 + sigmas**2)


REAL = Gaussian(torch.linspace(-1, 1, 8))
UNCONDITIONAL = Gaussian(REAL.mean + torch.linspace(0.2, 0.6, 8))


def test_flows_and_clean_samples_are_two_ways_to_say_the_same() -> None:
    clean, noise = torch.randn(2, 4, 3, 5, generator=seeded())
    sigmas = torch.tensor([0.1, 0.4, 0.7, 1.0])
    noisy = add_noise(clean, noise, sigmas)
    torch.testing.assert_close(clean_from_flow(noisy, noise - clean, sigmas), clean)
    torch.testing.assert_close(flow_from_clean(noisy, clean, sigmas), noise - clean, rtol=1e-4, atol=1e-4)


def test_following_the_flow_turns_noise_into_the_distribution() -> None:
    target = Gaussian(torch.linspace(-2, 2, 8), deviation=0.3)
    noise = torch.randn(4000, 8, generator=seeded())
    sample = integrate(target.flow, noise, torch.linspace(1, 0, 101).tolist())
    torch.testing.assert_close(sample.mean(0), target.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(sample.std(0), torch.full((8,), 0.3), rtol=0, atol=0.02)


def test_guidance_extrapolates_and_costs_nothing_where_there_is_none() -> None:
    noisy, sigmas = torch.randn(3, 8, generator=seeded()), torch.tensor([0.2, 0.5, 0.9])
    with_text, without = REAL.flow(noisy, sigmas), UNCONDITIONAL.flow(noisy, sigmas)
    flow = guided(REAL.flow, UNCONDITIONAL.flow, 3.5)(noisy, sigmas)
    torch.testing.assert_close(flow, with_text + 2.5 * (with_text - without))
    assert guided(REAL.flow, UNCONDITIONAL.flow, 1) == REAL.flow


@pytest.mark.parametrize(("guidance_scale", "student_sigma"), [(1.0, 1.0), (3.5, 1.0), (3.5, 0.4)])
def test_the_gradient_is_the_closed_form(guidance_scale: float, student_sigma: float) -> None:
    student = Gaussian(torch.zeros(8))
    sample = student.sample(6, seeded(1))
    matching = DistributionMatching(guidance_scale, sigma_range=(0.1, 0.9))
    flows = (REAL.flow, student.flow, UNCONDITIONAL.flow)
    gradient = matching.gradient(sample, *flows, seeded(2), student_sigma)

    generator, expected = seeded(2), torch.zeros_like(sample)
    for other, highest, weight in ((student, 0.9, 1.0), (UNCONDITIONAL, min(0.9, student_sigma), guidance_scale - 1)):
        sigmas = 0.1 + (highest - 0.1) * torch.rand(6, generator=generator)
        noisy = add_noise(sample, torch.randn(sample.shape, generator=generator), sigmas)
        wanted = clean_from_flow(noisy, REAL.flow(noisy, sigmas), sigmas)
        strength = pull(sigmas) / (sample - wanted).abs().mean(1)
        expected -= weight * strength[:, None] * (REAL.mean - other.mean)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_the_surrogate_loss_has_the_gradient_that_it_is_given() -> None:
    sample, gradient = torch.randn(2, 3, 4, 5, generator=seeded())
    sample.requires_grad_(True)
    loss = surrogate_loss(sample, gradient)
    loss.backward()
    torch.testing.assert_close(sample.grad, gradient / gradient.numel(), rtol=1e-4, atol=1e-7)
    assert loss.item() == pytest.approx(0.5 * gradient.square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_descent_ends_at_the_mean_that_theory_says(guidance_scale: float) -> None:
    """Without guidance the target's mean; with it as far beyond as guidance extrapolates."""
    matching = DistributionMatching(guidance_scale)
    mean = torch.zeros(8, requires_grad=True)
    optimizer, generator = torch.optim.SGD([mean], lr=1.0), seeded(3)
    late = []
    for step in range(300):
        student = Gaussian(mean.detach())  # the fake score tracks perfectly
        sample = mean + student.deviation * torch.randn(64, 8, generator=generator)
        gradient = matching.gradient(sample.detach(), REAL.flow, student.flow, UNCONDITIONAL.flow, generator)
        surrogate_loss(sample, gradient).backward()
        optimizer.step()
        optimizer.zero_grad()
        late += [mean.detach().clone()] if step >= 200 else []
    expected = REAL.mean + (guidance_scale - 1) * (REAL.mean - UNCONDITIONAL.mean)
    torch.testing.assert_close(torch.stack(late).mean(0), expected, rtol=0, atol=0.05)


def test_the_fake_score_learns_where_the_student_is() -> None:
    student, matching = Gaussian(torch.linspace(-1, 1, 8)), DistributionMatching()
    for predicts in ("flow", "clean"):
        mean = torch.zeros(8, requires_grad=True)
        optimizer, generator = torch.optim.Adam([mean], lr=0.05), seeded(4)
        for _ in range(200):
            fake: Flow = Gaussian(mean).flow
            matching.fake_score_loss(student.sample(64, generator), fake, generator, predicts).backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(mean.detach(), student.mean, rtol=0, atol=0.12)


def test_settings_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="`guidance_scale` must be at least 1, got 0.5"):
        DistributionMatching(0.5)
    with pytest.raises(ValueError, match="`sigma_range`"):
        DistributionMatching(sigma_range=(0.9, 0.1))
    flows = (REAL.flow, REAL.flow, UNCONDITIONAL.flow)
    with pytest.raises(ValueError, match="`student_sigma` .* got 0.01"):
        DistributionMatching().gradient(torch.zeros(2, 8), *flows, seeded(), student_sigma=0.01)
