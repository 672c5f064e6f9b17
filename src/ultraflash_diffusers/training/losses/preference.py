# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Preference optimisation of flow-matching networks (paper, "Phase II").

It is Diffusion-DPO (Wallace et al., arXiv 2311.12908) with the flow in the place of the noise. A network's flow `v`
at `z = (1 - sigma) x + sigma eps` explains a clean sample `x` the better, the nearer it is to `eps - x`; the pair's
winner `w` and loser `l` are noised with the same `eps` and `sigma`, and a frozen reference says what counts as better:

    margin = -beta / 2 * [ (|v(w) - (eps - w)|^2 - |v_ref(w) - (eps - w)|^2) - (the same for l) ]
    loss   = -log sigmoid(margin)

**Sign.** The margin is positive where the network, measured against the reference, has come nearer to the winner than
to the loser; a step against the loss's gradient raises it. At the reference it is 0 and the loss is log 2.

**Scale.** `| |^2` is the mean over a sample's elements, so that a pair counts the same at every size, or their sum, as
the formula is written. Of `n` elements the mean takes a beta `n` times as large: Diffusion-DPO's 2000 for 4x64x64
latents is 0.12 of a sum, and the paper says 0.1 without saying of what. With the sum a larger sample counts for more,
and a smaller change of the network decides a pair.

**At sigma 1**, all that a one-step network ever sees, winner and loser are the same input, the noise alone. The
squares cancel, and with the clean prediction `x(eps) = eps - v` the margin is `beta <x - x_ref, w - l>`: it is linear
in the network, pushes along `w - l`, and stops where the sigmoid saturates. This is not an approximation there: the
bound of Diffusion-DPO sums over the transitions of a sampling chain, and the chain of a one-step network has one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F


def squared_error_change(
    flow: torch.Tensor,
    reference_flow: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None = None,
    reduction: Literal["mean", "sum"] = "sum",
) -> torch.Tensor:
    """`|flow - target|^2 - |reference_flow - target|^2` of each sample, in float32; negative is better.

    It is computed as `<flow - reference_flow, flow + reference_flow - 2 target>`: a small difference of two large sums
    would leave little of float32's digits, and would not be exactly 0 where both are equal.

    Args:
        flow (`torch.Tensor`): `[batch, ...]`, of the trained network.
        reference_flow (`torch.Tensor`): the same shape.
        target (`torch.Tensor`): the same shape, `eps - x`.
        weights (`torch.Tensor`, *optional*): of the squares, broadcast over a sample, for instance
            [`~ultraflash_diffusers.training.losses.linear_decoding.pixel_weights`].
        reduction (`str`, *optional*, defaults to `"sum"`): of a sample's elements, or `"mean"`.

    Returns:
        `torch.Tensor`: `[batch]`.
    """
    flow, reference_flow, target = flow.float(), reference_flow.float(), target.float()
    change = (flow - reference_flow) * (flow + reference_flow - 2 * target)
    change = (change if weights is None else weights * change).flatten(1)
    return change.mean(1) if reduction == "mean" else change.sum(1)


def preference_margin(winner_change: torch.Tensor, loser_change: torch.Tensor, beta: float = 0.1) -> torch.Tensor:
    """How much more likely than under the reference the network makes the winner, relative to the loser (log odds).

    Args:
        winner_change (`torch.Tensor`): `[batch]`, of [`squared_error_change`].
        loser_change (`torch.Tensor`): `[batch]`, with the same noise and noise level.
        beta (`float`, *optional*, defaults to 0.1): how dear distance from the reference is (paper: 0.1); a larger one
            keeps the network nearer to it.

    Returns:
        `torch.Tensor`: `[batch]`.
    """
    return -beta / 2 * (winner_change - loser_change)


def preference_loss(margin: torch.Tensor) -> torch.Tensor:
    """`-log sigmoid(margin)`, the mean over the pairs; log 2 at the reference.

    Args:
        margin (`torch.Tensor`): `[batch]`, of [`preference_margin`].
    """
    return -F.logsigmoid(margin).mean()
