# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Backends that are given blocks: tokens are cut into them, with those of the cache, some heads at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..block_kv_cache import BlockKVCache
from ..block_layout import BlockLayout
from ..block_selection import BlockSelection

# query [B, H, Q * V, D], key and value [B, H, K * V, D], kept pairs [B, H, Q, K], V -> [B, H, Q * V, D]
AttendBlocks = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]

# keys of more elements are taken some heads at a time, in so many parts: what is cut into blocks is a copy
_WHOLE_ELEMENTS = 2**25
_HEAD_PARTS = 4


def attend_in_blocks(
    attend: AttendBlocks,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    selection: BlockSelection,
    layout: BlockLayout,
    cache: BlockKVCache | None,
) -> torch.Tensor:
    """A [`Backend`] by a function of blocks."""
    outputs = []
    for part in head_parts(query, layout, cache):
        group = (query[:, :, part], key[:, :, part], value[:, :, part])
        own = None if cache is None else cache.heads(part)
        outputs.append(_attend(attend, *group, selection.heads(part), layout, own))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def head_parts(query: torch.Tensor, layout: BlockLayout, cache: BlockKVCache | None) -> Iterator[slice]:
    """Which heads to cut into blocks together; each attends for itself, so the result does not depend on it."""
    batch, _, heads, channels = query.shape
    tokens = (layout.temporal + (cache.kv_cache_blocks if cache else 0)) * layout.spatial * layout.settings.volume
    whole = torch.is_grad_enabled() or batch * heads * tokens * channels <= _WHOLE_ELEMENTS
    step = heads if whole else -(-heads // _HEAD_PARTS)
    return (slice(first, first + step) for first in range(0, heads, step))


def _attend(
    attend: AttendBlocks,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    selection: BlockSelection,
    layout: BlockLayout,
    cache: BlockKVCache | None,
) -> torch.Tensor:
    queries, keys, values = (layout.partition(tensor) for tensor in (query, key, value))
    if cache is not None:
        keys, values = cache.take(keys, values)
    queries, keys, values = (blocks.flatten(2, 4) for blocks in (queries, keys, values))
    output = attend(queries, keys, values, selection.pairs(), layout.settings.volume)
    del queries, keys, values  # before the result is copied once more
    return layout.unpartition(output)
