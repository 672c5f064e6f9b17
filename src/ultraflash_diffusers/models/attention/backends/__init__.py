# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Ways to compute the attention between the kept pairs of blocks; all take and give the same, see [`Backend`]."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from ..block_kv_cache import BlockKVCache
from ..block_layout import BlockLayout, BlockSparseSettings
from ..block_selection import BlockSelection
from . import triton_kernel
from .flex import attend_flex, compiled_flex
from .gathered import attend_gathered, attend_gathered_opaquely
from .in_blocks import AttendBlocks, attend_in_blocks
from .masked import attend_masked

BACKENDS = ("auto", "flex", "gather", "sdpa", "triton")
# query, key and value `[B, t * h * w, H, D]` of a group in raster order, the pairs that attend, the group's blocks and
# the stream's memory, if there is one, which takes the group in -> the result, like `query`
Backend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, BlockSelection, BlockLayout, BlockKVCache | None], torch.Tensor
]


def check_backend(backend: str) -> None:
    """Checks that there is such a backend.

    Raises:
        ValueError: there is none.
    """
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def choose_backend(
    backend: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: BlockSparseSettings
) -> Backend:
    """Returns the function of `backend` for such inputs; `"auto"` is resolved here.

    Raises:
        ValueError: an unknown backend, or one that cannot run here or has no gradients where some are needed.
    """
    check_backend(backend)
    with_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    if backend == "auto":
        backend = _resolve(query, settings, with_gradients)
    if backend == "triton":
        return _triton(query, settings, with_gradients)
    if backend == "flex":
        attend = _flex(query, settings.volume, with_gradients)
    else:
        attend = _gathered(with_gradients) if backend == "gather" else attend_masked
    return functools.partial(attend_in_blocks, attend)


def _resolve(query: torch.Tensor, settings: BlockSparseSettings, with_gradients: bool) -> str:
    """What `"auto"` means."""
    if query.device.type == "cuda":
        if settings.volume % 128 == 0:  # Flex's kernels have tiles of up to 128 tokens
            return "flex"
        if not with_gradients and triton_kernel.supports(query.device, settings.volume, query.shape[3]):
            return "triton"  # unlike gathering, it never asks the device how much is kept
    return "sdpa" if with_gradients and torch.compiler.is_compiling() else "gather"


def _triton(query: torch.Tensor, settings: BlockSparseSettings, with_gradients: bool) -> Backend:
    if not triton_kernel.supports(query.device, settings.volume, query.shape[3]):
        raise ValueError(
            f"`backend` 'triton' cannot run here (Triton {'' if triton_kernel.AVAILABLE else 'not '}installed, "
            f"device {query.device}, blocks of {settings.volume} tokens, {query.shape[3]} channels): use 'auto'"
        )
    if with_gradients:
        raise ValueError("`backend` 'triton' has no gradients: use 'flex' or 'sdpa'")
    return triton_kernel.attend


def _flex(query: torch.Tensor, volume: int, with_gradients: bool) -> AttendBlocks:
    on_cpu = query.device.type == "cpu"
    if on_cpu and with_gradients:
        raise ValueError("`backend` 'flex' has no gradients on a CPU: use 'gather' or 'sdpa'")
    if on_cpu and volume % 16:  # PyTorch 2.13 makes code for AVX2 of it that gives other numbers altogether
        raise ValueError(f"`backend` 'flex' on a CPU needs blocks of 16 n tokens, got {volume}: use 'gather'")
    attend = attend_flex if torch.compiler.is_compiling() else compiled_flex()
    return functools.partial(attend, with_gradients=with_gradients)


def _gathered(with_gradients: bool) -> AttendBlocks:
    if not torch.compiler.is_compiling():
        return attend_gathered
    if with_gradients:
        raise ValueError("`backend` 'gather' has no gradients inside torch.compile: use 'sdpa'")
    return attend_gathered_opaquely
