# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Block-sparse attention against a slow, independent reading of the published rule, one query token at a time."""

from __future__ import annotations

import math

import pytest
import torch

from ultraflash_diffusers.models.block_sparse_attention import (
    BlockKVCache,
    BlockSparseSettings,
    block_sparse_attention,
)

HEADS, CHANNELS = 2, 8
SMALL = BlockSparseSettings(block_size=(2, 2, 2), local_range=3, top_k_ratio=0.3, reference_tokens=None)


class SlowStream:
    """The published rule in plain loops for one sample: lists of blocks, concatenated and cut after each group."""

    def __init__(self, settings: BlockSparseSettings) -> None:
        self.settings = settings
        self.cached: list[tuple[torch.Tensor, torch.Tensor]] = []  # a temporal block: keys, values [S, V, H, D]
        self.kept_pairs = 0
        self.all_pairs = 0

    def blocks(self, tokens: torch.Tensor, grid: tuple[int, int, int]) -> list[torch.Tensor]:
        """[L, H, D] -> for each temporal block [S, V, H, D], padded with zeros."""
        (bt, bh, bw), (t, h, w) = self.settings.block_size, grid
        video = tokens.reshape(t, h, w, *tokens.shape[1:])
        blocks = []
        for t0 in range(0, t, bt):
            frame = []
            for h0 in range(0, h, bh):
                for w0 in range(0, w, bw):
                    block = tokens.new_zeros(bt, bh, bw, *tokens.shape[1:])
                    part = video[t0 : t0 + bt, h0 : h0 + bh, w0 : w0 + bw]
                    block[: part.shape[0], : part.shape[1], : part.shape[2]] = part
                    frame.append(block.flatten(0, 2))
            blocks.append(torch.stack(frame))
        return blocks

    def allowed(self, grid: tuple[int, int, int], before: int, index: int) -> list[list[int]]:
        """For each spatial query block of temporal block `index` of the group: the key blocks that it may see."""
        (bt, bh, bw), (t, h, w) = self.settings.block_size, grid
        rows, columns, reach = -(-h // bh), -(-w // bw), self.settings.local_range
        chunk = max(1, self.settings.chunk_size // bt)
        end = min(((before + index) // chunk + 1) * chunk, before + -(-t // bt))
        result = []
        for row in range(rows):
            for column in range(columns):
                seen = []
                for temporal in range(end):
                    for key_row in range(rows):
                        for key_column in range(columns):
                            near = key_row in range(row - reach // 2, row - reach // 2 + reach)
                            near = near and key_column in range(column - reach // 2, column - reach // 2 + reach)
                            if near:
                                seen.append((temporal * rows + key_row) * columns + key_column)
                result.append(seen)
        return result

    def select(self, queries: torch.Tensor, keys: torch.Tensor, allowed: list[list[int]], top_k: int) -> list[list[int]]:
        """One head, one temporal query block: pooled queries [S, D] and keys [K, D] -> kept key blocks of each query."""
        probabilities = torch.zeros(len(queries), len(keys))
        for query, seen in enumerate(allowed):
            scores = torch.stack([queries[query] @ keys[block] for block in seen]) / math.sqrt(CHANNELS)
            probabilities[query, seen] = scores.softmax(0)
        ranked = probabilities.flatten().sort(descending=True).values
        threshold = ranked[min(top_k, len(ranked) - 1)]
        kept = [[b for b in seen if probabilities[q, b] >= threshold] or [seen[0]] for q, seen in enumerate(allowed)]
        return kept

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: tuple[int, int, int], kv_len: int = 0
    ) -> torch.Tensor:
        query_blocks, group = self.blocks(query, grid), list(zip(self.blocks(key, grid), self.blocks(value, grid), strict=True))
        held = self.cached + group
        keys, values = (torch.cat([pair[i] for pair in held]) for i in (0, 1))
        spatial = len(query_blocks[0])
        ratio = self.settings.top_k_ratio
        if self.settings.reference_tokens:
            ratio = ratio * self.settings.reference_tokens / (grid[1] * grid[2])
        top_k = max(1, min(int(spatial**2 * ratio), spatial**2 * len(group) - 1))
        outputs = []
        for index, queries in enumerate(query_blocks):
            allowed = self.allowed(grid, len(self.cached), index)
            output = torch.zeros_like(queries)
            for head in range(HEADS):
                kept = self.select(queries[:, :, head].mean(1), keys[:, :, head].mean(1), allowed, top_k)
                for block, chosen in enumerate(kept):
                    own = index * spatial + block
                    if not self.cached and own not in chosen:
                        chosen = [*chosen, own]
                    k, v = keys[chosen, :, head].flatten(0, 1), values[chosen, :, head].flatten(0, 1)
                    output[block, :, head] = (queries[block, :, head] @ k.T / math.sqrt(CHANNELS)).softmax(-1) @ v
                    self.kept_pairs += len(chosen)
            self.all_pairs += HEADS * spatial * len(keys)
            outputs.append(output)
        self.cached = held[-kv_len:] if kv_len else []
        return self.to_tokens(outputs, grid)

    def to_tokens(self, blocks: list[torch.Tensor], grid: tuple[int, int, int]) -> torch.Tensor:
        (bt, bh, bw), (t, h, w) = self.settings.block_size, grid
        columns = -(-w // bw)
        tokens = []
        for frame in range(t):
            for row in range(h):
                for column in range(w):
                    block = blocks[frame // bt][row // bh * columns + column // bw]
                    tokens.append(block[(frame % bt * bh + row % bh) * bw + column % bw])
        return torch.stack(tokens)


def random_qkv(seed: int, grid: tuple[int, int, int], batch: int = 1) -> list[torch.Tensor]:
    """Random tokens with structure: each block has a mean of its own, so that the selection has something to choose."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, math.prod(grid), HEADS, CHANNELS)
    return [2 * torch.randn(shape, generator=generator) for _ in range(3)]


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    assert result.shape == expected.shape
    return float((result - expected).norm() / expected.norm())


def allocate(grid: tuple[int, int, int], settings: BlockSparseSettings = SMALL, batch: int = 1, window: int = 3):
    return BlockKVCache.allocate(batch, HEADS, CHANNELS, grid, settings, kv_cache_blocks=window)


FULL_CASES = [
    ((4, 6, 8), SMALL),
    ((5, 7, 9), SMALL),  # padded on all three axes
    ((6, 8, 10), BlockSparseSettings((2, 2, 2), local_range=2, top_k_ratio=0.1, reference_tokens=None)),  # even window
    ((7, 5, 6), BlockSparseSettings((1, 2, 3), local_range=9, chunk_size=3, top_k_ratio=0.2, reference_tokens=None)),
    ((8, 6, 6), BlockSparseSettings((2, 2, 2), local_range=5, chunk_size=4, top_k_ratio=1.0, reference_tokens=6)),
    ((4, 4, 4), BlockSparseSettings((2, 2, 2), local_range=1, top_k_ratio=0.01, reference_tokens=None)),  # top_k 1
    ((2, 2, 2), BlockSparseSettings((2, 2, 2))),  # one single block
    ((3, 2, 20), BlockSparseSettings((2, 2, 2), local_range=3, top_k_ratio=50.0)),  # more pairs than there are
]


@pytest.mark.parametrize("backend", ["sdpa", "gather"])
@pytest.mark.parametrize(("grid", "settings"), FULL_CASES)
def test_full_forward_follows_the_published_rule(grid, settings, backend):
    query, key, value = random_qkv(0, grid)
    output, state = block_sparse_attention(query, key, value, grid, settings, backend=backend)
    slow = SlowStream(settings)
    assert state is None
    assert relative_error(output[0], slow(query[0], key[0], value[0], grid)) < 2e-6


STREAMS = [
    # temporal lengths of the groups, kv window, settings
    ([6] * 8, 3, SMALL),
    ([6, 3, 6, 1, 5, 6, 2, 6, 3], 2, SMALL),
    ([6, 6, 2, 6], 2, BlockSparseSettings((2, 2, 2), local_range=5, chunk_size=4, top_k_ratio=0.2, reference_tokens=None)),
    ([2, 4, 8, 2, 10, 4], 5, SMALL),  # longer groups than were allocated
    ([2] * 9, 1, BlockSparseSettings((2, 2, 2), local_range=9, chunk_size=6, top_k_ratio=1.0, reference_tokens=9)),
]


@pytest.mark.parametrize("backend", ["sdpa", "gather"])
@pytest.mark.parametrize(("lengths", "window", "settings"), STREAMS)
def test_stream_follows_the_published_rule(lengths, window, settings, backend):
    state, slow = allocate((lengths[0], 6, 7), settings, window=window), SlowStream(settings)
    for index, length in enumerate(lengths):
        grid = (length, 6, 7)
        query, key, value = random_qkv(index, grid)
        output, state = block_sparse_attention(query, key, value, grid, settings, state, backend=backend)
        assert relative_error(output[0], slow(query[0], key[0], value[0], grid, kv_len=window)) < 2e-6, index
    assert slow.kept_pairs < 0.6 * slow.all_pairs
