# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Block-sparse attention by PyTorch's FlexAttention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

# PyTorch's choice, and FlashAttention 4's kernels for Hopper and Blackwell, which a package of their own brings
FlexKernels = Literal["AUTO", "FLASH"]


def attend_flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: torch.Tensor,
    volume: int,
    with_gradients: bool,
    kernels: FlexKernels,
) -> torch.Tensor:
    """FlexAttention over the kept pairs by these kernels of it; only to be run inside `torch.compile`."""
    counts, indices = _block_lists(kept)

    def keeps(batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        # kernels skip it inside full blocks; where block metadata is ignored (eager mode) it still masks
        return kept[batch, head, q // volume, k // volume]

    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(indices),
        counts,
        indices,
        BLOCK_SIZE=volume,
        mask_mod=keeps,
        seq_lengths=(query.shape[2], key.shape[2]),
        compute_q_blocks=with_gradients,
    )
    return flex_attention(query, key, value, block_mask=mask, kernel_options={"BACKEND": kernels})


@functools.cache
def compiled_flex() -> Callable[..., torch.Tensor]:
    # the first shape is compiled as it is, the others together, with dynamic shapes
    return torch.compile(attend_flex, fullgraph=True)


def _block_lists(kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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
