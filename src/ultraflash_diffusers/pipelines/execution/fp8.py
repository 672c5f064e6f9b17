# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Linear layers in FP8, by torchao: which ones, on what, and whether they are faster here."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from functools import partial

import torch
from torch import nn

from ...models.wan_backbone import WanBackbone
from .devices import execution_device
from .race import Race, has_room, race, relative_error

# what FP8 takes for the largest value of a token that is all zeros, and has no scale either
_LEAST_ACTIVATION = 1e-12

# relative error of a layer's output in FP8 that says that something is wrong; 0.03 to 0.04 are usual
_TOLERANCE = 0.1


def check_fp8(network: WanBackbone) -> None:
    """Checks that FP8 can be had.

    Raises:
        ValueError: torchao is missing, the device has no FP8 units, or the network is not in bfloat16.
    """
    device = execution_device(network)
    if importlib.util.find_spec("torchao") is None:
        raise ValueError("`fp8` is True, but torchao is not installed: pip install ultraflash_diffusers[fp8]")
    if device.type != "cuda" or torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 9):
        raise ValueError(f"`fp8` is True, but {device} has no FP8 matrix units (compute capability 8.9 or later)")
    if network.dtype != torch.bfloat16:
        raise ValueError(f"`fp8` is True, but {type(network).__name__} is in {network.dtype}, not in torch.bfloat16")


def fp8_linears(module: nn.Module) -> list[nn.Linear]:
    """The linear layers that FP8 may take: sizes multiples of 16, no row of weights all zeros.

    A row of zeros has no scale: its products would be NaN. To be asked of a transformer's blocks: embeddings, the
    modulation's projection and the output layer are few, and precision is worth most there.
    """
    linears = (part for part in module.modules() if isinstance(part, nn.Linear))
    return [
        linear
        for linear in linears
        if all(size % 16 == 0 for size in linear.weight.shape) and bool(linear.weight.any(dim=1).all())
    ]


def quantize_linears(module: nn.Module) -> int:
    """Brings the linear layers in `module` that may be to FP8; returns how many."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    linears = {id(linear) for linear in fp8_linears(module)}
    config = Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(),
        activation_value_lb=_LEAST_ACTIVATION,
        set_inductor_config=False,  # would also change the precision of the process's float32 products
    )
    quantize_(module, config, filter_fn=lambda part, _: id(part) in linears)
    return len(linears)


@torch.no_grad()
def race_fp8(network: WanBackbone, tokens: int, compile_backend: str | None = "inductor", repeats: int = 5) -> Race:
    """Races one block's linear layers in bfloat16 and in FP8, each as a stream would run them.

    Args:
        network ([`WanBackbone`]): whose first block is copied.
        tokens (`int`): of a call.
        compile_backend (`str`, *optional*, defaults to `"inductor"`): of `torch.compile`, without which FP8 scales its
            inputs in kernels of their own; `None` compiles nothing.
        repeats (`int`, *optional*, defaults to 5): calls, the fastest of which counts.
    """
    device = execution_device(network)
    plain = fp8_linears(deepcopy(network.blocks[0]))
    if not plain:
        return Race(left_out={"fp8": "no layer's sizes are multiples of 16"})
    size = tokens * max(linear.in_features + linear.out_features for linear in plain) * network.dtype.itemsize
    if not has_room(device, size):
        return Race(left_out={"fp8": f"{size / 1e9:.1f} GB for a layer are not free"})
    quantized = deepcopy(plain)
    quantize_linears(nn.ModuleList(quantized))
    widths = {linear.in_features for linear in plain}
    inputs = {width: torch.randn(tokens, width, device=device).to(network.dtype) for width in widths}

    def run(linears: list[nn.Linear]) -> torch.Tensor:
        return [linear(inputs[linear.in_features]) for linear in linears][-1]

    expected = run(plain)
    if compile_backend is not None:
        for linear in [*plain, *quantized]:
            linear.compile(backend=compile_backend, dynamic=False)
    entrants = {"bfloat16": partial(run, plain), "fp8": partial(run, quantized)}
    return race(entrants, lambda output: relative_error(output, expected), _TOLERANCE, device, repeats)
