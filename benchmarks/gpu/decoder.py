# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Other ways to compute the decoder's memory block beside the plain one: what a lever would gain."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu.rates import milliseconds
from benchmarks.gpu.results import Report
from ultraflash_diffusers.models.causal_memory import CausalMemoryBlock
from ultraflash_diffusers.pipelines.execution.race import TOLERANCE, relative_error

# channels, height and width of the features at 1K, of the widest stage and of the largest
_STAGES = ((256, 120, 208), (64, 480, 832))
_FRAMES = 4

Compute = Callable[[CausalMemoryBlock, torch.Tensor, torch.Tensor], torch.Tensor]


def time_memory_blocks(report: Report) -> None:
    """The stage `decoder`: one memory block on the frames of a latent, each way compiled where the plain one is."""
    shrink = 8 if report.dry else 1
    for channels, height, width in _STAGES:
        block = CausalMemoryBlock(channels).to(report.device, torch.bfloat16)
        for convolution in _convolutions(block):
            convolution.weight.data = convolution.weight.to(memory_format=torch.channels_last)
        features = torch.randn(_FRAMES + 1, channels, height // shrink, width // shrink, device=report.device)
        features = features.to(torch.bfloat16, memory_format=torch.channels_last)
        expected = plain(block, features[1:], features[:-1])
        for name, compute in _WAYS.items():
            if report.dry and compute is fused:  # cuDNN's alone
                continue
            report.attempt(f"{name} {channels}", _time, report, name, compute, block, features, expected)


@torch.no_grad()
def _time(
    report: Report,
    name: str,
    compute: Compute,
    block: CausalMemoryBlock,
    features: torch.Tensor,
    expected: torch.Tensor,
) -> None:
    call = compute if report.dry or compute is fused else torch.compile(compute, dynamic=False)
    error = relative_error(call(block, features[1:], features[:-1]), expected)
    if error > TOLERANCE[features.dtype]:
        raise ValueError(f"it is not the plain block: its relative error is {error:.1e}")
    taken = milliseconds(lambda: call(block, features[1:], features[:-1]), report.device)
    report.value(f"{block.channels}_{name}", taken, "ms")


@torch.no_grad()
def plain(block: CausalMemoryBlock, frames: torch.Tensor, pasts: torch.Tensor) -> torch.Tensor:
    """What the block does: a convolution of both, joined.

    Args:
        block ([`CausalMemoryBlock`]): with ReLUs.
        frames (`torch.Tensor`): `[frames, channels, height, width]`.
        pasts (`torch.Tensor`): likewise, one frame earlier each.
    """
    return F.relu(block.conv(torch.cat([frames, pasts], dim=1)) + frames)


def split(block: CausalMemoryBlock, frames: torch.Tensor, pasts: torch.Tensor) -> torch.Tensor:
    """Two convolutions instead of a concatenation. The arguments are those of [`plain`]."""
    first, second, third = _convolutions(block)
    own, past = first.weight.chunk(2, dim=1)
    hidden = F.relu(F.conv2d(frames, own, first.bias, padding=1) + F.conv2d(pasts, past, padding=1))
    return F.relu(third(F.relu(second(hidden))) + frames)


def fused(block: CausalMemoryBlock, frames: torch.Tensor, pasts: torch.Tensor) -> torch.Tensor:
    """cuDNN's convolutions with bias, sum and ReLU in one. The arguments are those of [`plain`]."""
    first, second, third = _convolutions(block)
    once = ([1, 1], [1, 1], [1, 1], 1)  # stride, padding, dilation, groups
    hidden = torch.cudnn_convolution_relu(torch.cat([frames, pasts], dim=1), first.weight, first.bias, *once)
    hidden = torch.cudnn_convolution_relu(hidden, second.weight, second.bias, *once)
    return torch.cudnn_convolution_add_relu(hidden, third.weight, frames, 1.0, third.bias, *once)


def _convolutions(block: CausalMemoryBlock) -> list[nn.Conv2d]:
    return [layer for layer in block.conv if isinstance(layer, nn.Conv2d)]


_WAYS: dict[str, Compute] = {"plain": plain, "split": split, "fused": fused}
