# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Block-sparse attention in plain PyTorch over copies of the kept blocks alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

# elements of the keys that one step may copy per thread: they are to be used while still in the processor's cache
_GATHERED_ELEMENTS = 2**19


def attend_gathered(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor, volume: int
) -> torch.Tensor:
    """Attention over the kept key blocks alone: query blocks that keep equally many are batched, without padding."""
    query_blocks, key_blocks = kept.shape[2:]
    channels = query.shape[3]
    queries, keys, values = (tensor.reshape(-1, volume, channels) for tensor in (query, key, value))
    row, column = kept.flatten(0, 2).nonzero(as_tuple=True)
    source = row // query_blocks * key_blocks + column
    counts = kept.sum(dim=-1).flatten()
    first = counts.cumsum(0) - counts
    max_blocks = torch.get_num_threads() * _GATHERED_ELEMENTS // (volume * channels)
    outputs, order = [], []
    for count, rows in _batches_of_equal_count(counts, max_blocks):
        picked = source[first[rows, None] + torch.arange(count, device=rows.device)].flatten()
        shape = (len(rows), 1, count * volume, channels)
        outputs.append(
            F.scaled_dot_product_attention(
                queries.index_select(0, rows)[:, None],
                keys.index_select(0, picked).view(shape),
                values.index_select(0, picked).view(shape),
            )
        )
        order.append(rows)
    return torch.cat(outputs).index_select(0, torch.cat(order).argsort()).view_as(query)


def _batches_of_equal_count(counts: torch.Tensor, max_blocks: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Splits the rows into batches that keep equally many blocks, at most `max_blocks` together where it can be."""
    order = counts.argsort(stable=True)
    distinct, sizes = counts[order].unique_consecutive(return_counts=True)
    for count, rows in zip(distinct.tolist(), order.split(sizes.tolist()), strict=True):
        for batch in rows.split(max(1, max_blocks // count)):
            yield count, batch


@torch.library.custom_op("ultraflash_diffusers::attend_gathered", mutates_args=())
def attend_gathered_opaquely(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor, volume: int
) -> torch.Tensor:
    """The same as one operator without a gradient: `torch.compile` need not see its data-dependent shapes."""
    return attend_gathered(query, key, value, kept, volume)


@attend_gathered_opaquely.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor, volume: int) -> torch.Tensor:
    return query.new_empty(query.shape)
