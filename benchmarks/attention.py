# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Times block-sparse streaming attention against dense attention: one layer, one group of a running stream.

    python benchmarks/attention.py         # 1K-like shapes, scaled down to a CPU
    python benchmarks/attention.py --device cuda --dtype bfloat16 --height 120 --width 208 --heads 12    # 1K itself
    python benchmarks/attention.py --device cuda --dtype bfloat16 --height 120 --width 208 --heads 12 --triton-settings

`dense` is PyTorch's attention of the group to the cached and its own tokens, unmasked; on a GPU also by cuDNN and by
FlashAttention alone (`dense_ms` is the fastest). The densities of the released model are about 5 % at 1K and 2.5 % at
2K (`--height 180 --width 312`). `--triton-settings` times every way to cut the Triton kernel. `selection` pools blocks
and chooses the pairs; `total` is all that takes the place of dense attention: cutting into blocks, writing the cache,
selection, attention, back to raster order. Times are medians after warm-up, with the device synchronised each time.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ultraflash_diffusers.models.attention.backends import BACKENDS, triton_kernel
from ultraflash_diffusers.models.attention.block_kv_cache import BlockKVCache
from ultraflash_diffusers.models.attention.block_layout import BlockLayout, BlockSparseSettings
from ultraflash_diffusers.models.attention.block_selection import BlockSelection, select_blocks
from ultraflash_diffusers.models.attention.block_sparse_attention import block_sparse_attention


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--height", type=int, default=64, help="of the latents; a token is 2 x 2 latents")
    parser.add_argument("--width", type=int, default=112, help="of the latents")
    parser.add_argument("--frames", type=int, default=6, help="latent frames of a group")
    parser.add_argument("--kv-cache-blocks", type=int, default=3, help="temporal blocks in the cache")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4, help="attention heads (12 as released)")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--local-range", type=int, default=9, help="side of the spatial window in blocks")
    parser.add_argument("--density", type=float, nargs="+", default=[0.05, 0.1, 0.25], help="shares of pairs to keep")
    parser.add_argument("--backends", nargs="+", choices=[name for name in BACKENDS if name != "auto"])
    parser.add_argument("--triton-settings", action="store_true", help="time each launch setting of the Triton kernel")
    parser.add_argument("--warmup", type=int, default=1, help="calls before those that count")
    parser.add_argument("--repeats", type=int, default=5, help="calls that count")
    parser.add_argument("--json", type=Path, help="also write the results there")
    options = parser.parse_args(arguments)
    if options.height % 2 or options.width % 2:
        parser.error(f"--height {options.height} and --width {options.width} must be even")
    if not all(0 < density <= 1 for density in options.density):
        parser.error(f"--density must lie in (0, 1], got {options.density}")
    if options.backends is None:
        options.backends = ["gather", "flex", "sdpa"]
        if options.device.startswith("cuda"):
            supported = triton_kernel.supports(torch.device(options.device), 128, options.head_dim)
            options.backends = ["flex", *(["triton"] if supported else []), "sdpa"]
    return options


def median_milliseconds(function: Callable[[], Any], device: torch.device, warmup: int, repeats: int) -> float:
    times = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[warmup:])


