# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""An environment with PyTorch and diffusers and little else, as rented GPUs have it."""

from __future__ import annotations

import os
import subprocess
import sys

from helpers.paths import ROOT, TESTS

# what reads and writes video files, prompts as texts, data sets, pages, and extras (images for GPUs have OpenCV)
MISSING = ("av", "datasets", "fastapi", "ftfy", "gradio", "pyiqa", "tensorboard", "torchao")
_HIDE = f"import sys; sys.modules |= dict.fromkeys({MISSING})\n"


def run_bare(code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process that finds none of `MISSING`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT, TESTS)))}
    command = [sys.executable, "-c", _HIDE + code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
