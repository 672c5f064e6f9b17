# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A process keeps what it freed, where glibc allocates."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# the resident megabytes that are left of a freed block of 256
SCRIPT = """
import sys
import torch
from ultraflash_diffusers.allocation import keep_freed_memory


def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resident()
block = torch.ones(2**26)
assert resident() - before > 200
del block
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept_when_asked_for():
    left = {}
    for how in ("keep", "as usual"):
        made = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
        left[how] = int(made.stdout)
    assert left["keep"] > 200
    assert left["as usual"] < 60
