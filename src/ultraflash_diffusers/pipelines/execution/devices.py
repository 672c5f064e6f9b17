# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where a network computes, which is not always where its weights are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers.hooks.group_offloading import _get_group_onload_device, _is_group_offload_enabled
from torch import nn


def is_offloaded(module: nn.Module) -> bool:
    """Whether hooks bring the weights of `module` to where they are needed (CPU, disk or group offloading)."""
    return hasattr(module, "_hf_hook") or _is_group_offload_enabled(module)


def execution_device(module: nn.Module) -> torch.device:
    """The device on which `module` computes and expects its inputs, whatever offloading is on."""
    if _is_group_offload_enabled(module):
        return _get_group_onload_device(module)
    for part in module.modules():
        hook = part.__dict__.get("_hf_hook")
        # a module that is only the frame of offloaded ones has a hook without a device
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Moves a tensor of the CPU to where it is needed; the host does not wait for a GPU to take it."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def on_cuda_stream(stream: torch.cuda.Stream | None) -> AbstractContextManager:
    """Runs a block on a CUDA stream, or where it would run anyway."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


class DeferredFlag:
    """A truth value that a GPU is still to find out. To ask for it waits for what it depends on, not for later work.

    Args:
        value (`torch.Tensor`, 0-d bool): it, on any device.
    """

    def __init__(self, value: torch.Tensor) -> None:
        self._value, self._known = value, None
        if value.device.type == "cuda":
            self._value = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(value, non_blocking=True)
            self._known = torch.cuda.current_stream(value.device).record_event()

    def __bool__(self) -> bool:
        if self._known is not None:
            self._known.synchronize()
        return bool(self._value)
