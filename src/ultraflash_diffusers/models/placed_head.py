# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A generator's last layer that draws cell by cell, each told where it lies: no patches, and so no tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .seed_code import SeedPlaces, ridge_terms

_NEAR_OCTAVES = 3  # of positions of cells relative to an anchor, in its sizes
_FINE_OCTAVES = 5  # of those of their quarters
_FRAME_OCTAVES = 3  # of positions in the frame
_RINGS, _SIDES = 7, 5  # functions of the distance from an anchor and from a ridge
_MAP_CHANNELS = 12
_FINE_LAYERS = 2  # that quarters of cells pass


@dataclass(frozen=True)
class CellWindow:
    """A part of the latents, one a sample; all are equally large.

    Args:
        tops, lefts (`torch.Tensor`): int64 `[batch]`, first rows and columns.
        height, width (`int`): in latents.
    """

    tops: torch.Tensor
    lefts: torch.Tensor
    height: int
    width: int

    @classmethod
    def whole(cls, batch: int, size: tuple[int, int], device: torch.device) -> CellWindow:
        """The whole frame, of `size` (height, width) in latents."""
        start = torch.zeros(batch, dtype=torch.int64, device=device)
        return cls(start, start, *size)

    def quarters(self) -> CellWindow:
        """The same part in cells of half the size."""
        return CellWindow(2 * self.tops, 2 * self.lefts, 2 * self.height, 2 * self.width)

    def to(self, device: torch.device) -> CellWindow:
        """The same on a device."""
        return CellWindow(self.tops.to(device), self.lefts.to(device), self.height, self.width)

    @property
    def rows(self) -> torch.Tensor:
        """`[batch, height]`, int64."""
        return self.tops[:, None] + torch.arange(self.height, device=self.tops.device)

    @property
    def columns(self) -> torch.Tensor:
        """`[batch, width]`, int64."""
        return self.lefts[:, None] + torch.arange(self.width, device=self.lefts.device)


class CellPlaces(nn.Module):
    """Embeds where cells lie in the frame, relative to anchors at each moment, and above or below ridges.

    Rows and columns are embedded apart, so that most of it is computed for a side of the frame and not for its area.

    Args:
        channels (`int`): of a cell.
        things (`int`): anchors, at all moments.
        ridges (`int`): lines.
        octaves (`int`): of positions relative to anchors.
    """

    def __init__(self, channels: int, things: int, ridges: int, octaves: int) -> None:
        super().__init__()
        self.octaves = octaves
        along = things * (1 + 2 * octaves) + 1 + 2 * _FRAME_OCTAVES
        self.column_proj = nn.Linear(along, channels, bias=False)
        self.row_proj = nn.Linear(along, channels, bias=False)
        self.distance_proj = nn.Linear(things * _RINGS + ridges * _SIDES, channels)

    def forward(
        self, anchors: torch.Tensor, ridges: torch.Tensor, size: tuple[int, int], window: CellWindow
    ) -> torch.Tensor:
        """Returns `[frames, height, width, channels]`.

        Args:
            anchors (`torch.Tensor`): float32 `[frames, things, 3]`.
            ridges (`torch.Tensor`): float32 `[frames, ridges, RIDGE_TERMS]`.
            size (`tuple[int, int]`): height and width of the frame in cells.
            window (`CellWindow`): the cells.
        """
        columns = (window.columns + 0.5 - size[1] / 2) / size[0]
        rows = (window.rows + 0.5) / size[0]
        sizes = anchors[:, None, :, 2].exp()
        beside = (columns[..., None] - anchors[:, None, :, 0]) / sizes
        below = (rows[..., None] - anchors[:, None, :, 1]) / sizes
        dtype = self.column_proj.weight.dtype
        across = self.column_proj(_along(columns, beside, self.octaves).to(dtype))[:, None]
        down = self.row_proj(_along(rows, below, self.octaves).to(dtype))[:, :, None]
        under = rows[:, :, None, None] - (ridge_terms(columns) @ ridges.mT)[:, None]
        rings = _rings(beside[:, None], below[:, :, None], size[0] * sizes[:, None])
        distances = torch.cat([*rings, *_sides(under)], dim=-1)
        return self.distance_proj(distances.to(dtype)) + across + down


