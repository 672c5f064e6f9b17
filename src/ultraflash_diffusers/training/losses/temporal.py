# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Losses of motion: how frames change from one to the next."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def warp(frames: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Fetches each pixel from where the flow points, bilinearly; outside there are zeros.

    Args:
        frames (`torch.Tensor`): `[n, channels, height, width]`.
        flow (`torch.Tensor`): `[n, 2, height, width]`, pixels to the right and down.
    """
    height, width = frames.shape[-2:]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None]
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype)
    # pixel centres, in [-1, 1] from border to border
    x = (2 * (columns + flow[:, 0]) + 1) / width - 1
    y = (2 * (rows + flow[:, 1]) + 1) / height - 1
    return F.grid_sample(frames, torch.stack([x, y], dim=-1).to(frames.dtype), align_corners=False)


def warped_temporal_loss(prediction: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Flow-warped temporal loss (paper): the mean over t of `|x_t - warp(x_{t-1}, F_t)|`, where the flow stays inside.

    The flow is that of the target's frames, so that the prediction has to move as the target does.

    Args:
        prediction (`torch.Tensor`): `[batch, channels, frames, height, width]`, at least two frames.
        flow (`torch.Tensor`): `[batch, frames - 1, 2, height, width]` from [`optical_flow`]: for each pixel of frame
            t, the way to where it was in frame t - 1.
    """
    current, past = (frames.transpose(1, 2).flatten(0, 1) for frames in (prediction[:, :, 1:], prediction[:, :, :-1]))
    flow = flow.flatten(0, 1).to(prediction.dtype)
    inside = warp(torch.ones_like(current[:, :1]), flow) > 0.999
    error = (current - warp(past, flow)).abs() * inside
    return error.sum() / (inside.sum() * prediction.shape[1]).clamp_min(1)


def temporal_difference_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of `|(x_t - x_{t-1}) - (y_t - y_{t-1})|`: zero at the target, and it needs no flow.

    Args:
        prediction (`torch.Tensor`): `[batch, channels, frames, height, width]`, at least two frames.
        target (`torch.Tensor`): the same shape.
    """
    return (prediction - target).diff(dim=2).abs().mean()
