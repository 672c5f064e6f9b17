# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The quality scorer's training: of two versions of a picture, the one that was degraded more ranks lower."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ...degradation import H264, Compose, GaussianBlur, GaussianNoise, Jpeg, Rescale, Transform, UnsharpMask
from ...pipelines.cache_management import SCORED_SIZE, DynamicCacheManagement
from ...pixels import to_unit
from ...rewards import QualityScorer
from ..data.crops import Batch
from ..settings import NonNegative, Positive, Settings, Share
from .base import Training

DEGRADATIONS: dict[str, Callable[[float], Transform]] = {
    "blur": lambda strength: GaussianBlur(0.3 + 2.7 * strength),
    "noise": lambda strength: GaussianNoise(40 * strength),
    "jpeg": lambda strength: Jpeg(round(95 * (5 / 95) ** strength)),
    "h264": lambda strength: H264(round(20 + 26 * strength)),
    "rescale": lambda strength: Rescale(1 / (1 + 3 * strength)),
    "oversharpening": lambda strength: UnsharpMask(0.5 + 3.5 * strength, sigma=1.2),
}
"""What makes a transform of a strength from 0 (next to nothing) to 1 (a ruin), about equally bad for each of them."""

# scores that a clean picture and one of strength 1 should have: the cache's threshold lies at a strength of a third
CLEAN_SCORE, RUINED_SCORE = 0.85, 0.15
# how much smaller clean pictures are made, each side for itself: 384x683 made 224x224 is 0.58 and 0.33
SMALLEST_SHRINK, LARGEST_SHRINK = 0.33, 1.15
# strengths of a picture's two degraded versions differ by this at least
LEAST_GAP = 0.1
# room for a random cut after a degradation, so that blocks of codecs have no fixed place
CUT = 8
# degraded pictures from this strength on should be below the cache's threshold
VISIBLE = 0.5
VALIDATION_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
VALIDATION_STRIDE = 8


@dataclass(frozen=True)
class QualityObjective(Settings):
    """What the scorer learns from.

    Args:
        size (`int`, *optional*, defaults to 96): height and width of the pictures that it sees in training.
        ranking_weight (`float`, *optional*, defaults to 1.0): of the ranking loss, the logistic loss of the difference
            of two versions of a picture.
        calibration_weight (`float`, *optional*, defaults to 1.0): of the cross entropy with the score that a picture
            of this strength should have, which makes scores of different pictures comparable.
        mixed_share (`float`, *optional*, defaults to 0.25): share of pictures with two degradations instead of one.
    """

    size: Positive[int] = 96
    ranking_weight: NonNegative[float] = 1.0
    calibration_weight: NonNegative[float] = 1.0
    mixed_share: Share = 0.25


