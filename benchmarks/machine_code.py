# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a kernel's machine code takes of a GPU that need not be there: Triton brings compiler and disassembler."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton.backends.nvidia
from triton.compiler import CompiledKernel


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, as far as it decides what fits on it.

    Args:
        name (`str`): of the product.
        capability (`int`): compute capability, 90 for 9.0.
        shared_memory_limit (`int`): bytes that a program may have.
        shared_memory (`int`): bytes of a multiprocessor, for all its programs.
        threads (`int`): of a multiprocessor.
        blocks (`int`): programs that a multiprocessor holds at most, however small.
        multiprocessors (`int`): of the GPU.
        memory (`int`): bytes of the GPU.
    """

    name: str
    capability: int
    shared_memory_limit: int
    shared_memory: int
    threads: int
    blocks: int
    multiprocessors: int
    memory: int


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 80, 163 * 1024, 164 * 1024, 2048, 32, 108, 80 * 10**9),
        Gpu("RTX 4090", 89, 99 * 1024, 100 * 1024, 1536, 24, 128, 24 * 10**9),
        Gpu("H200", 90, 227 * 1024, 228 * 1024, 2048, 32, 132, 141 * 10**9),
    )
}
REGISTERS = 65536  # of a multiprocessor, on all of them


@dataclass(frozen=True)
class Usage:
    """What one kernel takes.

    Args:
        registers (`int`): of a thread.
        spilled_bytes (`int`): of a thread, which lie in memory for want of registers.
        shared_memory (`int`): bytes of a program.
        programs (`int`): that a multiprocessor therefore holds at once.
    """

    registers: int
    spilled_bytes: int
    shared_memory: int
    programs: int


def read_usage(kernel: CompiledKernel, gpu: Gpu) -> Usage:
    """Reads it from the machine code."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", disassemble(kernel.asm["cubin"], "--dump-resource-usage"))
    assert found is not None, "cuobjdump printed no resource usage"
    registers, warps, shared = int(found[1]), kernel.metadata.num_warps, kernel.metadata.shared
    # a warp's registers come in units of 256, and each program's shared memory costs 1 KiB more
    own_registers = -(-registers * 32 // 256) * 256 * warps
    by_kind = (
        REGISTERS // own_registers,
        gpu.shared_memory // (shared + 1024),
        gpu.threads // (32 * warps),
        gpu.blocks,
    )
    return Usage(registers, int(found[2]), shared, min(by_kind))


def disassemble(binary: bytes, option: str) -> str:
    """What cuobjdump prints about machine code, with `option`."""
    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(tools / "cuobjdump"), option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
