# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where a network computes, which is not always where its weights are."""

from __future__ import annotations

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
