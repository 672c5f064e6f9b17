# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A generator's last layer that draws in layers, each told where it lies: no patches, and so no tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .seed_code import SeedPlaces, ridge_terms
from .sprites import Sprites, lay_over, modulation_layer

_OCTAVES = 3  # of positions in the frame and relative to anchors
_BELLS = (0.1, 0.3)  # widths, in heights of the frame, of what lies about an anchor
_FINE = 9  # pixels within which what is fine differs from its surroundings
_STEEPNESS = (2, 8, 24, 60)  # of functions of the distance from a ridge


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

    def divided(self, parts: int) -> CellWindow:
        """The same part where each side of a cell is divided."""
        return CellWindow(parts * self.tops, parts * self.lefts, parts * self.height, parts * self.width)

    def widened(self) -> CellWindow:
        """The part with the cells about it, also beyond the frame."""
        return CellWindow(self.tops - 1, self.lefts - 1, self.height + 2, self.width + 2)

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

    def places(self, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns of cells in a frame of `size`, in its heights; columns count from the middle."""
        return (self.rows + 0.5) / size[0], (self.columns + 0.5 - size[1] / 2) / size[0]


class CellPlaces(nn.Module):
    """Embeds where cells lie in the frame, relative to anchors, and above or below ridges.

    Rows and columns are embedded apart, so that most of it is computed for a side of the frame and not for its area.

    Args:
        channels (`int`): of a cell.
        anchors, ridges (`int`): how many there are.
    """

    def __init__(self, channels: int, anchors: int, ridges: int) -> None:
        super().__init__()
        along = (anchors + 1) * (1 + 2 * _OCTAVES)
        self.column_proj = nn.Linear(along, channels, bias=False)
        self.row_proj = nn.Linear(along, channels, bias=False)
        self.distance_proj = nn.Linear(anchors * len(_BELLS) + ridges * (1 + len(_STEEPNESS)), channels)

    def forward(
        self, anchors: torch.Tensor, ridges: torch.Tensor, size: tuple[int, int], window: CellWindow
    ) -> torch.Tensor:
        """Returns `[frames, height, width, channels]`.

        Args:
            anchors (`torch.Tensor`): float32 `[frames, anchors, 3]`.
            ridges (`torch.Tensor`): float32 `[frames, ridges, RIDGE_TERMS]`.
            size (`tuple[int, int]`): height and width of the frame in cells.
            window (`CellWindow`): the cells.
        """
        rows, columns = window.places(size)
        beside, below = (columns[..., None] - anchors[:, None, :, 0]), (rows[..., None] - anchors[:, None, :, 1])
        dtype = self.column_proj.weight.dtype
        across = self.column_proj(_along(columns, beside).to(dtype))[:, None]
        down = self.row_proj(_along(rows, below).to(dtype))[:, :, None]
        squares = beside.square()[:, None] + below.square()[:, :, None]
        under = rows[:, :, None, None] - (ridge_terms(columns) @ ridges.mT)[:, None]
        distances = [
            *(torch.exp(squares / (-2 * width * width)) for width in _BELLS),
            *(torch.tanh(steep * under) for steep in _STEEPNESS),
            torch.exp(-(40 * under).square()),
        ]
        return self.distance_proj(torch.cat(distances, dim=-1).to(dtype)) + across + down


class PlacedHead(nn.Module):
    """Turns the last layer's tokens into latents by drawing a picture in layers, from far to near.

    A linear map from large tokens to their patches shows as tiles, and an edge is a hundredth of the picture's error,
    so that a network learns it last. Here edges follow from places: behind each ridge and at the back lies a smooth
    field of colour, which a small network paints for each latent, told where it lies ([`CellPlaces`]), as coordinate
    networks are (arXiv 2006.10739); and at each anchor stands a sprite ([`Sprites`]). A linear layer then turns the
    pixels of each latent into it: that of an autoencoder with a linear shortcut, see `encode_as`.

    Args:
        dim (`int`): channels of the frame's embedding.
        out_channels (`int`): of the latents.
        channels (`int`): of a cell.
        layers (`int`): layers a cell passes.
        moments (`int`): frames that a latent frame stands for.
        pixels (`int`): of a latent, along each side.
        ridges (`int`): lines over the width; each hides what is under it and farther, the last is the nearest.
        sprites (`Sequence[int]`): sides of the anchors' sprites, the first is the nearest.
        far_sprites (`int`): how many of them, the last ones, stand behind all ridges; the others in front.
        patterns (`int`): pictures of the frame's size, the same for all, that are added at the back.
        size (`tuple[int, int]`): height and width of the latents that it is trained on.
    """

    def __init__(
        self,
        dim: int,
        out_channels: int,
        channels: int,
        layers: int,
        moments: int,
        pixels: int,
        ridges: int,
        sprites: Sequence[int],
        far_sprites: int,
        patterns: int,
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.pixels, self.far_sprites = pixels, far_sprites
        self.patterns = nn.Parameter(0.001 * torch.randn(1, patterns, *(pixels * side for side in size)))
        self.pattern_proj = nn.Linear(dim, 3 * patterns)
        nn.init.zeros_(self.pattern_proj.weight)
        nn.init.zeros_(self.pattern_proj.bias)
        self.places = CellPlaces(channels, len(sprites), ridges)
        self.layers = nn.ModuleList(ModulatedLayer(dim, channels) for _ in range(layers))
        self.to_fields = ModulatedLayer(dim, channels, 3 * (1 + ridges))
        self.sprites = Sprites(dim, sprites)
        self.proj_out = nn.Linear(3 * moments * pixels * pixels, out_channels)

    def encode_as(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Takes over how an autoencoder turns folded pixels into latents, which is then no longer trained.

        Args:
            weight, bias (`torch.Tensor`): of its `encoder_shortcut`.
        """
        with torch.no_grad():
            self.proj_out.weight.copy_(weight.flatten(1))
            self.proj_out.bias.copy_(bias)
        self.proj_out.requires_grad_(False)

    def start_patterns(self, pictures: torch.Tensor) -> None:
        """Begins the first pattern as what is fine in the mean of pictures: what is often there, in the same place.

        Trained from noise it stays noise, since neither it nor its strength, which depends on the frame, is of any use
        before the other one is.

        Args:
            pictures (`torch.Tensor`): `[count, 3, height, width]`, whole ones, nominally in [-1, 1].
        """
        mean = pictures.mean(dim=(0, 1))[None]
        smooth = F.avg_pool2d(mean, _FINE, stride=1, padding=_FINE // 2, count_include_pad=False)
        fine = mean - smooth
        with torch.no_grad():
            self.patterns[0, 0] = (fine / fine.abs().max().clamp_min(1e-6))[0]

    def forward(
        self,
        tokens: torch.Tensor,
        grid: tuple[int, int, int],
        embedding: torch.Tensor,
        places: SeedPlaces,
        size: tuple[int, int],
        window: CellWindow | None = None,
    ) -> torch.Tensor:
        """Draws the pictures.

        Args:
            tokens (`torch.Tensor`): `[batch, tokens, channels]`, frame after frame, in raster order.
            grid (`tuple[int, int, int]`): tokens over time, height and width.
            embedding (`torch.Tensor`): `[batch, frames, dim]`.
            places (`SeedPlaces`): at each frame, at as many moments as wanted.
            size (`tuple[int, int]`): height and width of all latents.
            window (`CellWindow`, *optional*): what of them is wanted.

        Returns:
            `torch.Tensor`: `[batch * frames, moments, 3, height, width]`, pixels of the window, nominally in [-1, 1].
        """
        condition = embedding.flatten(0, 1)
        window = window or CellWindow.whole(len(condition), size, tokens.device)
        anchors, ridges = places.anchors.float().flatten(0, 1), places.ridges.float().flatten(0, 1)
        fields = self._fields(tokens.unflatten(1, grid).flatten(0, 1), condition, anchors[:, -1], ridges, size, window)
        whole, part = (self.pixels * size[0], self.pixels * size[1]), window.divided(self.pixels)
        rows, columns = part.places(whole)
        covers = None if places.covers is None else places.covers.flatten(0, 1)
        sprites = self.sprites(condition, anchors, covers, rows, columns, whole[0])
        picture = (fields[:, 0] + self._patterns(condition, whole, part))[:, None]
        near = len(sprites) - self.far_sprites
        for color, cover in reversed(sprites[near:]):
            picture = lay_over(picture, color, cover)
        under = rows[:, :, None, None] - (ridge_terms(columns) @ ridges.mT)[:, None]
        hidden = (0.5 + whole[0] * under).clamp(0, 1).to(picture.dtype).movedim(-1, 1)
        for number in range(hidden.shape[1]):
            picture = lay_over(picture, fields[:, None, 1 + number], hidden[:, None, None, number])
        for color, cover in reversed(sprites[:near]):
            picture = lay_over(picture, color, cover)
        return picture

    def encode(self, pictures: torch.Tensor, batch: int) -> torch.Tensor:
        """Returns latents `[batch, out_channels, frames, height, width]` of whole pictures, drawn at all moments."""
        folded = F.pixel_unshuffle(pictures.flatten(1, 2), self.pixels).permute(0, 2, 3, 1)
        latents = self.proj_out(folded.to(self.proj_out.weight.dtype))
        return latents.permute(0, 3, 1, 2).unflatten(0, (batch, -1)).transpose(1, 2)

    def _fields(
        self,
        tokens: torch.Tensor,
        condition: torch.Tensor,
        anchors: torch.Tensor,
        ridges: torch.Tensor,
        size: tuple[int, int],
        window: CellWindow,
    ) -> torch.Tensor:
        """Colours of the layers behind and between ridges, `[frames, 1 + ridges, 3, height, width]`, in pixels."""
        wider = window.widened()
        cells = self.places(anchors, ridges, size, wider) + _interpolate(tokens, size, wider)
        for layer in self.layers:
            cells = cells + layer(cells, condition)
        colors = self.to_fields(cells, condition).permute(0, 3, 1, 2)
        smooth = F.interpolate(colors, scale_factor=self.pixels, mode="bilinear", align_corners=False)
        inner = smooth[:, :, self.pixels : -self.pixels, self.pixels : -self.pixels]
        return inner.unflatten(1, (-1, 3))

    def _patterns(self, condition: torch.Tensor, size: tuple[int, int], window: CellWindow) -> torch.Tensor:
        """What is added at the back, `[frames, 3, height, width]`."""
        own: torch.Tensor = self.patterns
        if own.shape[2:] != size:
            own = F.interpolate(own, size, mode="bilinear", align_corners=False)
        numbers = window.rows[:, :, None] * size[1] + window.columns[:, None]
        seen = F.embedding(numbers, own.flatten(2)[0].T)
        strength = self.pattern_proj(condition).unflatten(1, (-1, 3))
        return torch.einsum("fhwp,fpc->fchw", seen, strength)


class ModulatedLayer(nn.Module):
    """SiLU and a linear layer, in front of which each channel is scaled and shifted as the frame's embedding says.

    Args:
        dim (`int`): channels of the embedding.
        channels (`int`): of the input.
        out_channels (`int`, *optional*): as many by default.
    """

    def __init__(self, dim: int, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.modulation = modulation_layer(dim, channels)
        self.linear = nn.Linear(channels, out_channels or channels)

    def forward(self, cells: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Returns `[frames, height, width, out_channels]` for `[..., channels]` and an embedding `[frames, dim]`."""
        scale, shift = self.modulation(embedding)[:, None, None].chunk(2, dim=-1)
        return self.linear(F.silu(torch.addcmul(shift, cells, 1 + scale)))


def _along(places: torch.Tensor, relative: torch.Tensor) -> torch.Tensor:
    """Embeds rows or columns: `places` `[batch, n]` in the frame, `relative` `[batch, n, anchors]` to anchors.

    Higher octaves are weaker, so that what is smooth is learnt first.
    """
    values = torch.cat([places[..., None], relative], dim=-1)
    octaves = 2.0 ** torch.arange(_OCTAVES, device=places.device)
    angles = math.pi * values[..., None] * octaves
    waves = [(wave(angles) / octaves).flatten(2) for wave in (torch.cos, torch.sin)]
    return torch.cat([values, *waves], dim=-1)


def _interpolate(tokens: torch.Tensor, size: tuple[int, int], window: CellWindow) -> torch.Tensor:
    """Bilinear interpolation of tokens `[frames, rows, columns, channels]` to the cells of a window."""
    down, across = (_weights(*pair, tokens) for pair in zip(tokens.shape[1:3], size, strict=True))
    inside = window.rows.clamp(0, size[0] - 1), window.columns.clamp(0, size[1] - 1)
    rows = torch.einsum("fhr,frsc->fhsc", down[inside[0]], tokens)
    return torch.einsum("fws,fhsc->fhwc", across[inside[1]], rows)


def _weights(tokens: int, cells: int, like: torch.Tensor) -> torch.Tensor:
    """How much of each token there is in each cell along one side, `[cells, tokens]`."""
    unit = torch.eye(tokens, device=like.device, dtype=like.dtype)[None]
    return F.interpolate(unit, cells, mode="linear", align_corners=False)[0].T
