# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Block-sparse attention as dense attention under a mask: the reference, on any device and with gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# elements of the mask that one step may hold: it is to be used while still in the processor's cache
_MASK_ELEMENTS = 2**25


def attend_masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor, volume: int
) -> torch.Tensor:
    """Dense attention under the mask of the kept pairs, some query blocks at a time so that the mask stays small."""
    batch, heads, query_blocks, _ = kept.shape
    step = max(1, _MASK_ELEMENTS // (batch * heads * volume * key.shape[2]))
    outputs = []
    for first in range(0, query_blocks, step):
        pairs = kept[:, :, first : first + step, None, :, None].expand(-1, -1, -1, volume, -1, volume)
        rows = query[:, :, first * volume : (first + step) * volume]
        mask = pairs.reshape(batch, heads, rows.shape[2], key.shape[2])
        outputs.append(F.scaled_dot_product_attention(rows, key, value, attn_mask=mask))
    return torch.cat(outputs, dim=2)
