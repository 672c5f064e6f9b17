# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Block-sparse causal attention of the SR transformer (paper, Phase I).

The tokens of a group of latent frames are cut into blocks of (2, 8, 8) tokens (`block_layout`). A query block may see
the key blocks of a spatial window around it, causally over time; each head keeps the pairs that agree most
(`block_selection`), and attention is exact inside the kept pairs (`backends`). All shapes here depend on the size of a
group alone, never on how far a stream has come, so that nothing is compiled twice and a CUDA graph can replay it.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from diffusers.models.attention_dispatch import AttentionBackendName

from .backends import choose_backend
from .backends.in_blocks import head_parts
from .block_kv_cache import BlockKVCache
from .block_layout import BlockLayout, BlockSparseSettings, pool
from .block_selection import BlockSelection, select_blocks


@dataclasses.dataclass  # not frozen, like `CachedAttention`
class SparseAttention:
    """Block-sparse attention of one layer; see [`block_sparse_attention`] for the fields."""

    grid: tuple[int, int, int]
    settings: BlockSparseSettings
    backend: str
    cache: BlockKVCache | None = None
    kv_cache_blocks: torch.Tensor | None = None

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: AttentionBackendName
    ) -> tuple[torch.Tensor, BlockKVCache | None]:
        return block_sparse_attention(
            query, key, value, self.grid, self.settings, self.cache, self.kv_cache_blocks, self.backend
        )


def block_sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: tuple[int, int, int],
    settings: BlockSparseSettings,
    cache: BlockKVCache | None = None,
    kv_cache_blocks: int | torch.Tensor | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, BlockKVCache | None]:
    """Attends to the selected blocks of a group of latent frames and of the cache in front of it.

    Args:
        query (`torch.Tensor` of shape `[B, t * h * w, H, D]`): after RoPE, tokens in raster order.
        key (`torch.Tensor` of shape `[B, t * h * w, H, D]`): after RoPE.
        value (`torch.Tensor` of shape `[B, t * h * w, H, D]`): the values.
        grid (`tuple[int, int, int]`): (t, h, w) in tokens, before padding to blocks.
        settings (`BlockSparseSettings`): blocks, window, causality and share of pairs to keep.
        cache (`BlockKVCache`, *optional*): the stream so far, from [`BlockKVCache.allocate`] or the previous group.
            Its buffers are written in place. Gradients reach the keys and values of this group, not the cached ones.
            `None` is the full forward of training: all frames at once, causal by chunks.
        kv_cache_blocks (`int` or 0-d int64 `torch.Tensor`, *optional*): a narrower window from this group on: all is
            as if the cache held only so many last temporal blocks. As a tensor its value may change without anything
            being recompiled; it is then used as it is, at most the allocated window.
        backend (`str`, *optional*, defaults to `"auto"`): `"sdpa"`, dense attention under a mask, the reference on any
            device; `"gather"`, plain PyTorch over the kept blocks alone, inside `torch.compile` without gradients;
            `"flex"`, FlexAttention, always compiled, on a CPU without gradients and not inside Inductor's graphs;
            `"flex_flash"`, the same by FlashAttention 4's kernels (package `flash-attn-4`), on CUDA alone;
            `"triton"`, a kernel of our own for CUDA, without gradients. `"auto"` takes flex on CUDA (triton where its
            tiles do not fit) and gather elsewhere, but sdpa for gradients inside `torch.compile`.

    Returns:
        `tuple`: the result `[B, t * h * w, H, D]` and the next state (`None` without `cache`).

    Raises:
        ValueError: shapes that do not fit each other or `grid`, an unknown backend, a cache of another batch size,
            head count, resolution, dtype or device, a superseded cache (see [`BlockKVCache.check_current`]; on a CPU,
            outside `torch.compile`), a window that was not allocated.
    """
    layout = BlockLayout(grid, settings)
    _check_inputs(query, key, value, layout, cache, kv_cache_blocks)
    attend = choose_backend(backend, query, key, value, settings)
    if cache is None:
        window, held = 0, torch.zeros((), dtype=torch.int64, device=query.device)
    else:
        if not cache.single_use and cache.slots < cache.kv_cache_blocks + layout.temporal:
            cache = cache.grow(cache.kv_cache_blocks + layout.temporal)
        window = kv_cache_blocks if isinstance(kv_cache_blocks, int) else cache.kv_cache_blocks
        limit = kv_cache_blocks.clamp(max=window) if isinstance(kv_cache_blocks, torch.Tensor) else window
        held = cache.count.clamp(max=limit)
    kept = _select(_pool(query, layout, cache), _pool(key, layout, cache), layout, cache, held, window)
    output = attend(query, key, value, kept, layout, cache)
    return output, None if cache is None else cache.advance(held, layout.temporal, limit)


