# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Finding the one network's tensors among what a training checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..weight_files import shorten, without_wrappers

# Under which key training checkpoints keep the network, the averaged weights, which are meant for use, first.
_NETWORK_KEYS = ("generator_ema", "model_ema", "ema", "generator", "model", "state_dict")


def find_network(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], str]:
    """Returns a checkpoint's state dict, freed of what training wrappers wrote into its keys, and where it was found.

    Raises:
        ValueError: there is none.
    """
    found, seen = "", list[int]()
    while not all(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        seen.append(id(checkpoint))  # a dictionary that contains itself has no end
        inner = (key for key in _NETWORK_KEYS if isinstance(checkpoint.get(key), Mapping))
        key = next((key for key in inner if id(checkpoint[key]) not in seen), None)
        if key is None:
            raise ValueError(
                "the checkpoint is neither a state dict of tensors nor has one under "
                f"{', '.join(repr(key) for key in _NETWORK_KEYS)}; it has {shorten(sorted(map(str, checkpoint)))}"
            )
        checkpoint, found = checkpoint[key], f"{found}.{key}".lstrip(".")
    state_dict: dict[str, torch.Tensor] = {}
    for key, tensor in checkpoint.items():
        name = without_wrappers(str(key))
        if name in state_dict:
            raise ValueError(f"the key `{name}` is there twice, once as `{key}`")
        state_dict[name] = tensor
    if not state_dict:
        raise ValueError(f"the checkpoint holds no tensors{f' under {found!r}' if found else ''}")
    return state_dict, found
