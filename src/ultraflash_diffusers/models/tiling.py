# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pictures in overlapping tiles: around each is a halo of all that can reach it, so there is no seam to be blended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch


class Span(NamedTuple):
    """One tile along one axis, in latents: its own part, and that part with the halo around it."""

    start: int
    end: int
    outer_start: int
    outer_end: int

    def outer(self, unit: int) -> slice:
        """Where the tile with its halo lies in the whole, at `unit` samples a latent."""
        return slice(self.outer_start * unit, self.outer_end * unit)

    def inner(self, unit: int) -> slice:
        """Where the tile's own part lies in the tile with its halo, at `unit` samples a latent."""
        return slice((self.start - self.outer_start) * unit, (self.end - self.outer_start) * unit)


class Tiles(NamedTuple):
    """The tiles of a picture, in raster order.

    Args:
        rows (`list[Span]`): them along the height.
        columns (`list[Span]`): them along the width.
    """

    rows: list[Span]
    columns: list[Span]

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Tiles:
        """A picture of `size` = (height, width) latents as one tile."""
        return cls(*([Span(0, length, 0, length)] for length in size))

    @classmethod
    def cut(cls, size: tuple[int, int], tile: int, halo: int) -> Tiles:
        """Tiles of `tile` latents a side, with `halo` latents around each where there are some."""
        return cls(*(_spans(length, tile, halo) for length in size))

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.rows) * len(self.columns)

    def of(self, video: torch.Tensor, unit: int) -> Iterator[torch.Tensor]:
        """The tiles with their halos of `[..., height, width]` at `unit` samples a latent."""
        for row in self.rows:
            for column in self.columns:
                yield video[..., row.outer(unit), column.outer(unit)]

    def join(self, results: list[torch.Tensor], unit: int) -> torch.Tensor:
        """Puts the tiles' own parts of results, at `unit` samples a latent, together again."""
        tiles = iter(results)
        bands = [
            torch.cat([next(tiles)[..., row.inner(unit), column.inner(unit)] for column in self.columns], dim=-1)
            for row in self.rows
        ]
        return torch.cat(bands, dim=-2)


def _spans(size: int, tile: int, halo: int) -> list[Span]:
    starts = range(0, size, tile)
    ends = [min(start + tile, size) for start in starts]
    return [Span(a, b, max(a - halo, 0), min(b + halo, size)) for a, b in zip(starts, ends, strict=True)]
