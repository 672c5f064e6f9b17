# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A seed code: what a text leaves open, drawn from the stream's seed and told to the generator beside the text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

_HARMONICS = 8  # of the clock: turns in a period


@dataclass
class SeedPlaces:
    """Where in the frame the things lie that text, code and time decide, in heights of the frame.

    Columns count from the middle, rows from the top. A `moment` is a frame of those that a temporal patch stands for.

    Args:
        anchors (`torch.Tensor`): `[batch, frames, moments, anchors, 3]`: column, row, and the logarithm of half the
            side of a square that holds what is there.
        ridges (`torch.Tensor`): `[batch, frames, ridges, RIDGE_TERMS]`: lines from the left border to the right; the
            row at column x is `a + b cos 2x + c sin 2x + d cos 4x + e sin 4x`.
        covers (`torch.Tensor`, *optional*): `[batch, frames, moments, anchors]`: what is added to the logit of the
            opacity of what is at an anchor.
    """

    anchors: torch.Tensor
    ridges: torch.Tensor
    covers: torch.Tensor | None = None

    def to(self, device: torch.device) -> SeedPlaces:
        """The same on a device."""
        covers = None if self.covers is None else self.covers.to(device)
        return SeedPlaces(self.anchors.to(device), self.ridges.to(device), covers)


RIDGE_TERMS = 5


def ridge_terms(columns: torch.Tensor) -> torch.Tensor:
    """Returns what a ridge's numbers are multiplied by at `columns` (heights of the frame), `[..., RIDGE_TERMS]`."""
    angles = torch.stack([2 * columns, 4 * columns], dim=-1)
    waves = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(-2)
    return torch.cat([torch.ones_like(columns)[..., None], waves], dim=-1)


def clock(code: torch.Tensor, position: torch.Tensor, frames: int, period: float, moments: int = 1) -> torch.Tensor:
    """Returns how much of its period has passed, `[batch, frames, moments]`, float64 in [0, 1).

    A stream's clock starts anywhere in the period, and its pace is within a factor of `2 ** 0.25` of one turn in
    `period` frames: the first two values of the code, which are normal, say so.

    Args:
        code (`torch.Tensor`): `[batch, code_dim]`, normal values.
        position (`torch.Tensor`, 0-d int64): index of the first frame in the stream.
        frames (`int`): temporal patches.
        period (`float`): in temporal patches.
        moments (`int`, *optional*, defaults to 1): of each, evenly spaced, the last at its end.
    """
    uniform = torch.special.ndtr(code[:, :2].double())[:, :, None, None]
    pace = 2 ** (0.5 * uniform[:, 1] - 0.25)
    numbers = (position.to(code.device) + torch.arange(frames, device=code.device)).double()
    parts = torch.arange(1 - moments, 1, device=code.device) / moments
    return (uniform[:, 0] + pace * (numbers[:, None] + parts) / period) % 1


