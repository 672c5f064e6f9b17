# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Finding and reading LoRA files: of a folder, of the Hub, safetensors or PyTorch's, tensors alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open

from ...hub_files import Hub, is_repository
from ...weight_files import TORCH_SUFFIXES, read_checkpoint

LoraWeights = str | PathLike[str] | dict[str, torch.Tensor]
Configs = dict[str | None, dict[str, Any]]
# the names that diffusers and PEFT save under
_USUAL_NAMES = ("pytorch_lora_weights", "adapter_model")
_PEFT_CONFIG = "adapter_config.json"
_COMPONENTS = ("transformer", "generator_transformer")


def read_lora(
    weights: LoraWeights, weight_name: str | None, use_safetensors: bool | None, subfolder: str | None, hub: Hub
) -> tuple[Mapping[str, Any], Configs]:
    """Returns a LoRA file's content and PEFT's configuration by component, as far as there is one.

    Raises:
        OSError, ValueError: there is no such file, several could be meant, or it cannot be read.
    """
    if isinstance(weights, dict):
        return weights, {}
    suffixes = (".safetensors",) * (use_safetensors is not False) + TORCH_SUFFIXES * (use_safetensors is not True)
    path = Path(weights)
    if path.is_dir():
        folder = path / (subfolder or "")
        names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
        path = folder / (weight_name or _chosen(str(folder), names, suffixes))
    elif not path.exists() and is_repository(str(weights)):
        return _read_repository(str(weights), weight_name, suffixes, subfolder, hub)
    if not path.is_file():
        raise FileNotFoundError(f"the LoRA {str(path)!r} is not there: neither a file, a folder nor a Hub repository")
    return read_checkpoint(path), _configs(path, path.parent / _PEFT_CONFIG)


def _read_repository(
    repository: str, weight_name: str | None, suffixes: tuple[str, ...], subfolder: str | None, hub: Hub
) -> tuple[Mapping[str, Any], Configs]:
    root = PurePosixPath(subfolder or "")
    names = hub.names(repository) if weight_name is None else []
    inside = [name for name in names if PurePosixPath(name).parent == root]
    name = root / weight_name if weight_name else root / _chosen(repository, inside, suffixes)
    path = hub.file(repository, str(name))
    config = path.parent / _PEFT_CONFIG
    if name.stem == _USUAL_NAMES[1]:  # PEFT's file says its alpha in another one
        config = hub.file(repository, str(root / _PEFT_CONFIG))
    return read_checkpoint(path), _configs(path, config)


def _chosen(place: str, names: list[str], suffixes: tuple[str, ...]) -> str:
    """The one file that is meant: of a usual name, or else the only one."""
    files = [PurePosixPath(name) for name in names if PurePosixPath(name).suffix in suffixes]
    usual = [file for stem in _USUAL_NAMES for suffix in suffixes for file in files if file.name == stem + suffix]
    if not usual and len(files) != 1:
        listed = ", ".join(file.name for file in files) or f"no {' or '.join(suffixes)} file"
        raise ValueError(f"{place!r} holds {listed}: say by `weight_name` which LoRA is meant")
    return (usual or files)[0].name


def _configs(path: Path, peft_config: Path) -> Configs:
    if path.stem == _USUAL_NAMES[1] and peft_config.is_file():
        return _by_component(_parsed(peft_config.read_text(), peft_config))
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a readable safetensors file: {error}") from error
    return {} if text is None else _by_component(_parsed(text, path))


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the adapter's configuration in {str(path)!r} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"the adapter's configuration in {str(path)!r} is no JSON object")
    return config


def _by_component(config: dict[str, Any]) -> Configs:
    """Splits what diffusers writes as `transformer.r`, `generator_transformer.r`; PEFT writes `r`."""
    configs: Configs = {}
    for key, value in config.items():
        component, _, name = key.partition(".")
        place = (component, name) if component in _COMPONENTS and name else (None, key)
        configs.setdefault(place[0], {})[place[1]] = value
    return configs
