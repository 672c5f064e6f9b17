# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Options that commands share: devices that are not there, seeds."""

from __future__ import annotations

import argparse

import pytest
import torch

from ultraflash_diffusers.commands.pipeline_options import chosen_device, seed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "--device 'gpu' is no device: expected cpu, cuda"),
        ("cuda:99", "--device 'cuda:99' was not found: PyTorch sees"),
        ("xpu", "--device 'xpu' was not found: PyTorch sees"),
        ("mps", "--device 'mps' was not found: PyTorch sees"),
        ("privateuseone", "--device 'privateuseone' was not found: PyTorch sees"),
    ],
)
def test_devices_that_are_not_there_are_named(name: str, message: str) -> None:
    if torch.accelerator.is_available() and torch.accelerator.current_accelerator().type == name:
        pytest.skip("it is here")
    with pytest.raises(ValueError, match=message):
        chosen_device(argparse.Namespace(device=name))


def test_devices_without_values_are_there() -> None:
    assert chosen_device(argparse.Namespace(device="meta", plans=True)).type == "meta"
    assert chosen_device(argparse.Namespace(device="cpu")).type == "cpu"


def test_seeds_have_64_bits() -> None:
    assert seed("0") == 0
    torch.Generator().manual_seed(seed(str(2**64 - 1)))
    with pytest.raises(argparse.ArgumentTypeError, match="has more than 64 bits: a seed is 0 to 18446744073709551615"):
        seed("99999999999999999999")
    with pytest.raises(argparse.ArgumentTypeError, match="'-1' is no whole number"):
        seed("-1")
