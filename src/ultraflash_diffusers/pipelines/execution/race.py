# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which of several kernels is the fastest here that is right: short races, bounded in seconds and memory."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_dispatch import attention_backend as use_attention_backend
from diffusers.models.attention_dispatch import dispatch_attention_fn

from ...models.attention.backends import triton_kernel
from ...models.attention.block_kv_cache import BlockKVCache
from ...models.attention.block_sparse_attention import block_sparse_attention
from ...models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ...models.wan_backbone import WanBackbone
from .devices import execution_device

# diffusers' names of exact kernels: PyTorch's choice, two that it can be held to, and packages to be installed
ATTENTION_BACKENDS = ("native", "_native_cudnn", "_native_flash", "flash", "_flash_3")

# a kernel whose result is further than this from the reference is not used, however fast it is
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}

# a race begins no other entrant after so many seconds, and is not run where its tensors would not fit this often
_SECONDS = 20.0
_ROOM = 3
_CHECKED_QUERIES = 64


@dataclass
class Race:
    """What came of a race.

    Args:
        seconds (`dict[str, float]`): of a call, by entrant; those that ran and were right.
        left_out (`dict[str, str]`): why the others were not timed.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def winner(self) -> str | None:
        """The fastest, if anybody finished."""
        return min(self.seconds, key=lambda name: self.seconds[name], default=None)

    def __str__(self) -> str:
        parts = [f"{name} {1000 * seconds:.2f} ms" for name, seconds in self.seconds.items()]
        return ", ".join(parts + [f"not {name} ({reason})" for name, reason in self.left_out.items()])


def race(
    entrants: Mapping[str, Callable[[], torch.Tensor]],
    error_of: Callable[[torch.Tensor], float],
    tolerance: float,
    device: torch.device,
    repeats: int = 5,
    seconds: float = _SECONDS,
) -> Race:
    """Times what runs here and is right.

    Args:
        entrants (`Mapping`): calls by name. Whatever one raises, a compiler's errors and those of a full GPU included,
            leaves it out.
        error_of (`Callable`): the relative error of an output.
        tolerance (`float`): up to which an output is right.
        device (`torch.device`): that they run on.
        repeats (`int`, *optional*, defaults to 5): calls, the fastest of which counts.
        seconds (`float`, *optional*, defaults to 20): after which no further entrant is begun.
    """
    result, begin = Race(), time.perf_counter()
    for name, run in entrants.items():
        if time.perf_counter() - begin > seconds:
            result.left_out[name] = f"no time left of {seconds:g} s"
            continue
        try:
            error = error_of(run())
            if error <= tolerance:
                result.seconds[name] = best_seconds(run, device, repeats)
            else:
                result.left_out[name] = f"its relative error is {error:.1e}"
        except Exception as failure:
            result.left_out[name] = f"{type(failure).__name__}: {failure}".splitlines()[0][:100]
    return result


def best_seconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The fastest of some calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def has_room(device: torch.device, size: int) -> bool:
    """Whether `size` bytes of tensors and what kernels make of them fit beside what is there already."""
    return device.type != "cuda" or _ROOM * size <= torch.cuda.mem_get_info(device)[0]


def relative_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    """The relative L2 error."""
    return float((output.float() - reference.float()).norm() / reference.float().norm())


@torch.no_grad()
def race_attention(network: WanBackbone, tokens: int, seen_tokens: int, repeats: int = 5) -> Race:
    """Races diffusers' exact backends of dense attention on one layer of a stream. Those that quantise do not run.

    Args:
        network ([`WanBackbone`]): whose heads, device and precision are used.
        tokens (`int`): of a chunk.
        seen_tokens (`int`): that they attend to.
        repeats (`int`, *optional*, defaults to 5): calls, the fastest of which counts.
    """
    config, device = network.config, execution_device(network)
    heads, channels = config.num_attention_heads, config.attention_head_dim
    size = heads * channels * (2 * tokens + 2 * seen_tokens) * network.dtype.itemsize
    if not has_room(device, size):
        return Race(left_out=dict.fromkeys(ATTENTION_BACKENDS, f"{size / 1e9:.1f} GB for a layer are not free"))
    query, key, value = (
        _random((1, length, heads, channels), seed, device, network.dtype)
        for seed, length in enumerate((tokens, seen_tokens, seen_tokens))
    )

    def attend(backend: str, count: int = tokens) -> torch.Tensor:
        with use_attention_backend(backend):  # asks whether it is installed, too
            return dispatch_attention_fn(query[:, :count], key, value)

    checked = min(tokens, _CHECKED_QUERIES)
    few, all_keys, all_values = (tensor.float().transpose(1, 2) for tensor in (query[:, :checked], key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(few, all_keys, all_values).transpose(1, 2)
    entrants = {backend: functools.partial(attend, backend) for backend in ATTENTION_BACKENDS}
    return race(
        entrants,
        lambda output: relative_error(output[:, :checked], expected),
        TOLERANCE[network.dtype],
        device,
        repeats,
    )


@torch.no_grad()
def race_sparse_attention(
    network: UltraFlashSRTransformer, latents: tuple[int, int, int], kv_cache_blocks: int, repeats: int = 5
) -> Race:
    """Races the backends of sparse attention on one layer of a running stream.

    Heads choose and attend by themselves: the masked reference is computed once, for one of them. On a GPU it does not
    run itself, since at full size it takes seconds.

    Args:
        network ([`UltraFlashSRTransformer`]): whose blocks, heads, device and precision are used.
        latents (`tuple[int, int, int]`): frames, height and width of a group.
        kv_cache_blocks (`int`): the window.
        repeats (`int`, *optional*, defaults to 5): calls, the fastest of which counts.
    """
    config, device = network.config, execution_device(network)
    sides = zip(latents[1:], config.patch_size[1:], strict=True)
    grid = (latents[0], *(-(-side // patch) for side, patch in sides))
    layer = _SparseLayer(network, grid, kv_cache_blocks)
    candidates = sparse_candidates(device, network)
    if not has_room(device, layer.bytes):
        return Race(left_out=dict.fromkeys(candidates, f"{layer.bytes / 1e9:.1f} GB for a layer are not free"))
    attend = layer.running(config.num_attention_heads)
    expected = layer.running(1)("sdpa")
    entrants = {backend: functools.partial(attend, backend) for backend in candidates}
    return race(
        entrants,
        lambda output: relative_error(output[:, :, :1], expected),
        TOLERANCE[network.dtype],
        device,
        repeats,
    )


class _SparseLayer:
    """Random queries, keys and values of one layer, the same for any number of its heads."""

    def __init__(self, network: UltraFlashSRTransformer, grid: tuple[int, int, int], kv_cache_blocks: int) -> None:
        self._network, self._grid, self._window = network, grid, kv_cache_blocks
        config, settings = network.config, network.sparse_settings
        temporal, rows, columns = settings.count_blocks(grid)
        tokens = (2 * (kv_cache_blocks + temporal) + 4 * temporal) * rows * columns * settings.volume
        self.bytes = tokens * config.num_attention_heads * config.attention_head_dim * network.dtype.itemsize

    def running(self, heads: int) -> Callable[[str], torch.Tensor]:
        """Attention by a backend in the middle of a stream, of the first `heads` heads."""
        network, grid = self._network, self._grid
        config, settings, device = network.config, network.sparse_settings, execution_device(network)
        channels, dtype = config.attention_head_dim, network.dtype
        query, key, value = (
            _random((heads, math.prod(grid), channels), seed, device, dtype).transpose(0, 1)[None] for seed in range(3)
        )
        cache = BlockKVCache.allocate(1, heads, channels, grid, settings, self._window, device, dtype)

        def attend(backend: str) -> torch.Tensor:
            return block_sparse_attention(query, key, value, grid, settings, cache, backend=backend)[0]

        while int(cache.count) < self._window:
            # by the backend that runs on every device and compiles nothing: what it returns is not looked at
            _, filled = block_sparse_attention(query, key, value, grid, settings, cache, backend="gather")
            assert filled is not None  # there was a cache
            cache = filled
        return attend


def sparse_candidates(device: torch.device, network: UltraFlashSRTransformer) -> list[str]:
    """The backends that are worth a race on `device`."""
    if device.type != "cuda":
        return ["sdpa", "gather"]
    supported = triton_kernel.supports(device, network.sparse_settings.volume, network.config.attention_head_dim)
    return ["flex", "flex_flash", *(["triton"] if supported else [])]


def _random(shape: tuple[int, ...], seed: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Normal numbers; those of a longer first dimension begin with those of a shorter one."""
    generator = torch.Generator(device).manual_seed(seed)
    rows = [torch.randn(shape[1:], generator=generator, device=device) for _ in range(shape[0])]
    return torch.stack(rows).to(dtype)
