# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The no-reference quality network that ships with the package."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from ..models.loading import Network
from ..pixels import from_unit
from .reward import check_frames

# a grey level of 255 is at the bend from the linear to the logarithmic
DETAIL_GAIN = 128.0


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.conv_2(F.silu(self.conv_1(F.silu(features))))


class QualityScorer(Network):
    r"""Scores pictures without a reference: a [`Reward`], and the `quality_scorer` of `DynamicCacheManagement`.

    It sees a picture and, in a nearly logarithmic scale, its details. Every stage halves the resolution; what all of
    them see at a place gives a local quality and a local weight (blur does not show on a plain wall), and the weighted
    mean goes through a logistic function. It is trained by ranking: of two versions of a picture, the one that was
    degraded more must score lower (`training/train_quality_scorer.py`).

    It is made to compare and to choose. Gradients flow, but they mislead: following them from a blurred picture raises
    the score to 1 with noise that one hardly sees, and does not sharpen it. As a loss it needs a small weight, beside
    losses that hold the picture in place, and another measure to tell whether it helped.

    Scores depend on the size at which a picture is looked at, as a blurred picture is sharp again once it is made
    small: the cache's scorer sees 224x224, and for numbers to be compared with each other they have to be taken at one
    size.

    Args:
        channels (`tuple[int, ...]`, *optional*, defaults to `(16, 32, 64, 80)`): width of each stage.
        num_blocks (`int`, *optional*, defaults to 1): residual blocks of each stage.
        head_channels (`int`, *optional*, defaults to 64): width of the head's hidden layer.
    """

    @register_to_config
    def __init__(
        self, channels: tuple[int, ...] = (16, 32, 64, 80), num_blocks: int = 1, head_channels: int = 64
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(f"`channels` must be one or more positive widths, got {channels}")
        stages: list[nn.Module] = []
        for stage, width in enumerate(channels):
            if stage == 0:
                # a border of zeros would be an edge that the picture does not have
                head = nn.Conv2d(6, width, kernel_size=5, stride=2, padding=2, padding_mode="replicate")
            else:
                head = nn.Conv2d(channels[stage - 1], width, kernel_size=3, stride=2, padding=1)
            stages.append(nn.Sequential(head, *(_ResidualBlock(width) for _ in range(num_blocks))))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Conv2d(sum(channels), head_channels, kernel_size=1)
        # local quality and the logarithm of its weight
        self.proj_out = nn.Conv2d(head_channels, 2, kernel_size=1)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        nn.init.normal_(self.proj_out.weight, std=0.01)

    @property
    def smallest_size(self) -> int:
        """Least height and width of a picture, in pixels: one place of the last stage."""
        return 2 ** len(self.stages)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Scores frames.

        Args:
            frames (`torch.Tensor`): `[n, 3, height, width]` in [0, 1], at least `smallest_size` high and wide.

        Returns:
            `torch.Tensor`: `[n]` in (0, 1), float32, higher is better.

        Raises:
            ValueError: frames of another shape or range.
        """
        check_frames(frames, self.smallest_size)
        return torch.sigmoid(self.logits(frames))

    def logits(self, frames: torch.Tensor) -> torch.Tensor:
        """The scores before the logistic function, `[n]`, float32; nothing is checked."""
        stages = self.features(frames)
        height, width = stages[-1].shape[-2:]
        seen = [F.adaptive_avg_pool2d(F.silu(stage), (height, width)) for stage in stages]
        hidden = F.silu(self.head(torch.cat(seen, dim=1)))
        quality, weight = self.proj_out(hidden).float().flatten(2).unbind(1)
        return (quality * weight.softmax(-1)).sum(-1)

    def features(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """What each stage sees, `[n, channels, height / 2^stage, width / 2^stage]` from stage 1 on, sizes rounded up.

        Args:
            frames (`torch.Tensor`): `[n, 3, height, width]`, nominally in [0, 1]; nothing is checked.
        """
        frames = frames.to(self.dtype)
        features, stages = torch.cat([from_unit(frames), _details(frames)], dim=1), []
        for stage in self.stages:
            features = stage(features)
            stages.append(features)
        return stages


def _details(frames: torch.Tensor) -> torch.Tensor:
    """What pixels differ by from the mean around them, in a scale that shows the weakest texture next to edges."""
    mean = F.avg_pool2d(frames, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    return torch.asinh(DETAIL_GAIN * (frames - mean))


def packaged_quality_scorer() -> QualityScorer:
    """Loads the scorer that ships with the package: on the CPU, in float32, its weights frozen.

    Raises:
        FileNotFoundError: this installation holds none.
    """
    from .. import default_checkpoint

    folder = default_checkpoint() / "quality_scorer"
    if not folder.is_dir():
        raise FileNotFoundError(f"no packaged quality scorer in {folder}: name one of your own instead")
    return QualityScorer.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)