class PlacedHead(nn.Module):
    """Turns the last layer's tokens into latents, with a small network that is the same for each cell of the latents.

    A linear map from large tokens to their patches shows as tiles. Here tokens are interpolated, and each cell, and
    then each quarter of it, is told where it lies, see [`CellPlaces`]. What it draws is a function of the place, as in
    coordinate networks (arXiv 2006.10739), modulated by the frame's embedding: borders are sharp where anchors and
    ridges are exact, and move smoothly with them.

    Args:
        dim (`int`): channels of the frame's embedding.
        out_channels (`int`): of the latents.
        channels (`int`): of a cell, a multiple of 4; quarters have three in four of them.
        layers (`int`): layers a cell passes before it is divided.
        moments, anchors, ridges (`int`): of the [`SeedPlaces`].
        size (`tuple[int, int]`): height and width of the latents that it is trained on; each of their cells has a few
            numbers of its own, which are interpolated for other sizes.
    """

    def __init__(
        self,
        dim: int,
        out_channels: int,
        channels: int,
        layers: int,
        moments: int,
        anchors: int,
        ridges: int,
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        fine = channels * 3 // 4
        self.map = nn.Parameter(0.5 * torch.randn(1, _MAP_CHANNELS, *size))
        self.map_proj = nn.Linear(_MAP_CHANNELS, channels, bias=False)
        self.places = CellPlaces(channels, moments * anchors, ridges, _NEAR_OCTAVES)
        self.layers = nn.ModuleList(ModulatedLayer(dim, channels) for _ in range(layers))
        self.quarters = ModulatedLayer(dim, channels, 4 * fine)
        self.fine_places = CellPlaces(fine, moments * anchors, ridges, _FINE_OCTAVES)
        self.fine_layers = nn.ModuleList(ModulatedLayer(dim, fine) for _ in range(_FINE_LAYERS))
        self.proj_out = ModulatedLayer(dim, 4 * fine, out_channels)

    def forward(
        self,
        tokens: torch.Tensor,
        grid: tuple[int, int, int],
        embedding: torch.Tensor,
        places: SeedPlaces,
        size: tuple[int, int],
        window: CellWindow | None = None,
    ) -> torch.Tensor:
        """Returns latents `[batch, out_channels, frames, height, width]`, of the window if there is one.

        Args:
            tokens (`torch.Tensor`): `[batch, tokens, channels]`, frame after frame, in raster order.
            grid (`tuple[int, int, int]`): tokens over time, height and width.
            embedding (`torch.Tensor`): `[batch, frames, dim]`.
            places (`SeedPlaces`): at each frame.
            size (`tuple[int, int]`): height and width of all latents.
            window (`CellWindow`, *optional*): what of them is wanted; of single frames alone.
        """
        batch, frames = embedding.shape[:2]
        window = window or CellWindow.whole(batch * frames, size, tokens.device)
        condition = embedding.flatten(0, 1)
        where = (places.anchors.float().flatten(0, 1).flatten(1, 2), places.ridges.float().flatten(0, 1))
        cells = self.places(*where, size, window) + self.map_proj(self._map(size, window))
        cells = cells + _interpolate(tokens.unflatten(1, grid).flatten(0, 1), size, window)
        for layer in self.layers:
            cells = cells + layer(cells, condition)
        fine = self.quarters(cells, condition).unflatten(3, (2, 2, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        fine = fine + self.fine_places(*where, (2 * size[0], 2 * size[1]), window.quarters())
        for layer in self.fine_layers:
            fine = fine + layer(fine, condition)
        whole = fine.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)
        latents = self.proj_out(whole, condition)
        return latents.permute(0, 3, 1, 2).unflatten(0, (batch, frames)).transpose(1, 2)

    def _map(self, size: tuple[int, int], window: CellWindow) -> torch.Tensor:
        own: torch.Tensor = self.map
        if own.shape[2:] != size:
            own = F.interpolate(own, size, mode="bilinear", align_corners=False)
        cells = own.flatten(2)[0].T
        numbers = window.rows[:, :, None] * size[1] + window.columns[:, None]
        return F.embedding(numbers, cells)


class ModulatedLayer(nn.Module):
    """SiLU and a linear layer, in front of which each channel is scaled and shifted as the frame's embedding says.

    Args:
        dim (`int`): channels of the embedding.
        channels (`int`): of the input.
        out_channels (`int`, *optional*): as many by default.
    """

    def __init__(self, dim: int, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 2 * channels)
        self.linear = nn.Linear(channels, out_channels or channels)
        nn.init.zeros_(self.modulation.bias)
        nn.init.normal_(self.modulation.weight, std=dim**-0.5)

    def forward(self, cells: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Returns `[frames, height, width, out_channels]` for `[..., channels]` and an embedding `[frames, dim]`."""
        scale, shift = self.modulation(embedding)[:, None, None].chunk(2, dim=-1)
        return self.linear(F.silu(torch.addcmul(shift, cells, 1 + scale)))


def _along(places: torch.Tensor, relative: torch.Tensor, near_octaves: int) -> torch.Tensor:
    """Embeds rows or columns: `places` `[batch, n]` in the frame, `relative` `[batch, n, things]` to anchors.

    Higher octaves are weaker, so that what is smooth is learnt first.
    """
    bounded = 2 * torch.tanh(relative / 2)
    near, far = (2.0 ** torch.arange(count, device=places.device) for count in (near_octaves, _FRAME_OCTAVES))
    parts = [bounded, places[..., None]]
    for positions, octaves in ((math.pi / 2 * bounded, near), (math.pi * places[..., None], far)):
        angles = positions[..., None] * octaves
        parts += [(wave(angles) / octaves.clamp_max(4)).flatten(2) for wave in (torch.cos, torch.sin)]
    return torch.cat(parts, dim=-1)


def _rings(beside: torch.Tensor, below: torch.Tensor, radius: torch.Tensor) -> list[torch.Tensor]:
    """Functions of the distance from an anchor, near or not, and from its circle, inside or not and at it or not.

    The two before the last say to which side the circle's border runs where it is near.

    Args:
        beside, below (`torch.Tensor`): distances in sizes of the anchor.
        radius (`torch.Tensor`): of the circle, which is the size, in cells.
    """
    squares = beside.square() + below.square()
    far = squares.clamp_min(1e-6).sqrt()
    outside = radius * (far - 1)
    border = torch.exp(-outside.square())
    return [
        torch.exp(-squares / 8),
        torch.exp(-squares),
        torch.tanh(4 * (far - 1)),
        border,
        border * beside / far,
        border * below / far,
        torch.tanh(outside),
    ]


def _sides(under: torch.Tensor) -> list[torch.Tensor]:
    """Functions of the distance under a ridge, in heights of the frame: which side, and at it or not."""
    return [*(torch.tanh(steep * under) for steep in (2, 8, 24, 60)), torch.exp(-(40 * under).square())]


def _interpolate(tokens: torch.Tensor, size: tuple[int, int], window: CellWindow) -> torch.Tensor:
    """Bilinear interpolation of tokens `[frames, rows, columns, channels]` to the cells of a window."""
    down, across = (_weights(*pair, tokens) for pair in zip(tokens.shape[1:3], size, strict=True))
    rows = torch.einsum("fhr,frsc->fhsc", down[window.rows], tokens)
    return torch.einsum("fws,fhsc->fhwc", across[window.columns], rows)


def _weights(tokens: int, cells: int, like: torch.Tensor) -> torch.Tensor:
    """How much of each token there is in each cell along one side, `[cells, tokens]`."""
    unit = torch.eye(tokens, device=like.device, dtype=like.dtype)[None]
    return F.interpolate(unit, cells, mode="linear", align_corners=False)[0].T
