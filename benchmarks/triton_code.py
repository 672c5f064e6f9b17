# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What Triton makes of the kernel of sparse attention, for GPUs that need not be there.

    python -m benchmarks.triton_code

For each GPU, precision and launch setting: registers of a thread, bytes that spill out of them, shared memory of a
program, how many programs a multiprocessor can therefore hold at once, and how often the machine code has the
instructions that matter: HGMMA and HMMA multiply matrices (Hopper's asynchronous ones, and those before), LDGSTS
copies tiles meanwhile. Then the balance: lists differ in length, and how busy the multiprocessors of an H200 are while
a launch lasts is simulated, with lists that the selection makes of random tokens at 1K, 2K and 4K, as many programs a
multiprocessor as fit. It needs Triton, which brings its compiler and disassembler.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import math
import re
from pathlib import Path
from typing import Any

import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.machine_code import GPUS, disassemble, read_usage
from ultraflash_diffusers.models.attention.backends import triton_kernel
from ultraflash_diffusers.models.attention.backends.triton_kernel import LaunchSettings
from ultraflash_diffusers.models.attention.block_layout import BlockSparseSettings
from ultraflash_diffusers.models.attention.block_selection import select_blocks
from ultraflash_diffusers.tables import markdown_table

INSTRUCTIONS = ("HGMMA", "HMMA", "LDGSTS")
TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}

# tokens of a group of six latent frames at each size, heads, and temporal blocks of the past
SIZES = {"1K": (6, 60, 104), "2K": (6, 90, 156), "4K": (6, 135, 240)}
HEADS, WINDOW = 12, 3
# what a program costs beside its list, in tiles of keys: its queries, its result, the first loads
FIXED_COST = 2.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=int, nargs=3, default=(2, 8, 8), help="tokens over time, height and width")
    parser.add_argument("--channels", type=int, default=128, help="channels of a head")
    parser.add_argument("--json", type=Path, help="write everything here as well")
    return parser.parse_args()


def compile_kernel(
    capability: int, block: tuple[int, int, int], channels: int, dtype: torch.dtype, settings: LaunchSettings
) -> triton.compiler.CompiledKernel:
    """Compiles the kernel as a launch with `settings` would, aligned pointers included."""
    tokens, (frames, height, width) = f"*{TYPES[dtype]}", block
    arguments = {
        **dict.fromkeys(("query", "key", "value", "output"), tokens),
        **dict.fromkeys(("past_keys", "past_values"), "i64"),
        **dict.fromkeys(("order", "counts", "lists"), "*i32"),
        **dict.fromkeys(("list_length", "heads", "frames", "height", "width", "rows", "columns"), "i32"),
        **{"query_blocks": "i32", "past_blocks": "i32", "scale": "fp32"},
    }
    constants = {
        **{"FRAMES": frames, "HEIGHT": height, "WIDTH": width, "CHANNELS": channels},
        **{"ROWS": settings.rows, "COLUMNS": settings.columns, "PRECISION": triton_kernel.product_precision(dtype)},
    }
    # what an allocator aligns: the tensors, and with them how far they lie apart
    kinds = enumerate(arguments.values())
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in kinds if kind[0] == "*" or kind == "i64"}
    kernel = ASTSource(
        triton_kernel._attend_kernel,
        arguments | dict.fromkeys(constants, "constexpr"),
        {(len(arguments) + place,): value for place, value in enumerate(constants.values())},
        aligned,
    )
    options = {"num_warps": settings.num_warps, "num_stages": settings.num_stages}
    return triton.compile(kernel, target=GPUTarget("cuda", capability, 32), options=options)


def describe(
    gpu: str, block: tuple[int, int, int], channels: int, dtype: torch.dtype, settings: LaunchSettings
) -> dict[str, Any]:
    kernel = compile_kernel(GPUS[gpu].capability, block, channels, dtype, settings)
    code = disassemble(kernel.asm["cubin"], "--dump-sass")
    return {
        "gpu": gpu,
        "dtype": str(dtype).removeprefix("torch."),
        "settings": dataclasses.asdict(settings),
        "shared_memory_limit": GPUS[gpu].shared_memory_limit,
        **dataclasses.asdict(read_usage(kernel, GPUS[gpu])),
        "instructions": {name: len(re.findall(rf"\b{name}\b", code)) for name in INSTRUCTIONS},
    }


