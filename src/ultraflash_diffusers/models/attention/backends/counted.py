# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Block-sparse attention over tensors without contents: as many pairs as would be kept, for memory and work."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..block_kv_cache import BlockKVCache
from ..block_layout import BlockLayout
from ..block_selection import BlockSelection
from .in_blocks import attend_in_blocks


def attend_counted(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    selection: BlockSelection,
    layout: BlockLayout,
    cache: BlockKVCache | None,
) -> torch.Tensor:
    """Every query attends to equally many keys: the share of pairs that the settings keep on average, without copies
    of them."""
    kept = -(-(layout.settings.top_k(layout.grid) + 1) // layout.spatial)  # of a query block, rounded up

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kept_pairs: torch.Tensor, volume: int
    ) -> torch.Tensor:
        keys, values = (tensor[:, :, : kept * volume] for tensor in (key, value))
        return F.scaled_dot_product_attention(query, keys, values)

    return attend_in_blocks(attend, query, key, value, selection, layout, cache)