class QualityTraining(Training):
    """Trains a quality scorer on pictures that are degraded as they are drawn.

    Each picture gives three: itself, and two that one degradation (or a pair of them) made of it at two strengths.

    Args:
        scorer (`QualityScorer`): is trained whole.
        objective (`QualityObjective`): what it learns from.
    """

    def __init__(self, scorer: QualityScorer, objective: QualityObjective) -> None:
        super().__init__()
        self.scorer, self.objective = scorer.requires_grad_(True), objective

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        pictures, strengths = self._versions(_frames(batch), rng)
        targets = CLEAN_SCORE + (RUINED_SCORE - CLEAN_SCORE) * strengths
        logits = self.scorer.logits(pictures.flatten(0, 1)).view_as(targets)
        better, worse = (logits[:, list(side)] for side in zip(*combinations(range(3), 2), strict=True))
        ranking = F.softplus(worse - better).mean()
        # less the targets' own entropy: zero where all scores are as they should be
        calibration = F.binary_cross_entropy_with_logits(logits, targets) - _entropy(targets)
        loss = self.objective.ranking_weight * ranking + self.objective.calibration_weight * calibration
        accuracy = (better > worse).float().mean()
        return loss, {"ranking": ranking, "calibration": calibration, "accuracy": accuracy}

    def _versions(self, frames: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Three versions of each picture, `[n, 3, 3, size, size]` in [0, 1], and their strengths, `[n, 3]`."""
        size = self.objective.size
        pictures, strengths = [], []
        for frame in frames:
            clean = _clean_picture(frame, size + CUT, rng)
            degradation = _draw_degradation(rng, self.objective.mixed_share)
            low = rng.uniform(0, 1 - LEAST_GAP)
            ladder = (0.0, low, rng.uniform(low + LEAST_GAP, 1))
            top, left = rng.integers(CUT + 1, size=2)
            seed = int(rng.integers(2**31))
            versions = torch.stack([_degraded(clean, degradation, strength, seed) for strength in ladder])
            pictures.append(versions[..., top : top + size, left : left + size])
            strengths.append(ladder)
        device = frames.device
        return torch.stack(pictures).to(device), torch.tensor(strengths, dtype=torch.float32, device=device)

    def validate(self, batch: Batch) -> dict[str, float]:
        """Measures whole frames as the cache's scorer sees them, every eighth of the clip.

        Returns:
            `dict[str, float]`: `accuracy_...` for each degradation, and `accuracy` for all: share of pairs of versions
            of a frame (five strengths) that rank correctly. `correlation`: of all scores with minus the strengths.
            `clean`: mean score of undegraded frames; `clean_above`: their share above the cache's threshold;
            `degraded_below`: share below it of those of strength 0.5 and more.
        """
        scores = self.validation_scores(_frames(batch)[::VALIDATION_STRIDE])
        better, worse = zip(*combinations(range(len(VALIDATION_STRENGTHS)), 2), strict=True)
        accuracies = {
            name: (ladder[:, better] > ladder[:, worse]).float().mean().item() for name, ladder in scores.items()
        }
        ladders = torch.stack(list(scores.values()))
        strengths = torch.tensor(VALIDATION_STRENGTHS).to(ladders)
        pairs = torch.stack([ladders.flatten(), -strengths.expand_as(ladders).flatten()])
        threshold = DynamicCacheManagement.quality_threshold
        return {f"accuracy_{name}": accuracy for name, accuracy in accuracies.items()} | {
            "accuracy": sum(accuracies.values()) / len(accuracies),
            "correlation": torch.corrcoef(pairs)[0, 1].item(),
            "clean": ladders[..., 0].mean().item(),
            "clean_above": (ladders[..., 0] > threshold).float().mean().item(),
            "degraded_below": (ladders[..., strengths >= VISIBLE] < threshold).float().mean().item(),
        }

    def validation_scores(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores frames, `[n, 3, height, width]` in [0, 1], degraded at each strength: `[n, strengths]` by name."""
        frames = F.interpolate(frames, size=(SCORED_SIZE, SCORED_SIZE), mode="bilinear", antialias=True).clamp(0, 1)
        scores = {}
        for name, degradation in DEGRADATIONS.items():
            ladders = [
                torch.stack([_degraded(frame, degradation, strength, seed=0) for strength in VALIDATION_STRENGTHS])
                for frame in frames.cpu()
            ]
            scores[name] = torch.stack([self.scorer(ladder.to(frames.device)) for ladder in ladders])
        return scores

    def save_pretrained(self, folder: Path) -> None:
        """Writes the scorer, in float16."""
        copy.deepcopy(self.scorer).half().save_pretrained(folder)


class PlannedQualityTraining(QualityTraining):
    """[`QualityTraining`] on pictures without contents, which nothing can be degraded of: for a plan."""

    def _versions(self, frames: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.objective.size
        return frames.new_empty(len(frames), 3, 3, size, size), frames.new_zeros(len(frames), 3)


def _frames(batch: Batch) -> torch.Tensor:
    """All frames of a batch, `[n, 3, height, width]` in [0, 1]."""
    return to_unit(batch.high.transpose(1, 2).flatten(0, 1))


def _clean_picture(frame: torch.Tensor, size: int, rng: np.random.Generator) -> torch.Tensor:
    """A window of the frame, made `size` high and wide; each side shrinks by a factor of its own."""
    slices = []
    for side in frame.shape[1:]:
        factor = np.exp(rng.uniform(np.log(SMALLEST_SHRINK), np.log(LARGEST_SHRINK)))
        window = min(side, round(size / factor))
        start = rng.integers(side - window + 1)
        slices.append(slice(start, start + window))
    window = frame[None, :, slices[0], slices[1]].cpu()
    picture = F.interpolate(window, size=(size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)
    return picture.flip(-1) if rng.random() < 0.5 else picture


def _draw_degradation(rng: np.random.Generator, mixed_share: float) -> Callable[[float], Transform]:
    names = rng.permutation(list(DEGRADATIONS))
    if rng.random() >= mixed_share:
        return DEGRADATIONS[names[0]]
    first, second = (DEGRADATIONS[name] for name in names[:2])
    # two together are as bad as one that is stronger
    return lambda strength: Compose(first(0.7 * strength), second(0.7 * strength))


def _degraded(
    picture: torch.Tensor, degradation: Callable[[float], Transform], strength: float, seed: int
) -> torch.Tensor:
    """A version of a picture, `[3, height, width]` in [0, 1]; equal seeds degrade alike, only more or less."""
    pixels = (picture * 255).round().byte().permute(1, 2, 0)[None].numpy()
    if strength > 0:
        pixels = degradation(strength)(pixels, np.random.default_rng(seed))
    return torch.from_numpy(np.ascontiguousarray(pixels[0])).permute(2, 0, 1).float() / 255


def _entropy(shares: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy(shares, shares)
