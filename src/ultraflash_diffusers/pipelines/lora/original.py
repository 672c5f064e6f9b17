# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""LoRA files in the original Wan code's names, which ComfyUI and others read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ...hub_files import Hub
from ...models.wan_names import WAN_NAMES, renamed
from .files import read_lora
from .layers import lora_layers


def write_original_lora(source: str | Path, target: str | Path) -> None:
    """Writes a LoRA by the original names, `diffusion_model.blocks.0.self_attn.q.lora_A.weight` and so on.

    Scales are inside of the matrices: readers that know of no alpha, and those that take the rank for it, agree.

    Args:
        source (`str` or `Path`): a LoRA file or folder of any spelling, for one network.
        target (`str` or `Path`): the `.safetensors` file.

    Raises:
        OSError, ValueError: there is no such file, it is no LoRA, or one for two networks.
    """
    layers = lora_layers(*read_lora(source, None, None, None, Hub()), None)
    if len(layers) != 1:
        networks = " and ".join(map(str, layers))
        raise ValueError(f"the LoRA {str(source)!r} is for {networks}: original names tell no two apart")
    tensors: dict[str, torch.Tensor] = {}
    for part in layers.values():
        for name, layer in part.items():
            original = renamed(f"{name}.", WAN_NAMES).rstrip(".")
            tensors |= layer.tensors(f"diffusion_model.{original}")
    save_file(tensors, target)
