# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Block-sparse causal attention of the SR transformer (paper, Phase I): blocks, selection rule, KV cache, backends.

The tokens of a group of latent frames are cut into blocks of (2, 8, 8) tokens. A query block may see the key blocks of
a spatial window around it, causally over time; of these pairs each head keeps the ones whose mean-pooled query and key
agree most, and attention is exact inside the kept pairs. All shapes here depend on the size of a group alone, never on
how far a stream has come, so that nothing is compiled twice and a CUDA graph can replay it.

Names of dimensions: B batch, H heads, D channels of a head, V tokens of a block (its volume), S spatial blocks of a
frame, T temporal blocks of the group, P temporal positions that its queries may see, Q = T * S query blocks,
K = slots * S key blocks that keys are laid out in: the cache's buffers, or a copy of them with the group behind.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from . import triton_attention
from .stream_state import StreamState

BACKENDS = ("auto", "flex", "gather", "sdpa", "triton")
# query [B, H, Q * V, D], key and value [B, H, K * V, D], kept pairs [B, H, Q, K], V -> [B, H, Q * V, D]
Backend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
# elements of the mask that one step of the dense backend may hold, and of the keys that one step of the gathering
# backend may copy per thread: they are to be used while still in the processor's cache
_MASK_ELEMENTS = 2**25
_GATHERED_ELEMENTS = 2**19
# keys of more elements are taken some heads at a time, in so many parts: what is cut into blocks is a copy
_WHOLE_ELEMENTS = 2**25
_HEAD_PARTS = 4


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


