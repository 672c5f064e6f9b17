# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Small pictures that are drawn once a frame and set at places: what stands there looks alike wherever it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

_START = 4  # side with which a sprite begins
_CHANNELS = (64, 64, 48, 32)  # after each doubling; the last number serves for all that follow
_SHARPNESS = 0.1  # of an edge: what its number is multiplied by, for each pixel of half a side of the result


class SpriteSheet(nn.Module):
    """Draws sprites of one size by transposed convolutions, from the frame's embedding.

    Args:
        dim (`int`): channels of the embedding.
        count (`int`): sprites.
        side (`int`): pixels of a sprite, a power of 2 from 8 on.
    """

    def __init__(self, dim: int, count: int, side: int) -> None:
        super().__init__()
        self.count, doublings = count, (side // _START).bit_length() - 1
        widths = [_CHANNELS[min(n, len(_CHANNELS) - 1)] for n in range(doublings)]
        self.start = nn.Linear(dim, count * widths[0] * _START * _START)
        self.modulations = nn.ModuleList(modulation_layer(dim, count * width) for width in widths)
        outs = [*widths[1:], 5]
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(width, out, kernel_size=4, stride=2, padding=1)
            for width, out in zip(widths, outs, strict=True)
        )

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Returns `[frames, count, 5, side, side]` for `[frames, dim]`: colour, edge and opacity."""
        pictures = self.start(embedding).view(len(embedding) * self.count, -1, _START, _START)
        for modulation, doubling in zip(self.modulations, self.doublings, strict=True):
            scale, shift = modulation(embedding).view(len(pictures), -1, 1, 1).chunk(2, dim=1)
            pictures = doubling(F.silu(torch.addcmul(shift, pictures, 1 + scale)))
        return pictures.unflatten(0, (len(embedding), self.count))


def modulation_layer(dim: int, channels: int) -> nn.Linear:
    """What says a scale, beside 1, and a shift for each channel: at first about the embedding's own size."""
    linear = nn.Linear(dim, 2 * channels)
    nn.init.zeros_(linear.bias)
    nn.init.normal_(linear.weight, std=dim**-0.5)
    return linear


class Sprites(nn.Module):
    """Draws a sprite for each anchor and sets it there: it fills the square about the anchor.

    A sprite has a colour, an opacity, and an edge: a number that is positive inside and counts in pixels of the
    result, so that edges are as sharp at any size as the network has learnt them to be.

    Args:
        dim (`int`): channels of the frame's embedding.
        sides (`Sequence[int]`): of the sprites; those of one size share their layers.
    """

    def __init__(self, dim: int, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = list(sides)
        self.sheets = nn.ModuleDict({str(side): SpriteSheet(dim, self.sides.count(side), side) for side in set(sides)})

    def forward(
        self,
        embedding: torch.Tensor,
        anchors: torch.Tensor,
        covers: torch.Tensor | None,
        rows: torch.Tensor,
        columns: torch.Tensor,
        height: int,
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns colour `[frames, moments, 3, h, w]` and cover `[frames, moments, 1, h, w]` in [0, 1] of each.

        Args:
            embedding (`torch.Tensor`): `[frames, dim]`.
            anchors (`torch.Tensor`): `[frames, moments, anchors, 3]`, see [`SeedPlaces`].
            covers (`torch.Tensor`, *optional*): `[frames, moments, anchors]`, likewise.
            rows, columns (`torch.Tensor`): `[frames, h]` and `[frames, w]`, where the pixels lie.
            height (`int`): of the frame, in pixels.
        """
        drawn = {side: list(sheet(embedding).unbind(1)) for side, sheet in self.sheets.items()}
        if covers is None:
            covers = torch.zeros_like(anchors[..., 0])
        return [
            set_sprite(drawn[str(side)].pop(0), anchors[:, :, number], covers[:, :, number], rows, columns, height)
            for number, side in enumerate(self.sides)
        ]


def set_sprite(
    sprite: torch.Tensor,
    anchor: torch.Tensor,
    opacity: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    height: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sets a sprite `[frames, 5, side, side]` at an anchor `[frames, moments, 3]`; `opacity`: `[frames, moments]`."""
    reach = anchor[..., 2:].exp()
    down = _tents((rows[:, None] - anchor[..., 1:2]) / reach, sprite.shape[-1]).to(sprite.dtype)
    across = _tents((columns[:, None] - anchor[..., :1]) / reach, sprite.shape[-1]).to(sprite.dtype)
    seen = (down[:, :, None] @ sprite[:, None]) @ across.mT[:, :, None]
    inside = down.sum(-1)[:, :, None, :, None] * across.sum(-1)[:, :, None, None]
    edge = seen[:, :, 3:4] * (_SHARPNESS * height * reach)[..., None, None].to(sprite.dtype)
    opaque = (seen[:, :, 4:] + opacity[..., None, None, None].to(seen.dtype)).sigmoid()
    return seen[:, :, :3], inside * edge.sigmoid() * opaque


def _tents(places: torch.Tensor, side: int) -> torch.Tensor:
    """Weights of bilinear sampling, `[..., side]`, at places where the sprite lies in [-1, 1]; 0 beyond."""
    texels = torch.arange(side, device=places.device)
    return (1 - ((places[..., None] + 1) * (side / 2) - 0.5 - texels).abs()).clamp_min(0)


def lay_over(picture: torch.Tensor, color: torch.Tensor, cover: torch.Tensor) -> torch.Tensor:
    """Returns a picture with a colour over it, as much as `cover` in [0, 1] says.

    As `torch.lerp`, but of tensors of different precision, too, as autocast makes them.
    """
    dtype = torch.promote_types(torch.promote_types(picture.dtype, color.dtype), cover.dtype)
    return torch.lerp(picture.to(dtype), color.to(dtype), cover.to(dtype))
