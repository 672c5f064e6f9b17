# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Options that commands share: what no device or port can be is refused in one line, before any work."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from ultraflash_diffusers.cli import main
from ultraflash_diffusers.commands.pipeline_options import chosen_device


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo", "--port", "0"], "--port: '0' is no port from 1 to 65535"),
        (["demo", "--port", "65536"], "--port: '65536' is no port"),
        (["serve", "--port", "70000"], "--port: '70000' is no port"),
    ],
)
def test_numbers_out_of_range(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mps", "meta", "xpu", "cpu:7:1", "gpu"])
def test_devices_that_are_not_here(name: str) -> None:
    if name in ("mps", "xpu") and getattr(torch, name).is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match=f"--device '{name}'"):
        chosen_device(argparse.Namespace(device=name))


def test_strict_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.mp4"
    assert main(["generate", "a xylophone", "--strict", "--output", str(output)]) == 2
    assert "does not know 'xylophone'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