def list_lengths(grid: tuple[int, int, int], channels: int) -> list[int]:
    """How many key blocks each query block keeps under the released settings, in raster order."""
    settings, generator = BlockSparseSettings(), torch.Generator().manual_seed(0)
    temporal, rows, columns = settings.count_blocks(grid)
    positions = torch.arange(WINDOW + temporal)
    # means of normed tokens without structure: close to each other, so that the borders' short windows are kept whole
    queries, keys = (
        torch.randn(1, HEADS, number, rows, columns, channels, generator=generator) / settings.volume**0.5
        for number in (temporal, len(positions))
    )
    held, top_k = torch.tensor(WINDOW), settings.top_k(grid)
    selection = select_blocks(queries, keys, held, top_k, settings, positions, len(positions))
    return selection.kept.sum(dim=-1).flatten().tolist()


def busy_share(lengths: list[int], settings: LaunchSettings, programs: int, volume: int) -> float:
    """The share of a launch in which places for programs are taken, where a free place takes the next program."""
    costs = [FIXED_COST + length * volume / settings.columns for length in lengths]
    costs = [cost for cost in costs for _ in range(volume // settings.rows)]
    places = [0.0] * (GPUS["H200"].multiprocessors * programs)
    for cost in costs:
        heapq.heapreplace(places, places[0] + cost)
    return sum(costs) / (len(places) * max(places))


def balances(kernels: list[dict[str, Any]], volume: int, channels: int) -> list[dict[str, Any]]:
    """[`busy_share`] of the bfloat16 kernels for an H200, by frame size: in raster order and as they are launched."""
    results = []
    for size, grid in SIZES.items():
        lengths = list_lengths(grid, channels)
        for kernel in kernels:
            if (kernel["gpu"], kernel["dtype"]) != ("H200", "bfloat16"):
                continue
            settings, programs = LaunchSettings(**kernel["settings"]), kernel["programs"]
            results.append(
                {
                    "size": size,
                    "settings": kernel["settings"],
                    "mean_list": sum(lengths) / len(lengths),
                    "longest_list": max(lengths),
                    "in_raster_order": busy_share(lengths, settings, programs, volume),
                    "longest_first": busy_share(sorted(lengths, reverse=True), settings, programs, volume),
                }
            )
    return results


def show(kernels: list[dict[str, Any]]) -> None:
    titles = (
        "GPU",
        "dtype",
        "rows x columns, warps, stages",
        "registers",
        "spilled",
        "KiB",
        "programs",
        *INSTRUCTIONS,
    )
    rows: list[list[object]] = []
    for kernel in kernels:
        cut = kernel["settings"]
        shape = f"{cut['rows']} x {cut['columns']}, {cut['num_warps']}, {cut['num_stages']}"
        used = [kernel["registers"], kernel["spilled_bytes"], f"{kernel['shared_memory'] / 1024:.0f}"]
        counts = [kernel["programs"], *(kernel["instructions"][name] for name in INSTRUCTIONS)]
        rows.append([kernel["gpu"], kernel["dtype"], shape, *used, *counts])
    print(markdown_table(titles, rows, text_columns=3))


def show_balances(results: list[dict[str, Any]]) -> None:
    titles = ("size", "rows x columns", "mean list", "longest", "busy in raster order", "busy, longest first")
    rows: list[list[object]] = []
    for result in results:
        shape = f"{result['settings']['rows']} x {result['settings']['columns']}"
        busy = (f"{result[order]:.1%}" for order in ("in_raster_order", "longest_first"))
        rows.append([result["size"], shape, f"{result['mean_list']:.1f}", result["longest_list"], *busy])
    print("\n" + markdown_table(titles, rows, text_columns=2))


def main() -> None:
    options = parse_arguments()
    cases = [
        (gpu, dtype, settings)
        for gpu in GPUS
        for dtype in TYPES
        for settings in triton_kernel.fitting_choices(
            GPUS[gpu].shared_memory_limit, math.prod(options.block), options.channels, dtype
        )
    ]
    kernels = [
        describe(gpu, tuple(options.block), options.channels, dtype, settings)
        for gpu, dtype, settings in tqdm(cases, desc="Compiling", unit="kernel")
    ]
    show(kernels)
    balance = balances(kernels, math.prod(options.block), options.channels)
    show_balances(balance)
    if options.json:
        report = {"triton": triton.__version__, "kernels": kernels, "balance": balance}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
