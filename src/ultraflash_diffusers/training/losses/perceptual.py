# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Perceptual losses: distances of deep features, unit length over the channels (LPIPS, Zhang et al., 2018)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from ...pixels import to_unit
from ...rewards import QualityScorer, packaged_quality_scorer

PERCEPTUAL_LOSSES = ("quality_scorer", "st_lpips_alex", "st_lpips_vgg", "lpips_alex", "lpips_vgg")
# the packaged scorer answers to the slightest change: in latents its gradients are some thousand times those of the
# wavelet loss, and at larger weights nothing else is learnt
PERCEPTUAL_WEIGHTS = dict.fromkeys(PERCEPTUAL_LOSSES, 0.5) | {"quality_scorer": 2e-4}


class PerceptualLoss(nn.Module):
    """The mean perceptual distance of frames to their targets; its weights are frozen.

    Args:
        name (`str`, *optional*, defaults to `"quality_scorer"`): whose features are compared:
            - `"quality_scorer"`: those of the packaged [`QualityScorer`]'s stages, all of equal weight. Needs nothing.
              It has seen degraded pictures and no people's judgements: over our degradations it orders pictures less
              like shift-tolerant LPIPS does (rank correlation 0.51) than the mean squared error (0.90). It is there
              for what the squared error forgives, blur; use it beside pixel losses.
            - `"st_lpips_alex"`, `"st_lpips_vgg"`: shift-tolerant LPIPS (Ghildyal and Liu, 2022), with the weights that
              the package `stlpips-pytorch` brings (extra `perceptual`). VGG costs some twenty times as much.
            - `"lpips_alex"`, `"lpips_vgg"`: the package `lpips`, which downloads the networks through torchvision.
        scorer (`QualityScorer`, *optional*): for `"quality_scorer"`: another one than the packaged one.

    Raises:
        ValueError: another name, or a scorer for another loss.
        ImportError: the package that a loss needs cannot be imported.
        RuntimeError: its weights cannot be had.
        FileNotFoundError: this installation has no packaged scorer.
    """

    def __init__(self, name: str = "quality_scorer", scorer: QualityScorer | None = None) -> None:
        super().__init__()
        if name not in PERCEPTUAL_LOSSES:
            raise ValueError(f"`name` must be one of {PERCEPTUAL_LOSSES}, got {name!r}")
        if scorer is not None and name != "quality_scorer":
            raise ValueError(f"`scorer` is for the loss 'quality_scorer' only, `name` is {name!r}")
        self.name = name
        self.distance = _distance(name, scorer).eval().requires_grad_(False)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the mean distance, a scalar, computed in float32.

        Args:
            prediction (`torch.Tensor`): `[batch, 3, frames, height, width]`, nominally in [-1, 1], at least 32 pixels
                high and wide.
            target (`torch.Tensor`): the same shape.

        Raises:
            ValueError: shapes that differ, or frames that are too small or no pictures.
        """
        shape = tuple(prediction.shape)
        if shape != tuple(target.shape):
            raise ValueError(f"`prediction` and `target` must have the same shape, got {shape}, {tuple(target.shape)}")
        if len(shape) != 5 or shape[1] != 3 or min(shape[3:]) < 32:
            raise ValueError(
                f"`prediction` must have shape [batch, 3, frames, height, width], 32 pixels a side or more: {shape}"
            )
        with torch.autocast(prediction.device.type, enabled=False):
            ours, theirs = (video.float().transpose(1, 2).flatten(0, 1) for video in (prediction, target))
            return self.distance(ours, theirs).mean()


class _ScorerDistance(nn.Module):
    """Mean over the stages of the distance of a quality scorer's features."""

    def __init__(self, scorer: QualityScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        ours, theirs = (self.scorer.features(to_unit(pixels)) for pixels in (prediction, target))
        distances = [_squared_distance(a, b).sum(1).mean((1, 2)) for a, b in zip(ours, theirs, strict=True)]
        return torch.stack(distances).mean(0)


@dataclass(frozen=True)
class _Slice:
    """A trunk's layers up to the next features that are compared.

    Args:
        convolutions (`tuple` of `str`): their names in the weights.
        pooling (`int`, *optional*): side of the maximum that is taken before them, and the picture halved.
        halves (`bool`, *optional*, defaults to `False`): whether the convolution takes steps of two: the picture is
            halved after it.
    """

    convolutions: tuple[str, ...]
    pooling: int | None = None
    halves: bool = False


_ALEX = (
    _Slice(("slice1.0",), halves=True),
    _Slice(("slice2.5",), 3),
    _Slice(("slice3.9",), 3),
    _Slice(("slice4.11",)),
    _Slice(("slice5.13",)),
)
_VGG = (
    _Slice(("slice1.0", "slice1.2")),
    _Slice(("slice2.6", "slice2.8"), 2),
    _Slice(("slice3.12", "slice3.14", "slice3.16"), 2),
    _Slice(("slice4.20", "slice4.22", "slice4.24"), 2),
    _Slice(("slice5.28", "slice5.30", "slice5.32"), 2),
)


class _ShiftTolerant(nn.Module):
    """Shift-tolerant LPIPS on a network that blurs before it subsamples.

    Written here, and only fed with the package's weights, because importing the package needs torchvision.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weights: dict[str, torch.Tensor], slices: Sequence[_Slice]) -> None:
        super().__init__()
        self.slices = slices
        self.convolutions = nn.ModuleList(
            nn.ModuleList(_convolution(weights, f"net.{name}") for name in part.convolutions) for part in slices
        )
        for index in range(len(slices)):
            self.register_buffer(f"importance_{index}", weights[f"lin{index}.model.1.weight"])
        self.register_buffer("shift", weights["scaling_layer.shift"])
        self.register_buffer("scale", weights["scaling_layer.scale"])

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        pairs = zip(self._features(prediction), self._features(target), strict=True)
        distances = [
            F.conv2d(_squared_distance(ours, theirs), self.get_buffer(f"importance_{index}")).mean((1, 2, 3))
            for index, (ours, theirs) in enumerate(pairs)
        ]
        return torch.stack(distances).sum(0)

    def _features(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        features, compared = (pixels - self.shift) / self.scale, []
        for part, convolutions in zip(self.slices, self.convolutions, strict=True):
            if part.pooling is not None:
                features = _blurred_half(F.max_pool2d(features, kernel_size=part.pooling, stride=1))
            for convolution in cast(nn.ModuleList, convolutions):
                features = convolution(features)
                features = F.relu(_blurred_half(features) if part.halves else features)
            compared.append(features)
        return compared


_SHIFT_TOLERANT = {"st_lpips_alex": ("alex", _ALEX), "st_lpips_vgg": ("vgg", _VGG)}


def _distance(name: str, scorer: QualityScorer | None) -> nn.Module:
    if name == "quality_scorer":
        return _ScorerDistance(packaged_quality_scorer() if scorer is None else scorer)
    if name in _SHIFT_TOLERANT:
        trunk, slices = _SHIFT_TOLERANT[name]
        return _ShiftTolerant(_shift_tolerant_weights(name, trunk), slices)
    return _lpips(name.removeprefix("lpips_"))


def _lpips(trunk: str) -> nn.Module:
    try:
        import lpips
    except ImportError as error:
        raise ImportError(
            f"the loss 'lpips_{trunk}' needs `lpips` and torchvision, which cannot be imported ({error}): "
            "pip install lpips torchvision"
        ) from error
    try:
        return lpips.LPIPS(net=trunk, verbose=False)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"`lpips` could not load the {trunk} network, which torchvision downloads: {error}"
        ) from error


def _shift_tolerant_weights(name: str, trunk: str) -> dict[str, torch.Tensor]:
    package = importlib.util.find_spec("stlpips_pytorch")
    if package is None or package.origin is None:
        raise ImportError(
            f"the loss {name!r} needs `stlpips-pytorch`, which is not installed: "
            'pip install "ultraflash_diffusers[perceptual]"'
        )
    file = Path(package.origin).parent / "weights" / "vST0.0" / f"{trunk}_shift_tolerant.pth"
    if not file.is_file():
        raise RuntimeError(f"this version of `stlpips-pytorch` has no weights {str(file)!r}")
    return torch.load(file, map_location="cpu", weights_only=True)


def _convolution(weights: dict[str, torch.Tensor], name: str) -> nn.Conv2d:
    weight = weights[f"{name}.weight"]
    side = weight.shape[-1]
    # AlexNet's: 2 for the first one, of 11, and then what keeps the size
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], side, padding=min(side // 2, 2))
    layer.load_state_dict({"weight": weight, "bias": weights[f"{name}.bias"]})
    return layer


def _blurred_half(features: torch.Tensor) -> torch.Tensor:
    """Every second place after a 3x3 binomial blur; two more places on every side, mirrored."""
    binomial = torch.tensor([0.25, 0.5, 0.25], dtype=features.dtype, device=features.device)
    kernel = torch.outer(binomial, binomial).expand(features.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(features, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=features.shape[1])


def _squared_distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Squared differences, `[n, channels, height, width]`, of features that have unit length over the channels."""
    return (F.normalize(ours, dim=1, eps=1e-10) - F.normalize(theirs, dim=1, eps=1e-10)).square()
