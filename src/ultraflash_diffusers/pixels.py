# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The ranges that pixels come in: [-1, 1] in networks, [0, 1] in pictures and rewards, 8-bit levels in files."""

from __future__ import annotations

import numpy as np
import torch

LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in the brightness, BT.601


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """Brings floating-point pixels from [-1, 1] to [0, 1]; what is beyond stays beyond."""
    return pixels * 0.5 + 0.5


def from_unit(pixels: torch.Tensor) -> torch.Tensor:
    """Brings floating-point pixels from [0, 1] to [-1, 1]; what is beyond stays beyond."""
    return pixels * 2 - 1


def from_levels(levels: torch.Tensor) -> torch.Tensor:
    """Brings 8-bit levels, in any layout, to float32 in [-1, 1]."""
    return levels.float() / 127.5 - 1


def to_levels(pixels: torch.Tensor) -> torch.Tensor:
    """Rounds pixels to 8-bit levels where they lie.

    Args:
        pixels (`torch.Tensor`): `[batch, 3, frames, height, width]` in [-1, 1]; what is beyond is clipped.

    Returns:
        `torch.Tensor`: `[batch, frames, height, width, 3]` uint8.
    """
    levels = pixels.float().add(1).mul_(127.5).clamp_(0, 255).round_().to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).contiguous()


def in_memory(levels: torch.Tensor) -> np.ndarray:
    """Brings frames of [`to_levels`] to the CPU, from a GPU through pinned memory."""
    if levels.device.type == "cuda":
        pinned = torch.empty(levels.shape, dtype=torch.uint8, pin_memory=True).copy_(levels, non_blocking=True)
        torch.cuda.current_stream(levels.device).record_event().synchronize()
        levels = pinned
    return levels.numpy()
