# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Block-sparse attention as one Triton kernel that follows lists of kept key blocks.

A program attends from some rows of one query block of one head to the key blocks in its list, with the running softmax
of FlashAttention. Nothing is read that is not kept, no mask exists, and there is no padding: a query block costs what
its list is long. One launch for all heads begins with the longest lists, so that no multiprocessor is left with one at
the end. Tokens are read where they are, the group's in raster order and the past's in the blocks of the cache, and the
result is written in raster order: nothing is cut into blocks, joined or put together again. Forward only. Triton comes
with the CUDA builds of PyTorch; without it, [`supports`] says no.

The tensor memory accelerator is not used: tiles lie in two places, and a choice between two descriptors inside the
loop keeps Triton from loading ahead.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os

import torch

from ..block_kv_cache import BlockKVCache
from ..block_layout import BlockLayout
from ..block_selection import BlockSelection

# whether it is installed for NVIDIA's GPUs, and whether it runs kernels on the CPU, one operation at a time
AVAILABLE = importlib.util.find_spec("triton") is not None and torch.version.hip is None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclasses.dataclass(frozen=True)
class LaunchSettings:
    """How the kernel is cut; all give the same result.

    Args:
        rows (`int`): query tokens of a program.
        columns (`int`): key tokens of one step of its loop. Both are powers of two that divide a block's tokens.
        num_warps (`int`): warps of a program.
        num_stages (`int`): loads in flight.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int


def supports(device: torch.device, volume: int, channels: int) -> bool:
    """Whether the kernel can run on `device` for blocks of `volume` tokens and heads of `channels` channels.

    On the meta device, for shapes alone, it needs no Triton.
    """
    runs = AVAILABLE and (device.type == "cuda" or (device.type == "cpu" and INTERPRETED))
    return (runs or device.type == "meta") and volume % 16 == 0 and channels in (16, 32, 64, 128)


def launch_choices(device: torch.device, volume: int, channels: int, dtype: torch.dtype) -> list[LaunchSettings]:
    """The settings that are worth trying on `device`, the default one first."""
    if device.type != "cuda":
        return fitting_choices(0, volume, channels, dtype)
    properties = torch.cuda.get_device_properties(device)
    shared_memory = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # missing in its stub
    return fitting_choices(shared_memory, volume, channels, dtype)


def fitting_choices(shared_memory: int, volume: int, channels: int, dtype: torch.dtype) -> list[LaunchSettings]:
    """The settings for GPUs of a kind that need not be there; `benchmarks.triton_code` shows what becomes of them.

    Args:
        shared_memory (`int`): bytes that a program may have.
        volume (`int`): tokens of a block.
        channels (`int`): channels of a head.
        dtype (`torch.dtype`): of queries, keys and values.

    Returns:
        `list[LaunchSettings]`: the best one first, as far as the machine code tells: where two programs fit on a
            multiprocessor, one computes while the other waits. All fit.
    """
    part = math.gcd(volume, 128)
    half = max(part // 2, 16)
    if dtype == torch.float32:  # exact products run beside the matrix units, and larger tiles spill their registers
        return [LaunchSettings(min(part, 32), min(part, 32), 4, 2)]
    wide = LaunchSettings(part, half, 8 if part * channels >= 128 * 128 else 4, 3)
    narrow = LaunchSettings(half, half, 4, 3)
    if shared_memory >= 200 * 1024:
        return [narrow, wide, LaunchSettings(part, part, 8, 2)]
    return [wide, narrow]


if AVAILABLE:
    import triton
    import triton.language as tl

    @triton.jit
    def _attend_kernel(  # type: ignore[no-untyped-def]
        query,
        key,
        value,
        output,
        past_keys: tl.int64,
        past_values: tl.int64,
        order,
        counts,
        lists,
        list_length,
        heads,
        frames,
        height,
        width,
        rows,
        columns,
        query_blocks,
        past_blocks,
        scale,
        FRAMES: tl.constexpr,
        HEIGHT: tl.constexpr,
        WIDTH: tl.constexpr,
        CHANNELS: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        PRECISION: tl.constexpr,
    ):
        """Its arguments are those of [`attend`] and [`BlockLists`]; capital letters are a block and its tiles.

        `past_keys` and `past_values` are how many elements after `key` and `value` those of the cache lie.
        """
        VOLUME: tl.constexpr = FRAMES * HEIGHT * WIDTH
        row_parts: tl.constexpr = VOLUME // ROWS
        column_parts: tl.constexpr = VOLUME // COLUMNS
        entry = tl.load(order + tl.program_id(0) // row_parts)
        head = (entry // query_blocks).to(tl.int64)  # of all samples
        token_size, spatial = heads * CHANNELS, rows * columns
        start = head // heads * frames * height * width * token_size + head % heads * CHANNELS  # in the group
        channel = tl.arange(0, CHANNELS)[None, :]

        block = entry % query_blocks
        frame, row = block // spatial * FRAMES, block % spatial // columns * HEIGHT
        column = block % columns * WIDTH
        token = tl.program_id(0) % row_parts * ROWS + tl.arange(0, ROWS)
        t, h, w = token // (HEIGHT * WIDTH), token // WIDTH % HEIGHT, token % WIDTH
        inside = ((frame + t < frames) & (row + h < height) & (column + w < width))[:, None]
        first = start + ((frame * height + row) * width + column).to(tl.int64) * token_size
        places = (((t * height + h) * width + w) * token_size)[:, None] + channel
        q = tl.load(query + first + places, mask=inside, other=0.0)

        largest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        result = tl.zeros([ROWS, CHANNELS], tl.float32)
        tile = tl.arange(0, COLUMNS)
        for step in range(0, tl.load(counts + entry) * column_parts):
            source = tl.load(lists + entry.to(tl.int64) * list_length + step // column_parts)
            key_token = step % column_parts * COLUMNS + tile
            kt, kh, kw = key_token // (HEIGHT * WIDTH), key_token // WIDTH % HEIGHT, key_token % WIDTH
            # a block of the group begins at a frame, row and column, and may reach beyond the last ones
            key_block = -1 - source
            key_frame, key_row = key_block // spatial * FRAMES, key_block % spatial // columns * HEIGHT
            key_column = key_block % columns * WIDTH
            own = start + ((key_frame * height + key_row) * width + key_column).to(tl.int64) * token_size
            past = (head * past_blocks + source) * VOLUME * CHANNELS
            is_past = source >= 0
            key_inside = (key_frame + kt < frames) & (key_row + kh < height) & (key_column + kw < width)
            seen = (is_past | key_inside)[:, None]
            offset = tl.where(is_past, key_token * CHANNELS, ((kt * height + kh) * width + kw) * token_size)
            offset = offset[:, None] + channel
            k = tl.load(key + tl.where(is_past, past_keys + past, own) + offset, mask=seen, other=0.0)
            v = tl.load(value + tl.where(is_past, past_values + past, own) + offset, mask=seen, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            now_largest = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp2(scores - now_largest[:, None])
            shrink = tl.exp2(largest - now_largest)
            total = total * shrink + tl.sum(weights, 1)
            result = result * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
            largest = now_largest
        tl.store(output + first + places, (result / total[:, None]).to(output.dtype.element_ty), mask=inside)


def product_precision(dtype: torch.dtype) -> str:
    """The kernel's `PRECISION`: float32 products are exact, others do not look at it."""
    return "ieee" if dtype == torch.float32 else "tf32"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    selection: BlockSelection,
    layout: BlockLayout,
    cache: BlockKVCache | None,
    settings: LaunchSettings | None = None,
) -> torch.Tensor:
    """Attends to the kept key blocks, without gradients; see [`Backend`].

    Args:
        query, key, value (`torch.Tensor` of shape `[B, t * h * w, H, D]`): a group's tokens in raster order.
        selection ([`BlockSelection`]): the pairs that attend.
        layout ([`BlockLayout`]): the group's blocks.
        cache ([`BlockKVCache`], *optional*): the past, which takes the group in.
        settings ([`LaunchSettings`], *optional*): the first of [`launch_choices`] by default.

    Returns:
        `torch.Tensor`: like `query`.
    """
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    # the past of a stream without one is never read
    past = (key, value) if cache is None else (cache.keys, cache.values)
    lists = make_lists(selection, layout, cache)
    sizes = [*layout.grid, *layout.settings.block_size]
    if torch.compiler.is_compiling() or query.device.type == "meta":
        output = _launch_opaquely(query, key, value, *past, *lists, sizes)
    else:
        output = _launch(query, key, value, *past, *lists, sizes, settings)
    if cache is not None:
        cache.write(layout.view(key), layout.view(value))
    return output