class SeedCodeEmbedding(nn.Module):
    """Embeds seed code, clock and text together, for each frame.

    The embedding is added to the timestep's, so that it reaches each block as its modulation (as the class does in
    DiT, arXiv 2212.09748). For a [`PlacedHead`] it also says where things are: what follows from code, text and time
    is computed once a frame and not once a token, and a thing that moves is drawn alike wherever it is. The code
    enters as values that are uniform in (-1, 1), the clock as its place in the period, counted from its beginning and
    from its middle, and the harmonics of that.

    Args:
        code_dim (`int`): values of the code, at least 2.
        text_dim (`int`): channels of the text encoder's output.
        period (`float`): of the clock, in temporal patches.
        dim (`int`): channels of the embedding.
        moments, anchors, ridges (`int`): of the [`SeedPlaces`]; no places where `anchors` is 0.
        blocks (`int`): residual blocks.
        harmonics (`int`): waves over (-1, 1) by which each value of the code enters as well (Fourier features, arXiv
            2006.10739): a choice is a step function of its value, which a network draws too wide without them.
        steady (`bool`): whether the clock is left out of the embedding and of ridges, so that what does not change
            cannot flicker. Anchors move by it, and what stands there may fade by it.
    """

    def __init__(
        self,
        code_dim: int,
        text_dim: int,
        period: float,
        dim: int,
        moments: int,
        anchors: int,
        ridges: int,
        blocks: int,
        harmonics: int,
        steady: bool,
    ) -> None:
        super().__init__()
        self.period, self.moments, self.anchors, self.ridges = period, moments, anchors, ridges
        self.harmonics, self.steady = harmonics, steady
        width = 2 * dim
        self.linear_in = nn.Linear(code_dim * (1 + 2 * harmonics) + 2 + 2 * _HARMONICS + text_dim, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.linears_1 = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.linears_2 = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.linear_out = nn.Linear(width, dim)
        if anchors:
            self.to_anchors = nn.Linear(width, 3 * anchors)
            self.to_ridges = nn.Linear(width, RIDGE_TERMS * ridges)
        if anchors and steady:
            self.to_covers = nn.Linear(width, anchors)
            nn.init.zeros_(self.to_covers.weight)
            nn.init.zeros_(self.to_covers.bias)

    def forward(
        self, code: torch.Tensor, text: torch.Tensor, position: torch.Tensor, frames: int
    ) -> tuple[torch.Tensor, SeedPlaces | None]:
        """Returns what is added to the timestep's embedding, `[batch, frames, dim]`, and the places, if any.

        Args:
            code (`torch.Tensor`): `[batch, code_dim]`, normal values.
            text (`torch.Tensor`): `[batch, text_dim]`, see [`text_summary`].
            position (`torch.Tensor`, 0-d int64): index of the first frame in the stream.
            frames (`int`): temporal patches.
        """
        # MPS has no float64: the few numbers are computed on the CPU
        code, position = (x.cpu() if x.device.type == "mps" else x for x in (code.detach(), position))
        time = self._time(code, position, frames)
        uniform = torch.erf(code.double() / 2**0.5)
        moving = self._hidden(uniform, time, text)
        if self.steady:
            lasting = self._hidden(uniform, torch.zeros_like(time[:, :1, :1]), text)[:, :, 0].expand(-1, frames, -1)
        else:
            lasting = moving[:, :, -1]
        embedding = self.linear_out(lasting)
        if not self.anchors:
            return embedding, None
        anchors = self.to_anchors(moving).unflatten(-1, (self.anchors, 3))
        covers = self.to_covers(moving) if self.steady else None
        return embedding, SeedPlaces(anchors, self.to_ridges(lasting).unflatten(-1, (self.ridges, -1)), covers)

    def _hidden(self, uniform: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """`[batch, frames, moments, width]` of code `[batch, code_dim]`, the clock's numbers, and text."""
        angles = torch.pi * uniform[..., None] * torch.arange(1, 1 + self.harmonics, device=uniform.device)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)
        constant = [part[:, None, None].expand(*time.shape[:3], -1) for part in (uniform, waves, text)]
        parts = (constant[0], time, *constant[1:])
        hidden: torch.Tensor = self.linear_in(torch.cat([part.to(self.linear_in.weight) for part in parts], dim=-1))
        for norm, first, second in zip(self.norms, self.linears_1, self.linears_2, strict=True):
            hidden = hidden + second(F.silu(first(norm(hidden))))
        return hidden

    def _time(self, code: torch.Tensor, position: torch.Tensor, frames: int) -> torch.Tensor:
        """The clock's numbers, `[batch, frames, moments, 2 + 2 * _HARMONICS]`, float64."""
        phase = clock(code, position, frames, self.period, self.moments)[..., None]
        angles = 2 * torch.pi * phase * torch.arange(1, 1 + _HARMONICS, device=code.device)
        return torch.cat([2 * phase - 1, 2 * ((phase + 0.5) % 1) - 1, angles.cos(), angles.sin()], dim=-1)


def text_summary(text: torch.Tensor) -> torch.Tensor:
    """Returns the mean of a text's tokens, `[batch, text_dim]`, those that only fill it up (all zeros) left out."""
    count = text.ne(0).any(dim=-1).sum(dim=1, keepdim=True).clamp_min(1)
    return text.sum(dim=1) / count.to(text.dtype)
