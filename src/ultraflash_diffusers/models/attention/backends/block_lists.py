# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Lists of the kept key blocks of each query block: what kernels follow instead of a mask."""

from __future__ import annotations

import torch


def block_lists(kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns the mask of kept pairs into lists, without a sort and without asking the device how long they are.

    Args:
        kept (`torch.Tensor` of shape `[B, H, Q, K]`, bool): which key blocks each query block attends to.

    Returns:
        `tuple`: their number, `[B, H, Q]`, and their indices in front of `[B, H, Q, K]`, zeros behind; int32 both.
    """
    key_blocks = kept.shape[3]
    counts = kept.sum(dim=-1, dtype=torch.int32)
    place = torch.where(kept, kept.cumsum(dim=-1) - 1, key_blocks)  # what is not kept goes behind the end
    numbers = torch.arange(key_blocks, device=kept.device, dtype=torch.int32).expand_as(kept)
    indices = torch.zeros(*kept.shape[:3], key_blocks + 1, device=kept.device, dtype=torch.int32)
    return counts, indices.scatter_(-1, place, numbers)[..., :key_blocks].contiguous()
