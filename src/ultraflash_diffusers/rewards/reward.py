# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a reward is, and the weighted mean of several (paper, "Phase I": CLIP-IQA+, MUSIQ and LAION-Aesthetic)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

# what rounding in half precision may leave beyond [0, 1]
_TOLERANCE = 1e-3


class Reward(Protocol):
    """Anything that scores frames: `[n, 3, height, width]` in [0, 1] to `[n]`, higher is better.

    The rewards of this package are `torch.nn.Module`s with frozen weights whose scores lie in [0, 1] or close to it,
    and gradients flow through them to the frames. They refuse frames outside [0, 1]: clamp a network's output before.
    """

    def __call__(self, frames: torch.Tensor) -> torch.Tensor: ...


class HybridReward(nn.Module):
    """The weighted mean of rewards.

    Args:
        rewards (`Mapping[str, Reward]`): by name, at least one.
        weights (`Mapping[str, float]`, *optional*): one for each name, 0 or above and not all 0; equal by default.
            Only their ratios count, so that the result keeps the range of the rewards.

    Raises:
        ValueError: no rewards, or weights that do not fit them.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        if not rewards:
            raise ValueError("`rewards` is empty: there is nothing to score with")
        weights = dict.fromkeys(rewards, 1.0) if weights is None else weights
        if weights.keys() != rewards.keys():
            raise ValueError(f"`weights` must be for {sorted(rewards)}, they are for {sorted(weights)}")
        if min(weights.values()) < 0 or not sum(weights.values()) > 0:
            raise ValueError(f"`weights` must be 0 or above and not all 0, got {dict(weights)}")
        total = sum(weights.values())
        self.weights = {name: weight / total for name, weight in weights.items()}
        self.rewards = dict(rewards)
        # registered, so that `.to` moves the networks among them
        self.networks = nn.ModuleList(reward for reward in rewards.values() if isinstance(reward, nn.Module))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Scores frames.

        Args:
            frames (`torch.Tensor`): `[n, 3, height, width]` in [0, 1].

        Returns:
            `torch.Tensor`: `[n]`, float32.

        Raises:
            ValueError: frames of another shape or range, or a reward that does not return one score for each.
        """
        check_frames(frames)
        total = torch.zeros(len(frames), device=frames.device)
        for name, reward in self.rewards.items():
            scores = reward(frames)
            if scores.shape != total.shape:
                raise ValueError(
                    f"reward {name!r} must return one score for each of the {len(frames)} frames, got a tensor of "
                    f"shape {tuple(scores.shape)}"
                )
            total = total + self.weights[name] * scores.float()
        return total


def check_frames(frames: torch.Tensor, smallest: int = 1) -> None:
    """Checks that `frames` is a floating-point `[n, 3, height, width]` tensor in [0, 1].

    Args:
        frames (`torch.Tensor`): what to check; a thousandth beyond the range passes as rounding.
        smallest (`int`, *optional*, defaults to 1): the least height and width.

    Raises:
        TypeError: `frames` is no tensor.
        ValueError: another shape, no floating-point numbers, or values outside the range (not a number among them).
    """
    if not isinstance(frames, torch.Tensor):
        raise TypeError(f"`frames` must be a torch.Tensor, got {type(frames).__name__}")
    shape = tuple(frames.shape)
    if frames.ndim != 4 or shape[1] != 3 or shape[0] == 0:
        raise ValueError(f"`frames` must have shape [n, 3, height, width], got {shape}")
    if min(shape[2:]) < smallest:
        raise ValueError(f"`frames` must be at least {smallest} pixels high and wide, got {shape}")
    if not frames.is_floating_point():
        raise ValueError(f"`frames` must be floating-point numbers in [0, 1], got {frames.dtype}")
    low, high = (value.item() for value in frames.detach().aminmax())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise ValueError(f"`frames` must be in [0, 1], got values from {low:.4g} to {high:.4g}")
