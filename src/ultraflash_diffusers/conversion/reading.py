# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Finding the one network's tensors among what a training checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..weight_files import shorten, without_wrappers

# Under which key training checkpoints keep the network: averaged weights, and those that are trained.
_AVERAGED_KEYS = ("generator_ema", "model_ema", "ema")
_TRAINED_KEYS = ("generator", "model", "state_dict")
_NETWORK_KEYS = (*_AVERAGED_KEYS, *_TRAINED_KEYS)


def find_network(checkpoint: Mapping[str, Any], use_ema: bool | None) -> tuple[dict[str, torch.Tensor], str]:
    """Returns a checkpoint's state dict, freed of what training wrappers wrote into its keys, and where it was found.

    Args:
        checkpoint (`Mapping[str, Any]`): tensors by name, or containers with a known key; what else is beside it
            (optimizers, a critic, a step) is left out.
        use_ema (`bool`, *optional*): whether the averaged weights are meant. Both may be there, and which of them was
            published as the model is not in the file; averaged ones by default.

    Raises:
        ValueError: there is none, or not the one that is meant.
    """
    found, seen = "", list[int]()
    while not all(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        seen.append(id(checkpoint))  # a dictionary that contains itself has no end
        inner = [key for key in _NETWORK_KEYS if isinstance(checkpoint.get(key), Mapping)]
        inner = [key for key in inner if id(checkpoint[key]) not in seen]
        if not inner:
            raise ValueError(
                "the checkpoint is neither a state dict of tensors nor has one under "
                f"{', '.join(map(repr, _NETWORK_KEYS))}; it has {shorten(sorted(map(str, checkpoint)))}"
            )
        wanted = _TRAINED_KEYS if use_ema is False else _NETWORK_KEYS
        key = next((key for key in inner if key in wanted), None)
        if key is None:
            raise ValueError(
                f"`use_ema` is False, but the checkpoint holds averaged weights alone, under {inner[0]!r}"
            )
        checkpoint, found = checkpoint[key], f"{found}.{key}".lstrip(".")
    return _state_dict(checkpoint, found), found


def is_averaged(found: str) -> bool:
    """Whether what was found under these keys are averaged weights."""
    return any(key in _AVERAGED_KEYS for key in found.split("."))


def _state_dict(checkpoint: Mapping[str, Any], found: str) -> dict[str, torch.Tensor]:
    state_dict: dict[str, torch.Tensor] = {}
    for key, tensor in checkpoint.items():
        name = without_wrappers(str(key))
        if name in state_dict:
            raise ValueError(f"the key `{name}` is there twice, once as `{key}`")
        state_dict[name] = tensor
    if not state_dict:
        raise ValueError(f"the checkpoint holds no tensors{f' under {found!r}' if found else ''}")
    return state_dict
