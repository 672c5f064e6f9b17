# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Ways to compute the attention between the kept pairs of blocks; all take and give the same, see [`Backend`]."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
from diffusers.utils import logging
from torch._subclasses.fake_tensor import FakeTensor

from ..block_kv_cache import BlockKVCache
from ..block_layout import BlockLayout, BlockSparseSettings
from ..block_selection import BlockSelection
from . import triton_kernel
from .counted import attend_counted
from .flex import FlexKernels, attend_flex, compiled_flex
from .gathered import attend_gathered, attend_gathered_opaquely
from .in_blocks import AttendBlocks, attend_in_blocks
from .masked import attend_masked

logger = logging.get_logger(__name__)

BACKENDS = ("auto", "flex", "flex_flash", "gather", "sdpa", "triton")
# what `"auto"` has chosen and what failed
_FAILED: set[str] = set()
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

    A kernel that `"auto"` chose and that fails outside compiled code gives way to the plain path, with a warning.

    Raises:
        ValueError: an unknown backend, or one that cannot run here or has no gradients where some are needed.
    """
    check_backend(backend)
    if isinstance(query, FakeTensor) and not torch.compiler.is_compiling():  # what is kept depends on values
        return attend_counted
    with_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    if backend == "auto":
        name = _resolve(query, settings, with_gradients)
        chosen = _function_of(name, query, settings, with_gradients)
        return chosen if torch.compiler.is_compiling() else functools.partial(attend_or_plainly, name, chosen)
    return _function_of(backend, query, settings, with_gradients)


def attend_or_plainly(
    name: str,
    attend: Backend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    selection: BlockSelection,
    layout: BlockLayout,
    cache: BlockKVCache | None,
) -> torch.Tensor:
    """[`Backend`] `attend`, or the masked reference once it has failed in this process, which is logged once.

    Compilers raise errors of every kind. What the failed call has written into the cache is written again.
    """
    if name not in _FAILED:
        try:
            return attend(query, key, value, selection, layout, cache)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if name == "sdpa":
                raise
            logger.warning("sparse attention by %r failed, and is computed by 'sdpa' from here on: %s", name, error)
            _FAILED.add(name)
    return attend_in_blocks(attend_masked, query, key, value, selection, layout, cache)


def _function_of(backend: str, query: torch.Tensor, settings: BlockSparseSettings, with_gradients: bool) -> Backend:
    if backend == "triton":
        return _triton(query, settings, with_gradients)
    if backend == "flex":
        attend = _flex(query, settings.volume, with_gradients, "AUTO")
    elif backend == "flex_flash":
        attend = _flex_flash(query, settings.volume, with_gradients)
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


def _flex(query: torch.Tensor, volume: int, with_gradients: bool, kernels: FlexKernels) -> AttendBlocks:
    on_cpu = query.device.type == "cpu"
    if on_cpu and with_gradients:
        raise ValueError("`backend` 'flex' has no gradients on a CPU: use 'gather' or 'sdpa'")
    if on_cpu and volume % 16:  # PyTorch 2.13 makes code for AVX2 of it that gives other numbers altogether
        raise ValueError(f"`backend` 'flex' on a CPU needs blocks of 16 n tokens, got {volume}: use 'gather'")
    attend = attend_flex if torch.compiler.is_compiling() else compiled_flex()
    return functools.partial(attend, with_gradients=with_gradients, kernels=kernels)


def _flex_flash(query: torch.Tensor, volume: int, with_gradients: bool) -> AttendBlocks:
    if query.device.type != "cuda":
        raise ValueError(f"`backend` 'flex_flash' needs a CUDA device, got {query.device}: use 'auto'")
    if not _flash_attention_4_is_installed():
        raise ValueError("`backend` 'flex_flash' needs FlashAttention 4, the package `flash-attn-4`: use 'flex'")
    return _flex(query, volume, with_gradients, "FLASH")


@functools.cache
def _flash_attention_4_is_installed() -> bool:
    try:
        return importlib.util.find_spec("flash_attn.cute") is not None
    except ModuleNotFoundError:  # not even an older one
        return False


def _gathered(with_gradients: bool) -> AttendBlocks:
    if not torch.compiler.is_compiling():
        return attend_gathered
    if with_gradients:
        raise ValueError("`backend` 'gather' has no gradients inside torch.compile: use 'sdpa'")
    return attend_gathered_opaquely
