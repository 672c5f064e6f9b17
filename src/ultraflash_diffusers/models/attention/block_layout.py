# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How the tokens of a group of latent frames lie in blocks, and what decides which blocks attend to which.

Names of dimensions, here and in the modules that use it: B batch, H heads, D channels of a head, V tokens of a block
(its volume), S spatial blocks of a frame, T temporal blocks of the group, P temporal positions that its queries may
see, Q = T * S query blocks, K = slots * S key blocks that keys are laid out in: the cache's buffers, or a copy of them
with the group behind.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class BlockSparseSettings:
    """What decides which blocks attend to which.

    Args:
        block_size (`tuple[int, int, int]`, *optional*, defaults to `(2, 8, 8)`): tokens of a block over time, height
            and width. Groups are zero-padded to multiples of it; padding counts as ordinary keys, as in training.
        local_range (`int`, *optional*, defaults to 9): side of the spatial window, in blocks: a query block in row r
            sees the rows from `r - local_range // 2` to `r - local_range // 2 + local_range - 1`, columns alike.
        chunk_size (`int`, *optional*, defaults to 2): latent frames that see each other whatever their order; beyond
            them attention is causal. In temporal blocks: `max(1, chunk_size // block_size[0])`.
        top_k_ratio (`float`, *optional*, defaults to 1.0): pairs that a head keeps per temporal query block, as a
            share of S * S.
        reference_tokens (`int`, *optional*, defaults to 1560): tokens of a frame for which `top_k_ratio` holds; the
            share is scaled by `reference_tokens / (h * w)`. `None` leaves it unscaled.

    Raises:
        ValueError: a size that is not positive.
    """

    block_size: tuple[int, int, int] = (2, 8, 8)
    local_range: int = 9
    chunk_size: int = 2
    top_k_ratio: float = 1.0
    reference_tokens: int | None = 1560

    def __post_init__(self) -> None:
        if len(self.block_size) != 3 or min(self.block_size) < 1:
            raise ValueError(f"`block_size` must be three positive integers (t, h, w), got {self.block_size}")
        for name in ("local_range", "chunk_size", "top_k_ratio", "reference_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}")

    @property
    def volume(self) -> int:
        """Tokens of a block."""
        return math.prod(self.block_size)

    @property
    def chunk_blocks(self) -> int:
        """Temporal blocks that see each other whatever their order."""
        return max(1, self.chunk_size // self.block_size[0])

    def count_blocks(self, grid: tuple[int, int, int]) -> tuple[int, int, int]:
        """Blocks over time, height and width of a grid of (t, h, w) tokens, once padded."""
        t, h, w = (-(-tokens // size) for tokens, size in zip(grid, self.block_size, strict=True))
        return t, h, w

    def top_k(self, grid: tuple[int, int, int]) -> int:
        """Pairs of blocks, less one, that each head keeps per temporal query block of a (t, h, w) grid."""
        temporal, rows, columns = self.count_blocks(grid)
        spatial_pairs = (rows * columns) ** 2
        ratio = self.top_k_ratio
        if self.reference_tokens is not None:
            ratio = ratio * self.reference_tokens / (grid[1] * grid[2])
        return min(max(int(spatial_pairs * ratio), 1), max(spatial_pairs * temporal - 1, 1))


@dataclasses.dataclass  # not frozen: compiled code that makes one cannot use it then (PyTorch 2.11)
class BlockLayout:
    """The blocks of one group.

    Args:
        grid (`tuple[int, int, int]`): its (t, h, w) tokens, before padding to blocks.
        settings (`BlockSparseSettings`): what the blocks are like.
    """

    grid: tuple[int, int, int]
    settings: BlockSparseSettings

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Blocks over time, height and width."""
        return self.settings.count_blocks(self.grid)

    @property
    def temporal(self) -> int:
        """T, blocks over time."""
        return self.blocks[0]

    @property
    def spatial(self) -> int:
        """S, blocks of a frame."""
        return self.blocks[1] * self.blocks[2]

    def partition(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[B, t * h * w, H, D]` in raster order -> `[B, H, T, S, V, D]`, padded with zeros; a copy."""
        return self.view(tokens).flatten(5, 7).flatten(3, 4)

    def view(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[B, t * h * w, H, D]` -> `[B, H, T, rows, columns, t, h, w, D]`, a view where nothing has to be padded."""
        t, h, w = self.settings.block_size
        temporal, rows, columns = self.blocks
        padded = (temporal * t, rows * h, columns * w)
        tokens = tokens.unflatten(1, self.grid)
        if padded != self.grid:
            missing = [size - length for size, length in zip(padded, self.grid, strict=True)]
            tokens = F.pad(tokens, (0, 0, 0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
        blocks = tokens.unflatten(3, (columns, w)).unflatten(2, (rows, h)).unflatten(1, (temporal, t))
        # [B, T, t, rows, h, columns, w, H, D]
        return blocks.permute(0, 7, 1, 3, 5, 2, 4, 6, 8)

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """The means of blocks, `[B, t * h * w, H, D]` -> `[B, H, T, S, D]`, without gradients: nothing is copied."""
        return self.view(tokens.detach()).mean(dim=(5, 6, 7), dtype=pooled_dtype(tokens.dtype)).flatten(3, 4)

    def unpartition(self, blocks: torch.Tensor) -> torch.Tensor:
        """`[B, H, Q * V, D]` -> `[B, t * h * w, H, D]` in raster order, padding cut off."""
        t, h, w = self.grid
        blocks = blocks.unflatten(2, (*self.blocks, *self.settings.block_size))
        # [B, H, T, rows, columns, t, h, w, D]
        tokens = blocks.permute(0, 2, 5, 3, 6, 4, 7, 1, 8).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        return tokens[:, :t, :h, :w].flatten(1, 3)


def pooled_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of block means of `dtype`: the selection stands on them, so never below float32."""
    return torch.promote_types(dtype, torch.float32)


def pool(blocks: torch.Tensor) -> torch.Tensor:
    """Means over the tokens of each block, without gradients: the selection has none."""
    return blocks.detach().mean(dim=-2, dtype=pooled_dtype(blocks.dtype))
