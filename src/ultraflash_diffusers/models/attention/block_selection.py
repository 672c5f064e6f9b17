# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which pairs of blocks attend: the selection rule of block-sparse attention (paper, Phase I).

A query block may see the key blocks of a spatial window around it, causally over time; of these pairs each head keeps
the ones whose mean-pooled query and key agree most. Dimensions are named as in `block_layout`.
"""

from __future__ import annotations

import dataclasses
import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F

from .block_layout import BlockSparseSettings


@dataclasses.dataclass  # not frozen: compiled code that makes one cannot use it then (PyTorch 2.11)
class BlockSelection:
    """The pairs of blocks that attend: for each query block, which of the M key blocks that it may see.

    Args:
        kept (`torch.Tensor` of shape `[B, H, T, S, M]`, bool): whether the pair attends; at least one a query block.
        key_block (`torch.Tensor` of shape `[S, M]`, int64): the key blocks that the S query blocks of a frame may see,
            as numbers below K.
        key_blocks (`int`): K, key blocks in what is attended to.
    """

    kept: torch.Tensor
    key_block: torch.Tensor
    key_blocks: int

    def pairs(self) -> torch.Tensor:
        """The mask `[B, H, Q, K]`: True where a query block attends to a key block."""
        pairs = torch.zeros(*self.kept.shape[:4], self.key_blocks, dtype=torch.bool, device=self.kept.device)
        return pairs.scatter_(-1, self.key_block.expand_as(self.kept), self.kept).flatten(2, 3)

    def heads(self, part: slice) -> BlockSelection:
        """The pairs of some of the heads."""
        return dataclasses.replace(self, kept=self.kept[:, part])


@torch.no_grad()
def select_blocks(
    pooled_queries: torch.Tensor,
    pooled_keys: torch.Tensor,
    held: torch.Tensor,
    top_k: int,
    settings: BlockSparseSettings,
    slots: torch.Tensor,
    num_slots: int,
) -> BlockSelection:
    """Chooses the pairs of blocks that attend, each head and sample for itself.

    Only pairs inside the window and not after the query's chunk are scored. Of all scored pairs of one temporal query
    block, those are kept whose probability (softmax over a query block's keys) reaches the `top_k + 1`-th largest.

    Args:
        pooled_queries (`torch.Tensor` of shape `[B, H, T, rows, columns, D]`): block means of the group's queries.
        pooled_keys (`torch.Tensor` of shape `[B, H, P, rows, columns, D]`): block means of the keys, oldest first; the
            last T are the group's own. Of the ones before, the last `held` count.
        held (`torch.Tensor`, 0-d int64): cached temporal blocks.
        top_k (`int`): see [`BlockSparseSettings.top_k`].
        settings (`BlockSparseSettings`): window and causality.
        slots (`torch.Tensor` of shape `[P]`): where in the buffers each temporal position lies.
        num_slots (`int`): temporal blocks in the buffers.

    Returns:
        [`BlockSelection`]: of the key blocks of the buffers.
    """
    rows, columns, channels = pooled_queries.shape[3:]
    temporal, positions, spatial = pooled_queries.shape[2], pooled_keys.shape[2], rows * columns
    device = pooled_queries.device
    window = _Window.around(rows, columns, settings.local_range, device)
    first = positions - temporal  # position of the group's first block
    position, index = torch.arange(positions, device=device), torch.arange(temporal, device=device)[:, None]
    unused = first - held  # positions in front of what the cache holds
    chunk_end = ((held + index) // settings.chunk_blocks + 1) * settings.chunk_blocks
    visible = (position >= unused) & (position < unused + chunk_end)  # [T, P]
    allowed = (visible[:, None, :, None] & window.inside[:, None]).flatten(2)  # [T, S, P * window]
    with _without_autocast(device.type):
        scores = window.score(pooled_queries, pooled_keys) / math.sqrt(channels)
        kept = _keep_largest(scores.flatten(-2), allowed, top_k)
    # without cached blocks the pairs of a block with itself are always kept
    own = (position == first + index)[:, None, :, None] & window.own[:, None]
    kept = kept | (own.flatten(2) & (held == 0))
    key_block = (slots[:, None] * spatial + window.block[:, None]).flatten(1)  # [S, P * window]
    return BlockSelection(kept, key_block, num_slots * spatial)


def _without_autocast(device: str) -> AbstractContextManager[None]:
    # there is none on the meta device; `torch.amp.is_autocast_available` says so, but breaks graphs in PyTorch 2.11
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _keep_largest(scores: torch.Tensor, allowed: torch.Tensor, top_k: int) -> torch.Tensor:
    """The selection rule for each temporal query block: `scores` `[B, H, T, S, M]`, `allowed` `[T, S, M]`."""
    probabilities = scores.masked_fill(~allowed, -math.inf).softmax(dim=-1)
    pairs = probabilities.flatten(3)
    if top_k + 1 <= pairs.shape[-1]:
        threshold = pairs.topk(top_k + 1, dim=-1, sorted=False).values.amin(dim=-1)[..., None, None]
        kept = (probabilities >= threshold) & allowed
    else:
        kept = allowed.expand_as(probabilities)
    first_allowed = F.one_hot(allowed.int().argmax(dim=-1), allowed.shape[-1]).bool()
    return torch.where(kept.any(dim=-1, keepdim=True), kept, first_allowed)


@dataclasses.dataclass
class _Window:
    """The key blocks around each of the S query blocks of a frame, in raster order; at most all blocks of the frame.

    At the borders the window is shifted inwards so that all have one shape; `inside` tells what truly belongs to it.

    Args:
        rows (`torch.Tensor` of shape `[rows, window rows]`): the key rows around each query row.
        columns (`torch.Tensor` of shape `[columns, window columns]`): the key columns around each query column.
        block (`torch.Tensor` of shape `[S, window]`): the key blocks, numbered in raster order.
        inside (`torch.Tensor` of shape `[S, window]`): whether the window reaches the key block.
        own (`torch.Tensor` of shape `[S, window]`): whether the key block is the query block itself.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    block: torch.Tensor
    inside: torch.Tensor
    own: torch.Tensor

    @classmethod
    def around(cls, rows: int, columns: int, size: int, device: torch.device) -> _Window:
        row, row_inside = cls._along(rows, size, device)
        column, column_inside = cls._along(columns, size, device)
        block = (row[:, None, :, None] * columns + column[None, :, None, :]).flatten(2).flatten(0, 1)
        inside = (row_inside[:, None, :, None] & column_inside[None, :, None, :]).flatten(2).flatten(0, 1)
        return cls(row, column, block, inside, block == torch.arange(rows * columns, device=device)[:, None])

    @staticmethod
    def _along(length: int, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        reach = min(size, length)
        first = torch.arange(length, device=device)[:, None] - size // 2
        index = first.clamp(0, length - reach) + torch.arange(reach, device=device)
        return index, (index >= first) & (index < first + size)

    def score(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Products of `queries` `[B, H, T, rows, columns, D]` and `keys` `[B, H, P, rows, columns, D]` in the window.

        Returns:
            `torch.Tensor` of shape `[B, H, T, S, P, window]`.
        """
        # a band of whole rows a query row: one batched product, and no key is copied for each single query block
        bands = keys[:, :, :, self.rows]  # [B, H, P, rows, window rows, columns, D]
        scores = torch.einsum("bhtrcd,bhprikd->bhtrcpik", queries, bands)
        if self.columns.shape[1] < keys.shape[4]:
            columns = self.columns[:, None, None].expand(*scores.shape[:-1], -1)
            scores = scores.gather(-1, columns)
        return scores.flatten(-2).flatten(3, 4)
