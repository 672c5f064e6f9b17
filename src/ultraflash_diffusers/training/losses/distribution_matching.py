# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Distribution matching distillation, decoupled (paper, "Phase I"; arXiv 2511.22677): pure functions of flows.

Noise levels are sigmas, as everywhere in this package: 1 is pure noise, `z_sigma = (1 - sigma) z_0 + sigma epsilon`,
and networks give the flow `epsilon - z_0`. The paper on decoupling counts the time the other way round, from 0 for
noise: its "tau above the student's t" is a sigma *below* the student's, and for a one-step student the whole range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch.nn import functional as F

from ..settings import AT_LEAST_ONE, Settings, Share
from .flow_matching import add_noise, randn_like, weighted_mse

# noisy samples [batch, ...] and their noise levels [batch] -> the flow [batch, ...], float32
Flow = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# keeps a sample that is the real prediction from dividing zero by zero
_LEAST_DISTANCE = 1e-6


def clean_from_flow(noisy: torch.Tensor, flow: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """The clean sample that a flow points to: `z_0 = z_sigma - sigma flow`.

    Args:
        noisy (`torch.Tensor`): `[batch, ...]`.
        flow (`torch.Tensor`): the same shape.
        sigmas (`torch.Tensor`): `[batch]`, in [0, 1].
    """
    return noisy - _per_sample(sigmas, noisy) * flow


def flow_from_clean(noisy: torch.Tensor, clean: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """The flow that points to a clean sample, the inverse of [`clean_from_flow`].

    Args:
        noisy (`torch.Tensor`): `[batch, ...]`.
        clean (`torch.Tensor`): the same shape.
        sigmas (`torch.Tensor`): `[batch]`, in (0, 1].
    """
    return (noisy - clean) / _per_sample(sigmas, noisy)


def guided(conditional: Flow, unconditional: Flow, guidance_scale: float) -> Flow:
    """Classifier-free guidance: `unconditional + scale (conditional - unconditional)`; at scale 1 it costs nothing.

    Args:
        conditional (`Flow`): with the condition.
        unconditional (`Flow`): without it.
        guidance_scale (`float`): 1 is no guidance.
    """
    if guidance_scale == 1:
        return conditional

    def flow(noisy: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        without = unconditional(noisy, sigmas)
        return without + guidance_scale * (conditional(noisy, sigmas) - without)

    return flow


@torch.no_grad()
def integrate(flow: Flow, noise: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Follows a flow by Euler steps: the multi-step result of a teacher.

    Args:
        flow (`Flow`): for instance [`guided`].
        noise (`torch.Tensor`): `[batch, ...]`, a sample at the first noise level.
        sigmas (sequence of `float`): falling noise levels, the last one is not evaluated.
    """
    sample = noise
    for sigma, following in pairwise(sigmas):
        sample = sample + (following - sigma) * flow(sample, sample.new_full((len(sample),), sigma))
    return sample


@dataclass(frozen=True)
class DistributionMatching(Settings):
    r"""Moves a student's samples from the distribution that they have to the teacher's.

    The gradient of the student's sample x is

        -[ (real - fake)(x_DM) + (guidance_scale - 1) (real - unconditional)(x_CA) ],

    where x_DM and x_CA are x with fresh noise at levels of their own: over the whole range for matching (which keeps
    the student on the teacher's distribution), below the level of the student's own input for guidance (which acts on
    what the student has yet to decide). "Real" is the frozen teacher, "fake" a network that tracks the student.

    Scores stand in it as predictions of the clean sample. It is divided by the mean distance of each sample from the
    guided real prediction, `real(x_DM) + (guidance_scale - 1) (real - unconditional)(x_CA)`, so that it has about the
    same strength everywhere; with one noise level for both this is DMD's own normalisation (arXiv 2311.18828).

    Args:
        guidance_scale (`float`, *optional*, defaults to 3.5): of the teacher; 1 leaves the guidance term
            out, and its cost.
        sigma_range (pair of `float`, *optional*, defaults to `(0.02, 0.98)`): least and greatest noise level where
            teacher and fake score are compared; at the very ends (the paper says U[0, 1]) predictions say nothing
            about the sample, or nothing new.

    Raises:
        ValueError: a guidance scale below 1, or a range that is not inside (0, 1].
    """

    guidance_scale: Annotated[float, AT_LEAST_ONE] = 3.5
    sigma_range: tuple[Share, Share] = field(default=(0.02, 0.98), metadata={"flag": "matching_levels"})

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.sigma_range
        if not 0 < low < high:
            raise ValueError(f"`sigma_range`: two rising numbers above 0, got {low} {high}")

    def gradient(
        self,
        sample: torch.Tensor,
        real: Flow,
        fake: Flow,
        unconditional: Flow,
        generator: torch.Generator,
        student_sigma: float = 1.0,
    ) -> torch.Tensor:
        """Returns the gradient of the student's samples, to be descended; for [`surrogate_loss`].

        Args:
            sample (`torch.Tensor`): `[batch, ...]`, clean samples of the student, float32.
            real (`Flow`): the teacher with the condition.
            fake (`Flow`): the network that tracks the student, with the condition.
            unconditional (`Flow`): the teacher without the condition; not called at guidance scale 1.
            generator (`torch.Generator`): on the CPU.
            student_sigma (`float`, *optional*, defaults to 1.0): noise level of the student's input, 1 for one step.

        Raises:
            ValueError: a `student_sigma` outside the range of noise levels.
        """
        direction, target = self.direction(sample, real, fake, unconditional, generator, student_sigma)
        distance = (sample - target).abs().flatten(1).mean(1).clamp_min(_LEAST_DISTANCE)
        return -direction / _per_sample(distance, sample)

    @torch.no_grad()
    def direction(
        self,
        sample: torch.Tensor,
        real: Flow,
        fake: Flow,
        unconditional: Flow,
        generator: torch.Generator,
        student_sigma: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what the gradient is before it is divided, with the sign of a step to take, and the guided real
        prediction. Arguments and errors are those of [`~DistributionMatching.gradient`].
        """
        low, high = self.sigma_range
        if not low < student_sigma <= 1:
            raise ValueError(f"`student_sigma` must be above {low} and at most 1, got {student_sigma}")
        target, tracked = self._predictions(sample, (real, fake), generator, high)
        if self.guidance_scale != 1:
            predictions = self._predictions(sample, (real, unconditional), generator, min(high, student_sigma))
            target = target + (self.guidance_scale - 1) * (predictions[0] - predictions[1])
        return target - tracked, target

    def _predictions(
        self, sample: torch.Tensor, flows: tuple[Flow, Flow], generator: torch.Generator, highest_sigma: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The clean predictions of two networks for the same noisy samples, each at a random level."""
        sigmas = self._sample_sigmas(sample, generator, highest_sigma)
        noisy = add_noise(sample, randn_like(sample, generator), sigmas)
        one, other = (clean_from_flow(noisy, flow(noisy, sigmas), sigmas) for flow in flows)
        return one, other

    def _sample_sigmas(self, sample: torch.Tensor, generator: torch.Generator, highest: float) -> torch.Tensor:
        low = self.sigma_range[0]
        return (low + (highest - low) * torch.rand(len(sample), generator=generator)).to(sample)

    def fake_score_loss(
        self,
        sample: torch.Tensor,
        fake: Flow,
        generator: torch.Generator,
        predicts: Literal["flow", "clean"] = "flow",
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Flow-matching loss of the network that tracks the student, at the noise levels where it is asked.

        Args:
            sample (`torch.Tensor`): `[batch, ...]`, clean samples of the student, without gradients, float32.
            fake (`Flow`): the network.
            generator (`torch.Generator`): on the CPU.
            predicts (`str`, *optional*, defaults to `"flow"`): what is compared: the flow, or for a network that
                predicts the clean sample that one, as its flow's error would count `1 / sigma^2` times as much.
            weights (`torch.Tensor`, *optional*): of the squared errors, see [`weighted_mse`].
        """
        sigmas = self._sample_sigmas(sample, generator, self.sigma_range[1])
        noise = randn_like(sample, generator)
        noisy = add_noise(sample, noise, sigmas)
        flow = fake(noisy, sigmas)
        if predicts == "flow":
            return weighted_mse(flow, noise - sample, weights)
        return weighted_mse(clean_from_flow(noisy, flow, sigmas), sample, weights)


def surrogate_loss(sample: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A squared error whose gradient is the given one, divided by the number of elements as means are.

    Args:
        sample (`torch.Tensor`): `[batch, ...]`, the student's, with its graph.
        gradient (`torch.Tensor`): the same shape, see [`DistributionMatching.gradient`].
    """
    return 0.5 * F.mse_loss(sample, (sample - gradient).detach())


def _per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like).view(-1, *[1] * (like.ndim - 1))
