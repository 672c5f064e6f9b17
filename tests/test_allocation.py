# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A process keeps what it freed, where glibc allocates."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# the resident megabytes that are left of a freed block of 256, and once all is over
SCRIPT = """
import sys
from contextlib import nullcontext
import torch
from ultraflash_diffusers.allocation import freed_memory_kept, keep_freed_memory


def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


if sys.argv[1] == "from now on":
    assert keep_freed_memory()
before = resident()
with freed_memory_kept() if sys.argv[1] == "for a while" else nullcontext():
    block = torch.ones(2**26)
    assert resident() - before > 200
    del block
    print(resident() - before)
print(resident() - before)
block = torch.ones(2**26)
del block
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ("as usual", (False, False, False)),
        ("from now on", (True, True, True)),
        ("for a while", (True, False, False)),
    ],
)
def test_freed_memory_is_kept_when_asked_for(how: str, kept: tuple[bool, ...]):
    made = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    left = [int(megabytes) for megabytes in made.stdout.split()]
    assert not any(60 < megabytes < 200 for megabytes in left), left
    assert tuple(megabytes > 200 for megabytes in left) == kept, left
