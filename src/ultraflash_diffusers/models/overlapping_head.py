# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The way from large tokens to latents without seams: convolutions that overlap, in the place of separate patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .causal_memory import PixelShuffleUpsample, conv3x3


class OverlappingHead(nn.Module):
    """Turns the last layer's tokens, of 2x2 cells each, into latents, doubling the size once a further width.

    A linear map from tokens to their patches shows as tiles where patches are large. Here each latent depends on the
    cells around it, of other tokens too: 3x3 convolutions at each size.

    Args:
        channels (`Sequence[int]`): of the cells, and of what follows each doubling.
        out_channels (`int`): of the latents.
    """

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.upsample = nn.Sequential(
            *(PixelShuffleUpsample(before, after, 2) for before, after in zip(channels, channels[1:], strict=False))
        )
        self.act = nn.SiLU()
        self.conv_out = conv3x3(channels[-1], out_channels)

    @staticmethod
    def token_channels(channels: Sequence[int]) -> int:
        """Channels of a token: those of its 2x2 cells."""
        return 4 * channels[0]

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """Returns `[batch, out_channels, frames, rows, columns]` of `[batch, tokens, token_channels]`.

        Args:
            tokens (`torch.Tensor`): frame after frame, in raster order.
            grid (`tuple[int, int, int]`): tokens over time, height and width.
        """
        cells = tokens.unflatten(2, (2, 2, -1)).unflatten(1, grid)
        frames = cells.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4).flatten(0, 1)
        latents = self.conv_out(self.act(self.upsample(frames)))
        return latents.unflatten(0, (len(tokens), -1)).transpose(1, 2)
