# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What Triton makes of the kernel of sparse attention, for GPUs that need not be there.

    python benchmarks/triton_code.py

For each GPU, precision and launch setting: registers of a thread, bytes that spill out of them, shared memory of a
program, how many programs a multiprocessor can therefore hold at once, and how often the machine code has the
instructions that matter: HGMMA and HMMA multiply matrices (Hopper's asynchronous ones, and those before), UTMALDG
copies tiles by the tensor memory accelerator. It needs Triton, which brings its compiler and disassembler.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
import triton.backends.nvidia
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ultraflash_diffusers.models.attention.backends import triton_kernel
from ultraflash_diffusers.models.attention.backends.triton_kernel import LaunchSettings

# name: compute capability, bytes of shared memory that a program may have and that a multiprocessor has, its threads
GPUS = {
    "A100": (80, 163 * 1024, 164 * 1024, 2048),
    "RTX 4090": (89, 99 * 1024, 100 * 1024, 1536),
    "H200": (90, 227 * 1024, 228 * 1024, 2048),
}
REGISTERS = 65536  # of a multiprocessor, on all of them
INSTRUCTIONS = ("HGMMA", "HMMA", "UTMALDG")
TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", type=int, default=128, help="tokens of a block")
    parser.add_argument("--channels", type=int, default=128, help="channels of a head")
    parser.add_argument("--json", type=Path, help="write everything here as well")
    return parser.parse_args()


def compile_kernel(
    capability: int, volume: int, channels: int, dtype: torch.dtype, settings: LaunchSettings
) -> triton.compiler.CompiledKernel:
    """Compiles the kernel as a launch with `settings` would, aligned pointers included."""
    element = TYPES[dtype]
    source = f"tensordesc<{element}[{settings.columns}, {channels}]>" if settings.tma else f"*{element}"
    arguments = {
        **{"query": f"*{element}", "key": source, "value": source, "output": f"*{element}"},
        **{"counts": "*i32", "indices": "*i32", "query_blocks": "i32", "key_blocks": "i32", "scale": "fp32"},
    }
    constants = {
        **{"VOLUME": volume, "CHANNELS": channels, "ROWS": settings.rows, "COLUMNS": settings.columns},
        **{"TMA": settings.tma, "PRECISION": triton_kernel.product_precision(dtype)},
    }
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(arguments.values()) if kind[0] == "*"}
    kernel = ASTSource(
        triton_kernel._attend_kernel,
        arguments | dict.fromkeys(constants, "constexpr"),
        {(len(arguments) + place,): value for place, value in enumerate(constants.values())},
        aligned,
    )
    options = {"num_warps": settings.num_warps, "num_stages": settings.num_stages}
    return triton.compile(kernel, target=GPUTarget("cuda", capability, 32), options=options)


def disassemble(binary: bytes, option: str) -> str:
    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(tools / "cuobjdump"), option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def describe(gpu: str, volume: int, channels: int, dtype: torch.dtype, settings: LaunchSettings) -> dict[str, Any]:
    capability, limit, shared, threads = GPUS[gpu]
    kernel = compile_kernel(capability, volume, channels, dtype, settings)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", disassemble(kernel.asm["cubin"], "--dump-resource-usage"))
    assert usage is not None, "cuobjdump printed no resource usage"
    registers, stack = int(usage[1]), int(usage[2])
    code = disassemble(kernel.asm["cubin"], "--dump-sass")
    own_threads = 32 * settings.num_warps
    return {
        "gpu": gpu,
        "dtype": str(dtype).removeprefix("torch."),
        "settings": dataclasses.asdict(settings),
        "registers": registers,
        "spilled_bytes": stack,
        "shared_memory": kernel.metadata.shared,
        "shared_memory_limit": limit,
        # a warp's registers come in units of 256, and each program's shared memory costs 1 KiB more
        "programs": min(
            REGISTERS // (-(-registers * 32 // 256) * 256 * settings.num_warps),
            shared // (kernel.metadata.shared + 1024),
            threads // own_threads,
        ),
        "instructions": {name: len(re.findall(rf"\b{name}\b", code)) for name in INSTRUCTIONS},
    }


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
    print(f"| {' | '.join(titles)} |\n|---|---|---|{'---:|' * (len(titles) - 3)}")
    for kernel in kernels:
        cut = kernel["settings"]
        print(
            f"| {kernel['gpu']} | {kernel['dtype']} | {cut['rows']} x {cut['columns']}, {cut['num_warps']}, "
            f"{cut['num_stages']}{', TMA' * cut['tma']} | {kernel['registers']} | {kernel['spilled_bytes']} | "
            f"{kernel['shared_memory'] / 1024:.0f} | {kernel['programs']} | "
            + " | ".join(str(kernel["instructions"][name]) for name in INSTRUCTIONS)
            + " |"
        )


def main() -> None:
    options = parse_arguments()
    cases = [
        (gpu, dtype, settings)
        for gpu, (capability, limit, *_) in GPUS.items()
        for dtype in TYPES
        for settings in triton_kernel.fitting_choices(capability // 10, limit, options.volume, options.channels, dtype)
    ]
    kernels = [
        describe(gpu, options.volume, options.channels, dtype, settings)
        for gpu, dtype, settings in tqdm(cases, desc="Compiling", unit="kernel")
    ]
    show(kernels)
    if options.json:
        options.json.write_text(json.dumps({"triton": triton.__version__, "kernels": kernels}, indent=2) + "\n")


if __name__ == "__main__":
    main()
