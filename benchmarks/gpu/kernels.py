# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One layer's sparse attention by itself, and the tests that need a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks import attention
from benchmarks.gpu.results import Report

_ROOT = Path(__file__).resolve().parents[2]
# latents' height and width, and the share of pairs that the released selection keeps there
_SIZES = {"1k": (120, 208, 0.05), "2k": (180, 312, 0.025), "4k": (270, 480, 0.012)}


def time_sparse_attention(report: Report) -> None:
    """The stage `sparse`: backends and launch settings, beside dense attention."""
    for size, (height, width, density) in _SIZES.items():
        words = f"--device cuda --dtype bfloat16 --heads 12 --height {height} --width {width} --density {density}"
        words += " --backends flex triton --triton-settings"
        if report.dry:
            words = "--height 16 --width 16 --heads 1 --head-dim 16 --density 0.5 --backends gather --repeats 1"
        report.attempt(size, _time_layer, report, size, words)


def _time_layer(report: Report, size: str, words: str) -> None:
    result = attention.run(attention.parse_arguments(words.split()))
    report.detail(size=size, **result)
    for row in result["results"]:
        report.value(f"{size}_{row['backend']}", row["total_ms"], "ms")
    for launches in result["triton_settings_ms"].values():
        report.value(f"{size}_kernel", min(launches.values()), "ms")


def run_tests(report: Report) -> None:
    """The stage `tests`."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-rfE"]
    run = subprocess.run(command + ["--collect-only"] * report.dry, capture_output=True, text=True, cwd=_ROOT)
    for number, outcome in re.findall(r"(\d+) (passed|failed|error|skipped)", run.stdout.splitlines()[-1]):
        report.value(outcome, int(number), "tests")
    report.detail(exit_of_pytest=run.returncode, tail=run.stdout[-2500:])