def _pool(tokens: torch.Tensor, layout: BlockLayout, cache: BlockKVCache | None) -> torch.Tensor:
    """[`BlockLayout.pool`]; on a CPU over copies of the blocks, which sums each from end to end."""
    if tokens.device.type != "cpu":
        return layout.pool(tokens)
    parts = [pool(layout.partition(tokens[:, :, part])) for part in head_parts(tokens, layout, cache)]
    return torch.cat(parts, dim=1)


def _select(
    pooled_queries: torch.Tensor,
    pooled_keys: torch.Tensor,
    layout: BlockLayout,
    cache: BlockKVCache | None,
    held: torch.Tensor,
    window: int,
) -> BlockSelection:
    """[`select_blocks`] for a group's means, both `[B, H, T, S, D]`, after `held` of `window` cached blocks."""
    temporal, rows, columns = layout.blocks
    num_slots, slots = temporal, torch.arange(temporal, device=held.device)
    if cache is not None:
        num_slots = cache.joint_slots(temporal)
        pooled_keys, slots = cache.take_pooled(pooled_keys, window)
    return select_blocks(
        pooled_queries.unflatten(3, (rows, columns)),
        pooled_keys.to(pooled_queries.dtype).unflatten(3, (rows, columns)),
        held,
        layout.settings.top_k(layout.grid),
        layout.settings,
        slots,
        num_slots,
    )


def _check_inputs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: BlockLayout,
    cache: BlockKVCache | None,
    kv_cache_blocks: int | torch.Tensor | None,
) -> None:
    grid = layout.grid
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"`grid` must be three positive token counts (t, h, w), got {tuple(grid)}")
    if query.ndim != 4 or query.shape[1] != math.prod(grid):
        raise ValueError(
            f"`query` must have shape [batch, {math.prod(grid)}, heads, channels] for `grid` {tuple(grid)}, "
            f"got {tuple(query.shape)}"
        )
    for name, tensor in (("key", key), ("value", value)):
        if (tensor.shape, tensor.dtype, tensor.device) != (query.shape, query.dtype, query.device):
            raise ValueError(
                f"`{name}` {tuple(tensor.shape)}, {tensor.dtype}, {tensor.device} differs from "
                f"`query` {tuple(query.shape)}, {query.dtype}, {query.device}"
            )
    if cache is not None:
        _check_cache(cache, query, layout)
    if isinstance(kv_cache_blocks, int):
        if cache is None:
            raise ValueError(f"`kv_cache_blocks` {kv_cache_blocks} was given without a `cache`")
        if not 1 <= kv_cache_blocks <= cache.kv_cache_blocks:
            raise ValueError(
                f"`kv_cache_blocks` must be 1 to {cache.kv_cache_blocks}, which was allocated, got {kv_cache_blocks}"
            )


def _check_cache(cache: BlockKVCache, query: torch.Tensor, layout: BlockLayout) -> None:
    batch, _, heads, channels = query.shape
    grid, volume = layout.grid, layout.settings.volume
    buffers, expected = cache.keys.shape, (batch, heads, cache.slots, layout.spatial, volume, channels)
    if buffers != expected or (cache.height, cache.width) != grid[1:]:
        raise ValueError(
            "`cache` was made for [batch, heads, slots, spatial blocks, block tokens, channels] "
            f"{tuple(buffers)} and frames of {cache.height} x {cache.width} tokens; the input needs {expected} "
            f"and {grid[1]} x {grid[2]}"
        )
    if (cache.keys.dtype, cache.keys.device) != (query.dtype, query.device):
        raise ValueError(
            f"`cache` is {cache.keys.dtype} on {cache.keys.device}, `query` is {query.dtype} on {query.device}"
        )
    # with gradients everywhere: a checkpointed layer that is run again after the stream went on would be wrong
    cheap = query.device.type == "cpu" or (torch.is_grad_enabled() and query.requires_grad)
    if cheap and not torch.compiler.is_compiling():
        cache.check_current()
