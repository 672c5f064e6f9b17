# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Block-sparse attention as one Triton kernel that follows lists of kept key blocks.

A program attends from some rows of one query block of one head to the key blocks in its list, with the running softmax
of FlashAttention. Nothing is read that is not kept, no mask exists, and there is no padding: a query block costs what
its list is long. Forward only. Triton comes with the CUDA builds of PyTorch; without it, [`supports`] says no.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os

import torch

from .block_lists import block_lists

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
        tma (`bool`): whether keys and values come through the tensor memory accelerator (Hopper and later).
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int
    tma: bool


def supports(device: torch.device, volume: int, channels: int) -> bool:
    """Whether the kernel can run on `device` for blocks of `volume` tokens and heads of `channels` channels.

    On the meta device, for shapes alone, it needs no Triton.
    """
    runs = AVAILABLE and (device.type == "cuda" or (device.type == "cpu" and INTERPRETED))
    return (runs or device.type == "meta") and volume % 16 == 0 and channels in (16, 32, 64, 128)


def launch_choices(device: torch.device, volume: int, channels: int, dtype: torch.dtype) -> list[LaunchSettings]:
    """The settings that are worth trying on `device`, the default one first."""
    if device.type != "cuda":
        return fitting_choices(0, 0, volume, channels, dtype)
    properties = torch.cuda.get_device_properties(device)
    shared_memory = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # missing in its stub
    return fitting_choices(properties.major, shared_memory, volume, channels, dtype)


def fitting_choices(
    major: int, shared_memory: int, volume: int, channels: int, dtype: torch.dtype
) -> list[LaunchSettings]:
    """The settings for GPUs of a kind that need not be there; `benchmarks/triton_code.py` shows what becomes of them.

    Args:
        major (`int`): of the compute capability.
        shared_memory (`int`): bytes that a program may have.
        volume (`int`): tokens of a block.
        channels (`int`): channels of a head.
        dtype (`torch.dtype`): of queries, keys and values.

    Returns:
        `list[LaunchSettings]`: the first one fits every GPU since Ampere, with 99 KiB.
    """
    part = math.gcd(volume, 128)
    half = max(part // 2, 16)
    if dtype == torch.float32:  # exact products run beside the matrix units, and larger tiles spill their registers
        return [LaunchSettings(min(part, 32), min(part, 32), 4, 2, False)]
    wide = LaunchSettings(part, half, 8 if part * channels >= 128 * 128 else 4, 3, False)
    choices = [wide, LaunchSettings(half, half, 4, 3, False)]
    if shared_memory >= 200 * 1024:
        choices.append(LaunchSettings(part, part, 8, 2, False))
    if major >= 9:
        choices += [dataclasses.replace(choice, tma=True) for choice in choices]
    return choices


if AVAILABLE:
    import triton
    import triton.language as tl

    @triton.jit
    def _attend_kernel(  # type: ignore[no-untyped-def]
        query,
        key,
        value,
        output,
        counts,
        indices,
        query_blocks,
        key_blocks,
        scale,
        VOLUME: tl.constexpr,
        CHANNELS: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        TMA: tl.constexpr,
        PRECISION: tl.constexpr,
    ):
        row_parts: tl.constexpr = VOLUME // ROWS
        column_parts: tl.constexpr = VOLUME // COLUMNS
        block = tl.program_id(0) // row_parts
        head = tl.program_id(1).to(tl.int64)  # of all samples
        listed = head * query_blocks + block
        channel = tl.arange(0, CHANNELS)
        column = tl.arange(0, COLUMNS)
        row = listed * VOLUME + tl.program_id(0) % row_parts * ROWS + tl.arange(0, ROWS)
        places = row[:, None] * CHANNELS + channel[None, :]
        q = tl.load(query + places)

        largest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        result = tl.zeros([ROWS, CHANNELS], tl.float32)
        number = tl.load(counts + listed)
        for step in range(0, number * column_parts):
            kept = tl.load(indices + listed * key_blocks + step // column_parts)
            first = (head * key_blocks + kept) * VOLUME + step % column_parts * COLUMNS
            if TMA:
                k = key.load([first.to(tl.int32), 0])
                v = value.load([first.to(tl.int32), 0])
            else:
                seen = (first + column)[:, None] * CHANNELS + channel[None, :]
                k = tl.load(key + seen)
                v = tl.load(value + seen)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            now_largest = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp2(scores - now_largest[:, None])
            shrink = tl.exp2(largest - now_largest)
            total = total * shrink + tl.sum(weights, 1)
            result = result * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
            largest = now_largest
        tl.store(output + places, (result / total[:, None]).to(output.dtype.element_ty))


def product_precision(dtype: torch.dtype) -> str:
    """The kernel's `PRECISION`: float32 products are exact, others do not look at it."""
    return "ieee" if dtype == torch.float32 else "tf32"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: torch.Tensor,
    volume: int,
    settings: LaunchSettings | None = None,
) -> torch.Tensor:
    """Attends to the kept key blocks.

    Args:
        query (`torch.Tensor` of shape `[B, H, Q * V, D]`): block after block, like `key` and `value`.
        key, value (`torch.Tensor` of shape `[B, H, K * V, D]`): them.
        kept (`torch.Tensor` of shape `[B, H, Q, K]`, bool): the key blocks of each query block, at least one.
        volume (`int`): V, tokens of a block.
        settings ([`LaunchSettings`], *optional*): the first of [`launch_choices`] by default.

    Returns:
        `torch.Tensor`: like `query`, without a gradient.
    """
    return _launch(query, key, value, *block_lists(kept), volume, settings)


def _launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    counts: torch.Tensor,
    indices: torch.Tensor,
    volume: int,
    settings: LaunchSettings | None = None,
) -> torch.Tensor:
    """[`attend`] by the lists of [`block_lists`]."""
    batch, heads, query_blocks, key_blocks = indices.shape
    channels = query.shape[3]
    settings = settings or launch_choices(query.device, volume, channels, query.dtype)[0]
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    output = torch.empty_like(query)
    keys, values = key, value
    if settings.tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        tile = [settings.columns, channels]
        keys, values = (TensorDescriptor.from_tensor(tensor.view(-1, channels), tile) for tensor in (key, value))
    with torch.cuda.device_of(query):  # Triton launches on the current device, wherever the tensors are
        _attend_kernel[(query_blocks * (volume // settings.rows), batch * heads)](
            query,
            keys,
            values,
            output,
            counts,
            indices,
            query_blocks,
            key_blocks,
            math.log2(math.e) / math.sqrt(channels),
            VOLUME=volume,
            CHANNELS=channels,
            ROWS=settings.rows,
            COLUMNS=settings.columns,
            TMA=settings.tma,
            PRECISION=product_precision(query.dtype),
            num_warps=settings.num_warps,
            num_stages=settings.num_stages,
        )
    return output


def attend_opaquely(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor, volume: int
) -> torch.Tensor:
    """[`attend`] for `torch.compile`: the kernel is one operator to it, what makes the lists is compiled."""
    return _launch_opaquely(query, key, value, *block_lists(kept), volume)


@torch.library.custom_op("ultraflash_diffusers::attend_triton", mutates_args=())
def _launch_opaquely(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    counts: torch.Tensor,
    indices: torch.Tensor,
    volume: int,
) -> torch.Tensor:
    return _launch(query, key, value, counts, indices, volume)


@_launch_opaquely.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    counts: torch.Tensor,
    indices: torch.Tensor,
    volume: int,
) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)
