# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A seed code: what a text leaves open, drawn from the stream's seed and told to the generator beside the text."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_HARMONICS = 4  # of the clock: one, two, three and four turns in a period
_BLOCKS = 3


def clock(code: torch.Tensor, position: torch.Tensor, frames: int, period: float) -> torch.Tensor:
    """Returns how much of its period has passed at each frame, `[batch, frames]`, float64 in [0, 1).

    A stream's clock starts anywhere in the period, and its pace is within a factor of `2 ** 0.25` of one turn in
    `period` frames: the first two values of the code, which are normal, say so.

    Args:
        code (`torch.Tensor`): `[batch, code_dim]`, normal values.
        position (`torch.Tensor`, 0-d int64): index of the first frame in the stream.
        frames (`int`): temporal patches.
        period (`float`): in temporal patches.
    """
    uniform = torch.special.ndtr(code[:, :2].double())
    pace = 2 ** (0.5 * uniform[:, 1:] - 0.25)
    numbers = position.to(code.device) + torch.arange(frames, device=code.device)
    return (uniform[:, :1] + pace * numbers.double() / period) % 1


class SeedCodeEmbedding(nn.Module):
    """Embeds seed code, clock and text together, for each frame.

    One part is added to the timestep's embedding, so that it reaches each block as its modulation (as the class does
    in DiT, arXiv 2212.09748). The other are anchors: places in the frame, with a size, which tokens are told their
    position relative to. So what follows from code, text and time is computed once a frame and not once a token, and a
    thing that moves is drawn alike wherever it is. The code enters as values that are uniform in (-1, 1), the clock as
    its place in the period and the first harmonics of that.

    Args:
        code_dim (`int`): values of the code, at least 2.
        text_dim (`int`): channels of the text encoder's output.
        period (`float`): of the clock, in temporal patches.
        anchors (`int`): number of them.
        dim (`int`): channels of the embedding.
    """

    def __init__(self, code_dim: int, text_dim: int, period: float, anchors: int, dim: int) -> None:
        super().__init__()
        self.period, self.anchors = period, anchors
        width = 2 * dim
        self.linear_in = nn.Linear(code_dim + 1 + 2 * _HARMONICS + text_dim, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(_BLOCKS))
        self.linears_1 = nn.ModuleList(nn.Linear(width, width) for _ in range(_BLOCKS))
        self.linears_2 = nn.ModuleList(nn.Linear(width, width) for _ in range(_BLOCKS))
        self.linear_out = nn.Linear(width, dim)
        if anchors:
            self.to_anchors = nn.Linear(width, 3 * anchors)
            self.anchor_proj = nn.Linear(anchors * AnchorFeatures.count, dim)

    def forward(
        self, code: torch.Tensor, text: torch.Tensor, position: torch.Tensor, frames: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns what is added to the timestep's embedding, `[batch, frames, dim]`, and the anchors, if any.

        Anchors are `[batch, frames, anchors, 3]`: column from the middle, row from the top and size, all in heights of
        the frame, the size as a logarithm.

        Args:
            code (`torch.Tensor`): `[batch, code_dim]`, normal values.
            text (`torch.Tensor`): `[batch, text_dim]`, see [`text_summary`].
            position (`torch.Tensor`, 0-d int64): index of the first frame in the stream.
            frames (`int`): temporal patches.
        """
        inputs = (self._numbers(code, position, frames), text[:, None].expand(-1, frames, -1))
        hidden = self.linear_in(torch.cat([part.to(self.linear_in.weight) for part in inputs], dim=-1))
        for norm, first, second in zip(self.norms, self.linears_1, self.linears_2, strict=True):
            hidden = hidden + second(F.silu(first(norm(hidden))))
        anchors = self.to_anchors(hidden).unflatten(-1, (-1, 3)) if self.anchors else None
        return self.linear_out(hidden), anchors

    def _numbers(self, code: torch.Tensor, position: torch.Tensor, frames: int) -> torch.Tensor:
        """Code and clock, `[batch, frames, code_dim + 1 + 2 * _HARMONICS]`, float64."""
        # MPS has no float64: the few numbers are computed on the CPU
        code, position = (x.cpu() if x.device.type == "mps" else x for x in (code.detach(), position))
        phase = clock(code, position, frames, self.period)[..., None]
        angles = 2 * torch.pi * phase * torch.arange(1, 1 + _HARMONICS, device=code.device)
        uniform = torch.erf(code.double() / 2**0.5)[:, None].expand(-1, frames, -1)
        return torch.cat([uniform, 2 * phase - 1, angles.cos(), angles.sin()], dim=-1)

    def beside_anchors(self, anchors: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Tells tokens where they lie, `[batch, frames * h * w, dim]`, for `grid` = (h, w) square tokens.

        No gradient goes to the anchors: through sinusoids it would be of no use, and they have a loss of their own.
        """
        features = AnchorFeatures.of(anchors.detach().float(), grid).to(self.anchor_proj.weight.dtype)
        return self.anchor_proj(features)


class AnchorFeatures:
    """Positions relative to anchors: sinusoids of the distance, and the distance in sizes of the anchor, bounded."""

    octaves = 4
    count = 4 * octaves + 3

    @classmethod
    def of(cls, anchors: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Returns `[batch, frames * h * w, anchors * count]` for anchors as [`SeedCodeEmbedding`] gives them."""
        height, width = grid
        rows = (torch.arange(height, device=anchors.device) + 0.5) / height
        columns = (torch.arange(width, device=anchors.device) + 0.5 - width / 2) / height
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1).flip(-1)
        away = places[:, None] - anchors[:, :, None, :, :2]
        sizes = away / anchors[:, :, None, :, 2:].exp()
        octaves = torch.pi * 2.0 ** torch.arange(cls.octaves, device=anchors.device)
        angles = (away[..., None] * octaves).flatten(-2)
        near = torch.exp(-sizes.square().sum(-1, keepdim=True) / 8)
        features = torch.cat([angles.cos(), angles.sin(), torch.tanh(sizes / 2), near], dim=-1)
        return features.flatten(-2).flatten(1, 2)


def text_summary(text: torch.Tensor) -> torch.Tensor:
    """Returns the mean of a text's tokens, `[batch, text_dim]`, those that only fill it up (all zeros) left out."""
    count = text.ne(0).any(dim=-1).sum(dim=1, keepdim=True).clamp_min(1)
    return text.sum(dim=1) / count.to(text.dtype)
