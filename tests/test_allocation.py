# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A process keeps what it freed, where glibc allocates."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.clips import make_clip

RESIDENT = """
def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024
"""
# the resident megabytes that are left of a freed block of 256, and once all is over
SCRIPT = f"""
import sys
from contextlib import nullcontext
import torch
from ultraflash_diffusers.allocation import freed_memory_kept, keep_freed_memory
{RESIDENT}

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


# what a command keeps of a block that is freed while its networks run, and what the process keeps of one afterwards
COMMAND = f"""
import sys
import torch
from torch.nn.modules.module import register_module_forward_hook
from ultraflash_diffusers.cli import main
{RESIDENT}

def kept():
    block = torch.ones(2**26)
    before = resident()
    del block
    return 256 - (before - resident())


def look(*_):
    if not found:
        found.append(kept())


found = []
register_module_forward_hook(look)
main(sys.argv[1:])
print(*found, kept())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.parametrize(
    "words",
    [
        ["generate", "a red ball", "--output", "made.mp4", "--num-frames", "1"],
        ["upscale", "clip.mp4", "made.mp4"],
        ["benchmark", "--height", "64", "--width", "96", "--chunks", "1", "--warmup", "1"],
    ],
    ids=lambda words: words[0],
)
def test_commands_keep_it_while_they_work(words: list[str], tmp_path: Path):
    make_clip(tmp_path / "clip.mp4", 2)
    made = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    while_working, afterwards = map(int, made.stdout.splitlines()[-1].split())
    assert while_working > 200 and afterwards < 60