class Layer:
    """Random queries, keys and values of one layer, in the middle of a stream whose cache is full."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.dtype = torch.device(options.device), getattr(torch, options.dtype)
        self.generator = torch.Generator(self.device).manual_seed(0)
        self.batch, self.heads, self.channels = options.batch_size, options.heads, options.head_dim
        self.grid = (options.frames, options.height // 2, options.width // 2)
        self.window, self.local_range = options.kv_cache_blocks, options.local_range
        settings = self.settings(0.01)
        self.temporal, self.rows, self.columns = settings.count_blocks(self.grid)
        self.cache = BlockKVCache.allocate(
            self.batch, self.heads, self.channels, self.grid, settings, self.window, self.device, self.dtype
        )
        self.group = self.random_group()
        while int(self.cache.count) < self.window:
            _, cache = self.attend(settings, "auto")
            assert cache is not None
            self.cache, self.group = cache, self.random_group()

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).to(self.dtype)

    def random_group(self) -> list[torch.Tensor]:
        return [self.random(self.batch, math.prod(self.grid), self.heads, self.channels) for _ in range(3)]

    def settings(self, density: float) -> BlockSparseSettings:
        """Settings under which a query block keeps about `density` of all key blocks, cached and new."""
        base = BlockSparseSettings(local_range=self.local_range, reference_tokens=None)
        positions = self.window + base.count_blocks(self.grid)[0]
        return dataclasses.replace(base, top_k_ratio=density * positions)

    def attend(self, settings: BlockSparseSettings, backend: str) -> tuple[torch.Tensor, BlockKVCache | None]:
        query, key, value = self.group
        return block_sparse_attention(query, key, value, self.grid, settings, self.cache, backend=backend)

    def dense(self) -> dict[str, Callable[[], torch.Tensor]]:
        """Attention of the group's tokens to as many tokens as the cache and the group have, by kernel."""
        frames = self.grid[0] + self.window * BlockSparseSettings.block_size[0]
        keys = frames * self.grid[1] * self.grid[2]
        key, value = (self.random(self.batch, self.heads, keys, self.channels) for _ in range(2))
        query = self.group[0].transpose(1, 2).contiguous()

        def attend(kernel: SDPBackend | None = None) -> torch.Tensor:
            with nullcontext() if kernel is None else sdpa_kernel(kernel):
                return F.scaled_dot_product_attention(query, key, value)

        kernels: dict[str, Callable[[], torch.Tensor]] = {"PyTorch's choice": attend}
        if self.device.type == "cuda" and self.dtype != torch.float32:
            kernels["cuDNN"] = functools.partial(attend, SDPBackend.CUDNN_ATTENTION)
            kernels["FlashAttention"] = functools.partial(attend, SDPBackend.FLASH_ATTENTION)
        return kernels

    def triton(self, settings: BlockSparseSettings) -> dict[str, Callable[[], torch.Tensor]]:
        """The Triton kernel with its lists and the cache's update, by launch setting, on selected pairs."""
        query, key, value = self.group
        selected, layout = self.selection(settings)(), BlockLayout(self.grid, settings)
        attend = functools.partial(triton_kernel.attend, query, key, value, selected, layout, self.cache)
        return {
            str(launch): functools.partial(attend, launch)
            for launch in triton_kernel.launch_choices(self.device, settings.volume, self.channels, self.dtype)
        }

    def selection(self, settings: BlockSparseSettings) -> Callable[[], BlockSelection]:
        """Pooling of the group's blocks and the choice of pairs, as in the middle of the stream."""
        shape = (self.batch, self.heads, self.temporal, self.rows, self.columns, settings.volume, self.channels)
        query, key = self.random(*shape), self.random(*shape)
        cached = self.random(*shape[:2], self.window, *shape[3:5], self.channels).float()
        held = torch.tensor(self.window, device=self.device)
        positions = torch.arange(self.window + self.temporal, device=self.device)

        def select() -> BlockSelection:
            pooled_query, pooled_key = (blocks.mean(dim=-2, dtype=torch.float32) for blocks in (query, key))
            pooled_keys = torch.cat([cached, pooled_key], dim=2)
            top_k = settings.top_k(self.grid)
            slots = self.cache.slots_of(-self.window, len(positions))
            return select_blocks(pooled_query, pooled_keys, held, top_k, settings, slots, self.cache.slots)

        return select


def run(options: argparse.Namespace) -> dict[str, Any]:
    layer = Layer(options)

    def measure(function: Callable[[], Any]) -> float:
        return median_milliseconds(function, layer.device, options.warmup, options.repeats)

    dense_kernels = {name: measure(attend) for name, attend in layer.dense().items()}
    dense, results = min(dense_kernels.values()), []
    launches = {}
    if options.triton_settings:
        launches = {
            str(density): {name: measure(attend) for name, attend in layer.triton(layer.settings(density)).items()}
            for density in options.density
        }
    for density in options.density:
        settings = layer.settings(density)
        selection = layer.selection(settings)
        kept = float(selection().pairs().float().mean())
        selection_ms = measure(selection)
        for backend in options.backends:
            total = measure(functools.partial(layer.attend, settings, backend))
            results.append(
                {
                    "backend": backend,
                    "density": density,
                    "kept": kept,
                    "selection_ms": selection_ms,
                    "total_ms": total,
                    "share_of_dense": total / dense,
                }
            )
    settings_used = {name: value for name, value in vars(options).items() if name != "json"}
    return {
        "torch": torch.__version__,
        "settings": settings_used,
        "dense_ms": dense,
        "dense_kernels_ms": dense_kernels,
        "triton_settings_ms": launches,
        "results": results,
    }


def main() -> None:
    options = parse_arguments()
    with torch.no_grad():
        report = run(options)
    grid = (options.frames, options.height // 2, options.width // 2)
    print(f"{grid} tokens, {options.kv_cache_blocks} cached temporal blocks, {options.heads} heads, {options.dtype}")
    for name, milliseconds in report["dense_kernels_ms"].items():
        print(f"dense attention, {name}: {milliseconds:.1f} ms")
    for density, launches in report["triton_settings_ms"].items():
        for name, milliseconds in launches.items():
            print(f"Triton kernel, density {float(density):.1%}, {name}: {milliseconds:.2f} ms")
    print()
    print(f"{'backend':8} {'asked':>7} {'kept':>7} {'selection':>12} {'total':>12} {'of dense':>9}")
    for row in report["results"]:
        print(
            f"{row['backend']:8} {row['density']:7.1%} {row['kept']:7.1%} {row['selection_ms']:9.2f} ms "
            f"{row['total_ms']:9.1f} ms {row['share_of_dense']:9.1%}"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