@dataclasses.dataclass
class BlockKVCache(StreamState):
    """The last temporal blocks of keys and values of one attention layer, in buffers of fixed size.

    The state that comes back from a group shares the buffers and has other counters, so a stream is a chain: once a
    later state has been advanced, earlier ones are refused (see [`~BlockKVCache.check_current`]). To branch a stream,
    go on from `state.clone()`. There are two kinds:

    - One that can be used again: a ring with as many slots as the window and one group need together, where block
      number n of the stream lies in slot `n % slots`. A group writes only into slots that its input state does not
      count as valid: calling again from the same state (several denoising steps) gives the same numbers, and what
      counts is the keys and values of the last call.
    - One for a single use (`single_use`): as many slots as the window, the oldest block first. A group attends to a
      copy of them with its own keys and values behind, which lives as long as the layer runs, and then takes their
      place. The memory of the group's blocks is saved in every layer; calling again is refused.

    Args:
        keys (`torch.Tensor` of shape `[B, H, slots, S, V, D]`): keys after RoPE.
        values (`torch.Tensor` of shape `[B, H, slots, S, V, D]`): values.
        pooled_keys (`torch.Tensor` of shape `[B, H, slots, S, D]`): the means of `keys` over the tokens of a block.
        position (`torch.Tensor`, 0-d int64): temporal blocks of the stream before this state.
        count (`torch.Tensor`, 0-d int64): how many of the last ones the buffers still hold, up to `kv_cache_blocks`.
        writer (`torch.Tensor`, 0-d int64): the oldest `position` from which the buffers are still good; shared like
            them.
        kv_cache_blocks (`int`): the window, in temporal blocks.
        height (`int`): tokens over the height of a frame.
        width (`int`): tokens over the width of a frame.
        single_use (`bool`, *optional*, defaults to `False`): the kind, see above.
    """

    keys: torch.Tensor
    values: torch.Tensor
    pooled_keys: torch.Tensor
    position: torch.Tensor
    count: torch.Tensor
    writer: torch.Tensor
    kv_cache_blocks: int
    height: int
    width: int
    single_use: bool = False

    @classmethod
    def allocate(
        cls,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        grid: tuple[int, int, int],
        settings: BlockSparseSettings,
        kv_cache_blocks: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        single_use: bool = False,
    ) -> BlockKVCache:
        """Returns the empty cache with which a stream starts.

        Args:
            batch_size (`int`): samples.
            num_heads (`int`): attention heads.
            head_dim (`int`): channels of a head.
            grid (`tuple[int, int, int]`): tokens (t, h, w) of a group. A longer group later makes the buffers of a
                cache that can be used again grow, once; shorter ones never do.
            settings (`BlockSparseSettings`): the blocks.
            kv_cache_blocks (`int`, *optional*, defaults to 3): temporal blocks to remember between groups.
            device (`torch.device` or `str`, *optional*): where the buffers lie.
            dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): of keys and values. Pooled keys, on which
                the selection stands, are never below float32.
            single_use (`bool`, *optional*, defaults to `False`): whether each state is used once: less memory.

        Raises:
            ValueError: `kv_cache_blocks` or a dimension is not positive.
        """
        if kv_cache_blocks < 1:
            raise ValueError(f"`kv_cache_blocks` must be at least 1, got {kv_cache_blocks}")
        if min(batch_size, num_heads, head_dim, *grid) < 1:
            raise ValueError(
                "`batch_size`, `num_heads`, `head_dim` and `grid` must be positive, "
                f"got {batch_size}, {num_heads}, {head_dim}, {tuple(grid)}"
            )
        temporal, rows, columns = settings.count_blocks(grid)
        slots = kv_cache_blocks if single_use else kv_cache_blocks + temporal
        shape = (batch_size, num_heads, slots, rows * columns)
        return cls(
            # zeros, since a masked-out NaN of uninitialised memory would still spoil a weighted sum
            keys=torch.zeros(*shape, settings.volume, head_dim, device=device, dtype=dtype),
            values=torch.zeros(*shape, settings.volume, head_dim, device=device, dtype=dtype),
            pooled_keys=torch.zeros(*shape, head_dim, device=device, dtype=_pooled_dtype(dtype)),
            position=torch.zeros((), device=device, dtype=torch.int64),
            count=torch.zeros((), device=device, dtype=torch.int64),
            writer=torch.zeros((), device=device, dtype=torch.int64),
            kv_cache_blocks=kv_cache_blocks,
            height=grid[1],
            width=grid[2],
            single_use=single_use,
        )

    @property
    def slots(self) -> int:
        """Temporal blocks that the buffers can hold."""
        return self.keys.shape[2]

    def check_current(self) -> None:
        """Checks that no later state of the same stream has been advanced since.

        It reads one number from the device: nothing on a CPU or beside a backward pass, where
        [`block_sparse_attention`] does it by itself; on a GPU a synchronisation, which is left to whoever wants it.

        Raises:
            ValueError: the buffers have gone on without this state.
        """
        if self.writer > self.position:
            raise ValueError(
                f"`cache` is the state after {int(self.position)} temporal blocks, but its buffers have been advanced "
                f"from the state after {int(self.writer)}: go on from the newest state, or branch with `state.clone()`"
            )

    def slots_of(self, first: int, number: int) -> torch.Tensor:
        """Slots of `number` consecutive blocks, the first of which is `first` after `position` (before: negative)."""
        return (self.position + torch.arange(first, first + number, device=self.position.device)) % self.slots

    def grow(self, slots: int) -> BlockKVCache:
        """Returns the same state in new buffers of `slots` slots."""
        numbers = self.position + torch.arange(-self.kv_cache_blocks, 0, device=self.position.device)

        def moved(buffer: torch.Tensor) -> torch.Tensor:
            grown = buffer.new_zeros(*buffer.shape[:2], slots, *buffer.shape[3:])
            return grown.index_copy_(2, numbers % slots, buffer.index_select(2, numbers % self.slots))

        return dataclasses.replace(
            self,
            keys=moved(self.keys),
            values=moved(self.values),
            pooled_keys=moved(self.pooled_keys),
            writer=self.position.clone(),
        )

    def heads(self, part: slice) -> BlockKVCache:
        """Returns the cache of some of the heads, which shares the buffers."""
        return dataclasses.replace(
            self, keys=self.keys[:, part], values=self.values[:, part], pooled_keys=self.pooled_keys[:, part]
        )

    def take_pooled(self, pooled_keys: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes in the means of a group's key blocks, of all heads, before [`~BlockKVCache.take`] takes the blocks.

        Args:
            pooled_keys (`torch.Tensor` of shape `[B, H, T, S, D]`): the group's.
            window (`int`): temporal blocks in front of the group that it may see.

        Returns:
            `tuple`: pooled keys `[B, H, window + T, S, D]` of the past and the group, oldest first, and where their
            blocks lie in what `take` returns, `[window + T]`.
        """
        temporal = pooled_keys.shape[2]
        pooled_keys = pooled_keys.to(self.pooled_keys.dtype)
        self.writer.copy_(self.position + temporal if self.single_use else self.position)
        if self.single_use:
            joined = torch.cat([self.pooled_keys, pooled_keys], dim=2)
            self.pooled_keys.copy_(joined[:, :, -self.slots :])
            return joined[:, :, self.slots - window :], self._joint_slots(temporal)[self.slots - window :]
        slots = self.slots_of(-window, window + temporal)
        self.pooled_keys.index_copy_(2, slots[window:], pooled_keys)
        return self.pooled_keys.index_select(2, slots), slots

    def take(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes in a group's blocks, both `[B, H, T, S, V, D]`: of all heads, or of those of [`~BlockKVCache.heads`].

        Returns:
            `tuple`: keys and values `[B, H, slots, S, V, D]` of the past and the group.
        """
        temporal = keys.shape[2]
        if self.single_use:
            slots = self._joint_slots(temporal)
            joint = _laid_out(self.keys, keys, slots), _laid_out(self.values, values, slots)
            for buffer, new in ((self.keys, keys), (self.values, values)):
                last = new[:, :, -self.slots :].detach().to(buffer.dtype)
                buffer.copy_(torch.cat([buffer[:, :, temporal:], last], dim=2))
            return joint
        slots = self.slots_of(0, temporal)
        for buffer, new in ((self.keys, keys), (self.values, values)):
            buffer.index_copy_(2, slots, new.detach().to(buffer.dtype))
        if not torch.is_grad_enabled():
            return self.keys, self.values
        # autograd must not see buffers that the next group writes into; what was cached has no gradient
        return self.keys.index_copy(2, slots, keys), self.values.index_copy(2, slots, values)

    def _joint_slots(self, temporal: int) -> torch.Tensor:
        """Where a single-use cache's blocks and then a group's lie, to be attended to.

        As a ring with room for both would have them: the results are the same to the last bit.
        """
        numbers = self.position + torch.arange(-self.slots, temporal, device=self.position.device)
        return numbers % len(numbers)

    def advance(self, held: torch.Tensor, written: int, window: int | torch.Tensor) -> BlockKVCache:
        """Returns the state after a group of `written` temporal blocks, of which `held` were there before."""
        return dataclasses.replace(self, position=self.position + written, count=(held + written).clamp(max=window))


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
            `"triton"`, a kernel of our own for CUDA, without gradients. `"auto"` takes flex on CUDA (triton where its
            tiles do not fit) and gather elsewhere, but sdpa for gradients inside `torch.compile`.

    Returns:
        `tuple`: the result `[B, t * h * w, H, D]` and the next state (`None` without `cache`).

    Raises:
        ValueError: shapes that do not fit each other or `grid`, an unknown backend, a cache of another batch size,
            head count, resolution, dtype or device, a superseded cache (see [`BlockKVCache.check_current`]; on a CPU,
            outside `torch.compile`), a window that was not allocated.
    """
    _check_inputs(query, key, value, grid, cache, kv_cache_blocks, settings)
    attend = _choose_backend(backend, query, key, value, settings)
    temporal, heads = settings.count_blocks(grid)[0], query.shape[2]
    if cache is None:
        window, held = 0, torch.zeros((), dtype=torch.int64, device=query.device)
    else:
        if not cache.single_use and cache.slots < cache.kv_cache_blocks + temporal:
            cache = cache.grow(cache.kv_cache_blocks + temporal)
        window = kv_cache_blocks if isinstance(kv_cache_blocks, int) else cache.kv_cache_blocks
        limit = kv_cache_blocks.clamp(max=window) if isinstance(kv_cache_blocks, torch.Tensor) else window
        held = cache.count.clamp(max=limit)
    step = heads if torch.is_grad_enabled() else _heads_at_a_time(query, grid, settings, window)
    parts = [slice(first, first + step) for first in range(0, heads, step)]
    # one selection for all heads, since means are small: on a GPU its many steps take no longer than for some heads
    pooled_queries, pooled_keys = (
        torch.cat([_pool(_partition(tensor[:, :, part], grid, settings)) for part in parts], dim=1)
        for tensor in (query, key)
    )
    kept = _select(pooled_queries, pooled_keys, grid, settings, cache, held, window)
    outputs = []
    for part in parts:
        group = (query[:, :, part], key[:, :, part], value[:, :, part])
        part_cache = None if cache is None else cache.heads(part)
        outputs.append(_attend_heads(*group, kept[:, part], grid, settings, part_cache, attend))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return output, None if cache is None else cache.advance(held, temporal, limit)


def _heads_at_a_time(
    query: torch.Tensor, grid: tuple[int, int, int], settings: BlockSparseSettings, window: int
) -> int:
    """How many heads to cut into blocks together; each attends for itself, so the result does not depend on it."""
    batch, _, heads, channels = query.shape
    temporal, rows, columns = settings.count_blocks(grid)
    elements = batch * heads * (window + temporal) * rows * columns * settings.volume * channels
    return heads if elements <= _WHOLE_ELEMENTS else -(-heads // _HEAD_PARTS)


def _select(
    pooled_queries: torch.Tensor,
    pooled_keys: torch.Tensor,
    grid: tuple[int, int, int],
    settings: BlockSparseSettings,
    cache: BlockKVCache | None,
    held: torch.Tensor,
    window: int,
) -> torch.Tensor:
    """[`select_blocks`] for a group's means, both `[B, H, T, S, D]`, after `held` of `window` cached blocks."""
    temporal, rows, columns = settings.count_blocks(grid)
    num_slots, slots = temporal, torch.arange(temporal, device=held.device)
    if cache is not None:
        num_slots = cache.slots + temporal if cache.single_use else cache.slots
        pooled_keys, slots = cache.take_pooled(pooled_keys, window)
    return select_blocks(
        pooled_queries.unflatten(3, (rows, columns)),
        pooled_keys.to(pooled_queries.dtype).unflatten(3, (rows, columns)),
        held,
        settings.top_k(grid),
        settings,
        slots,
        num_slots,
    )


def _attend_heads(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: torch.Tensor,
    grid: tuple[int, int, int],
    settings: BlockSparseSettings,
    cache: BlockKVCache | None,
    attend: Backend,
) -> torch.Tensor:
    """[`block_sparse_attention`] of some heads to their kept blocks: `[B, t * h * w, heads, D]`."""
    queries, keys, values = (_partition(tensor, grid, settings) for tensor in (query, key, value))
    if cache is not None:
        keys, values = cache.take(keys, values)
    queries, keys, values = (blocks.flatten(2, 4) for blocks in (queries, keys, values))
    output = attend(queries, keys, values, kept, settings.volume)
    del queries, keys, values  # before the result is copied once more
    return _unpartition(output, grid, settings)


@torch.no_grad()
def select_blocks(
    pooled_queries: torch.Tensor,
    pooled_keys: torch.Tensor,
    held: torch.Tensor,
    top_k: int,
    settings: BlockSparseSettings,
    slots: torch.Tensor,
    num_slots: int,
) -> torch.Tensor:
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
        `torch.Tensor` of shape `[B, H, Q, K]`: True where a query block attends to a key block of the buffers.
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
    pairs = torch.zeros(*kept.shape[:4], num_slots * spatial, dtype=torch.bool, device=device)
    return pairs.scatter_(-1, key_block.expand_as(kept), kept).flatten(2, 3)


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


def _laid_out(past: torch.Tensor, group: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Blocks `past` and then `group`, both `[B, H, blocks, ...]`, in their slots."""
    joined = group.new_empty(*group.shape[:2], len(slots), *group.shape[3:])
    joined.index_copy_(2, slots[: past.shape[2]], past)
    return joined.index_copy_(2, slots[past.shape[2] :], group)


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


def _attend_gathered(
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
def _attend_gathered_opaquely(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor, volume: int
) -> torch.Tensor:
    """The same as one operator without a gradient: `torch.compile` need not see its data-dependent shapes."""
    return _attend_gathered(query, key, value, kept, volume)


@_attend_gathered_opaquely.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor, volume: int) -> torch.Tensor:
    return query.new_empty(query.shape)


def _attend_flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: torch.Tensor,
    volume: int,
    with_gradients: bool,
) -> torch.Tensor:
    """FlexAttention over the kept pairs; only to be run inside `torch.compile`."""
    counts, indices = triton_attention.block_lists(kept)

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
    return flex_attention(query, key, value, block_mask=mask)


@functools.cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    # the first shape is compiled as it is, the others together, with dynamic shapes
    return torch.compile(_attend_flex, fullgraph=True)


def _choose_backend(
    backend: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: BlockSparseSettings
) -> Backend:
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    compiling = torch.compiler.is_compiling()
    on_cuda = query.device.type == "cuda"
    with_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    triton_runs = triton_attention.supports(query.device, settings.volume, query.shape[3])
    if backend == "auto" and on_cuda and settings.volume % 128 == 0:  # Flex's kernels have tiles of up to 128 tokens
        backend = "flex"
    elif backend == "auto" and on_cuda and triton_runs and not with_gradients:
        backend = "triton"  # unlike gathering, it never asks the device how much is kept
    elif backend == "auto":
        backend = "sdpa" if compiling and with_gradients else "gather"
    if backend == "triton":
        if not triton_runs:
            raise ValueError(
                f"`backend` 'triton' cannot run here (Triton {'' if triton_attention.AVAILABLE else 'not '}installed, "
                f"device {query.device}, blocks of {settings.volume} tokens, {query.shape[3]} channels): use 'auto'"
            )
        if with_gradients:
            raise ValueError("`backend` 'triton' has no gradients: use 'flex' or 'sdpa'")
        opaque = compiling or query.device.type == "meta"
        return triton_attention.attend_opaquely if opaque else triton_attention.attend
    if backend == "flex":
        if with_gradients and not on_cuda:
            raise ValueError("`backend` 'flex' has no gradients on a CPU: use 'gather' or 'sdpa'")
        attend = _attend_flex if compiling else _compiled_flex()
        return functools.partial(attend, with_gradients=with_gradients)
    if backend == "gather":
        if compiling and with_gradients:
            raise ValueError("`backend` 'gather' has no gradients inside torch.compile: use 'sdpa'")
        return _attend_gathered_opaquely if compiling else _attend_gathered
    return attend_masked


def _pooled_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _pool(blocks: torch.Tensor) -> torch.Tensor:
    """Means over the tokens of each block, without gradients: the selection has none."""
    return blocks.detach().mean(dim=-2, dtype=_pooled_dtype(blocks.dtype))


def _partition(tensor: torch.Tensor, grid: tuple[int, int, int], settings: BlockSparseSettings) -> torch.Tensor:
    """`[B, t * h * w, H, D]` in raster order -> `[B, H, T, S, V, D]`, padded with zeros."""
    t, h, w = settings.block_size
    temporal, rows, columns = settings.count_blocks(grid)
    tensor = tensor.unflatten(1, grid)
    padding = (0, 0, 0, 0, 0, columns * w - grid[2], 0, rows * h - grid[1], 0, temporal * t - grid[0])
    if any(padding):
        tensor = F.pad(tensor, padding)
    blocks = tensor.unflatten(3, (columns, w)).unflatten(2, (rows, h)).unflatten(1, (temporal, t))
    # [B, T, t, rows, h, columns, w, H, D]
    return blocks.permute(0, 7, 1, 3, 5, 2, 4, 6, 8).flatten(5, 7).flatten(3, 4)


def _unpartition(tensor: torch.Tensor, grid: tuple[int, int, int], settings: BlockSparseSettings) -> torch.Tensor:
    """`[B, H, Q * V, D]` -> `[B, t * h * w, H, D]` in raster order, padding cut off."""
    blocks = tensor.unflatten(2, (*settings.count_blocks(grid), *settings.block_size))
    # [B, H, T, rows, columns, t, h, w, D]
    tokens = blocks.permute(0, 2, 5, 3, 6, 4, 7, 1, 8).flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return tokens[:, : grid[0], : grid[1], : grid[2]].flatten(1, 3)


def _check_inputs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: tuple[int, int, int],
    cache: BlockKVCache | None,
    kv_cache_blocks: int | torch.Tensor | None,
    settings: BlockSparseSettings,
) -> None:
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
        _check_cache(cache, query, grid, settings)
    if isinstance(kv_cache_blocks, int):
        if cache is None:
            raise ValueError(f"`kv_cache_blocks` {kv_cache_blocks} was given without a `cache`")
        if not 1 <= kv_cache_blocks <= cache.kv_cache_blocks:
            raise ValueError(
                f"`kv_cache_blocks` must be 1 to {cache.kv_cache_blocks}, which was allocated, got {kv_cache_blocks}"
            )


def _check_cache(
    cache: BlockKVCache, query: torch.Tensor, grid: tuple[int, int, int], settings: BlockSparseSettings
) -> None:
    batch, _, heads, channels = query.shape
    _, rows, columns = settings.count_blocks(grid)
    buffers, expected = cache.keys.shape, (batch, heads, cache.slots, rows * columns, settings.volume, channels)
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
