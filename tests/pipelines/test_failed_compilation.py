# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where `torch.compile` fails, streams run as they are, and say so."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.paths import ROOT, TESTS

from ultraflash_diffusers import UltraFlashStreamingPipeline
from ultraflash_diffusers.pipelines.execution.compilation import is_compiled

NETWORKS = ("generator_transformer", "transformer", "latent_upsampler", "autoencoder")
LOGGER = "ultraflash_diffusers.pipelines.execution.compilation"

# as on a machine whose compiler answers but has no room, no headers or no linker
BROKEN_COMPILER = """#!/bin/sh
case "$*" in *--version*) echo "g++ (GCC) 13.2.0"; exit 0;; esac
echo "fatal error: omp.h: No such file or directory" >&2
exit 1
"""

COMPARE = """
import torch
from helpers import tiny
from ultraflash_diffusers.pipelines.execution.compilation import is_compiled

pipe = tiny.make_tiny_pipeline(text=False)
prompt = torch.randn(1, tiny.TEXT_LENGTH, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(9))
arguments = {"prompt_embeds": prompt, "num_frames": 41, "output_type": "pt"}
plain = pipe(generator=torch.Generator().manual_seed(0), **arguments).frames
pipe.optimize(channels_last=False)
assert is_compiled(pipe.transformer)
assert torch.equal(pipe(generator=torch.Generator().manual_seed(0), **arguments).frames, plain)
assert not is_compiled(pipe.transformer)
"""


def frames_of(pipe: UltraFlashStreamingPipeline, **arguments: Any) -> torch.Tensor:
    prompt = torch.randn(1, tiny.TEXT_LENGTH, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(9))
    arguments = {"prompt_embeds": prompt, "num_frames": 41, "output_type": "pt", **arguments}
    return pipe(generator=torch.Generator().manual_seed(0), **arguments).frames


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of failures, sorted; torch's own traces aside."""
    return sorted(record.getMessage() for record in caplog.records if record.name == LOGGER)


@pytest.mark.slow
def test_a_broken_compiler_leaves_the_plain_video(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(BROKEN_COMPILER)
    compiler.chmod(compiler.stat().st_mode | stat.S_IEXEC)
    environment = os.environ | {
        "CXX": str(compiler),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", TESTS))),
    }
    done = subprocess.run([sys.executable, "-c", COMPARE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "could not be compiled and runs as it is" in line]
    assert sorted(line.split()[0] for line in lines) == sorted(NETWORKS)
    assert all("C++" in line for line in lines)


def test_a_later_size_that_cannot_be_compiled(caplog: pytest.LogCaptureFixture) -> None:
    """One warning a network, though all of its blocks and both sizes of groups would fail."""
    torch.compiler.reset()
    compiles = True

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        if not compiles:
            raise NotImplementedError("no code for this size\nand more of it")
        return graph.forward

    pipe = tiny.make_tiny_pipeline(text=False)
    sizes: list[dict[str, Any]] = [{}, {"height": 32, "width": 64}]
    plain = [frames_of(pipe, **size) for size in sizes]
    pipe.optimize(compile_backend=backend, channels_last=False)
    assert torch.allclose(frames_of(pipe), plain[0], atol=1e-5)
    assert not said(caplog) and all(is_compiled(getattr(pipe, name)) for name in NETWORKS)
    compiles = False
    with caplog.at_level(logging.WARNING, LOGGER):
        assert torch.equal(frames_of(pipe, **sizes[1]), plain[1])
    reason = "could not be compiled and runs as it is from here on (NotImplementedError: no code for this size)"
    assert said(caplog) == sorted(f"{name} {reason}" for name in NETWORKS)
    assert not any(is_compiled(getattr(pipe, name)) for name in NETWORKS)


def test_a_system_without_torch_compile(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("torch.compile is not supported on Python 3.99")

    monkeypatch.setattr(torch, "compile", refuse)
    pipe = tiny.make_tiny_pipeline(text=False)
    with caplog.at_level(logging.WARNING, LOGGER):
        report = pipe.optimize()
    assert not report.applied("compile") and "Python 3.99" in str(report)
    assert [message.split()[0] for message in said(caplog)] == sorted(NETWORKS)


def test_an_unknown_compiler_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="Invalid backend: 'nvcc'"):
        tiny.make_tiny_pipeline(text=False).optimize(compile_backend="nvcc")