def make_lists(
    selection: BlockSelection, layout: BlockLayout, cache: BlockKVCache | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turns the kept pairs into lists, without asking the device how long they are.

    Returns:
        `tuple`: the numbers of query blocks of all samples and heads, those with the longest lists first,
        `[B * H * Q]`; how long the lists are, `[B * H * Q]`; and the lists, `[B * H * Q, M]`: numbers of the cache's
        key blocks, or -1 - i for the group's block i. All int32.
    """
    source, spatial = torch.arange(-1, -1 - layout.temporal, -1, device=selection.kept.device), layout.spatial
    if cache is not None:
        source = cache.sources(layout.temporal)
    slot, block = selection.key_block // spatial, selection.key_block % spatial
    source = source[slot]
    numbers = torch.where(source < 0, (source + 1) * spatial - block - 1, source * spatial + block).int()
    kept = selection.kept.flatten(0, 2)  # [B * H * T, S, M]
    counts = kept.sum(dim=-1, dtype=torch.int32)
    # what is not kept goes behind the end
    place = torch.where(kept, kept.cumsum(dim=-1) - 1, kept.shape[-1])
    lists = torch.zeros(*kept.shape[:2], kept.shape[-1] + 1, dtype=torch.int32, device=kept.device)
    lists.scatter_(-1, place, numbers.expand_as(kept))
    counts = counts.flatten()
    return counts.argsort(descending=True).int(), counts, lists.flatten(0, 1)


def _launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_keys: torch.Tensor,
    past_values: torch.Tensor,
    order: torch.Tensor,
    counts: torch.Tensor,
    lists: torch.Tensor,
    sizes: list[int],
    settings: LaunchSettings | None = None,
) -> torch.Tensor:
    """[`attend`] by the lists of [`make_lists`]; `sizes` are the grid and the block, over time, height and width."""
    heads, channels = query.shape[2:]
    frames, height, width, *block = sizes
    volume = math.prod(block)
    settings = settings or launch_choices(query.device, volume, channels, query.dtype)[0]
    rows, columns = -(-height // block[1]), -(-width // block[2])
    query_blocks = -(-frames // block[0]) * rows * columns
    output = torch.empty_like(query)
    with torch.cuda.device_of(query):  # Triton launches on the current device, wherever the tensors are
        _attend_kernel[(len(order) * (volume // settings.rows),)](
            query,
            key,
            value,
            output,
            (past_keys.data_ptr() - key.data_ptr()) // key.element_size(),
            (past_values.data_ptr() - value.data_ptr()) // value.element_size(),
            order,
            counts,
            lists,
            lists.shape[1],
            heads,
            frames,
            height,
            width,
            rows,
            columns,
            query_blocks,
            past_keys.shape[2] * rows * columns,
            math.log2(math.e) / math.sqrt(channels),
            FRAMES=block[0],
            HEIGHT=block[1],
            WIDTH=block[2],
            CHANNELS=channels,
            ROWS=settings.rows,
            COLUMNS=settings.columns,
            PRECISION=product_precision(query.dtype),
            num_warps=settings.num_warps,
            num_stages=settings.num_stages,
        )
    return output


@torch.library.custom_op("ultraflash_diffusers::attend_triton", mutates_args=())
def _launch_opaquely(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_keys: torch.Tensor,
    past_values: torch.Tensor,
    order: torch.Tensor,
    counts: torch.Tensor,
    lists: torch.Tensor,
    sizes: list[int],
) -> torch.Tensor:
    """The kernel as one operator to `torch.compile`; what makes the lists is compiled."""
    return _launch(query, key, value, past_keys, past_values, order, counts, lists, sizes)


@_launch_opaquely.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_keys: torch.Tensor,
    past_values: torch.Tensor,
    order: torch.Tensor,
    counts: torch.Tensor,
    lists: torch.Tensor,
    sizes: list[int],
) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)
