# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is said of a machine beside a measured speed."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path

import torch


def machine_facts(module: str, threads: int) -> dict[str, object]:
    """What the speed depends on, the machine's load before the run among it: a shared machine shows.

    Args:
        module (`str`): the measuring one, as in `python -m MODULE`.
        threads (`int`): on which it runs.
    """
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "command": f"python -m {module} {shlex.join(sys.argv[1:])}",
        "CPU": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "load before the run": f"{os.getloadavg()[0]:.2f}",
        "torch": torch.__version__,
    }
