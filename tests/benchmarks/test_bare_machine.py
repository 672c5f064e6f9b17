# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What works on a machine that has PyTorch and diffusers and little else."""

from __future__ import annotations

import re

import pytest
from helpers.bare_machine import MISSING, run_bare
from helpers.paths import TESTS

STREAMS = """
import importlib, torch
from helpers import tiny

assert not any(importlib.util.find_spec(name) for name in MISSING)
pipe = tiny.make_tiny_pipeline(text=False)
latents = torch.randn(1, tiny.LATENT_CHANNELS, 5, 4, 6)
prompt = torch.randn(1, tiny.TEXT_LENGTH, tiny.TEXT_DIM)
print(pipe(source=latents, output_type="uint8").frames.shape, pipe(prompt_embeds=prompt).frames[0][0].size)
"""


def test_latents_and_embedded_prompts_stream() -> None:
    result = run_bare(f"MISSING = {MISSING}\n{STREAMS}")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split("\n")[0] == "(1, 17, 32, 48, 3) (48, 32)"


@pytest.mark.slow
def test_the_tests_for_gpus_are_collected() -> None:
    """By the marker alone: no file that has none is imported. Training's need PyAV."""
    result = run_bare("import pytest; sys.exit(pytest.main(['-m', 'gpu', '--collect-only', '-q']))")
    assert result.returncode == 0, result.stdout[-2000:]
    marked = {path for path in TESTS.rglob("test_*.py") if re.search(r"^@pytest\.mark\.gpu", path.read_text(), re.M)}
    collected = {line.split("::")[0] for line in result.stdout.splitlines() if "::" in line}
    assert collected == {str(path.relative_to(TESTS.parent)) for path in marked if path.parent.name != "training"}
    assert len(collected) > 2
