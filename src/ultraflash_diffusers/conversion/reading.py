# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Reading checkpoint files, and finding the one network's tensors among what they hold.

Files are mapped into memory, not read: a tensor's bytes come from disk when they are used, so that converting never
holds two copies. Only tensors and plain containers are unpickled, never code.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

# Under which key training checkpoints keep the network, the averaged weights, which are meant for use, first.
_NETWORK_KEYS = ("generator_ema", "model_ema", "ema", "generator", "model", "state_dict")
# Written into keys by torch.compile, FSDP and activation checkpointing, at any depth.
_WRAPPER_SEGMENTS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_CHUNK = 1 << 22


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint file without copying its tensors into memory.

    Args:
        path (`str` or `Path`): a `.safetensors` file, the `.safetensors.index.json` of a sharded one, or a file that
            `torch.save` wrote (`.pth`, `.pt`, `.ckpt`, `.bin`).

    Returns:
        `dict[str, Any]`: what the file holds: a state dict, or a dictionary that has one under `model` or the like.

    Raises:
        FileNotFoundError: `path` is not a file.
        ValueError: the file is empty, truncated, damaged, of another kind, or a pickle that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is {'a folder, not a file' if path.is_dir() else 'not there'}")
    if path.stat().st_size == 0:
        raise ValueError(f"{str(path)!r} is empty")
    if path.name.endswith(".safetensors.index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt", ".ckpt", ".bin"):
        return _read_torch(path)
    raise ValueError(
        f"{str(path)!r} has the suffix {path.suffix!r}; expected .safetensors, .safetensors.index.json, .pth, .pt, "
        ".ckpt or .bin"
    )


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a readable safetensors file (truncated?): {error}") from error


def _read_shards(index: Path) -> dict[str, Any]:
    try:
        shard_of = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(shard_of.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(index)!r} is not the index of a sharded safetensors file") from error
    tensors: dict[str, Any] = {}
    for shard in shards:
        tensors.update(read_checkpoint(index.parent / shard))
    if tensors.keys() != shard_of.keys():
        unmatched = sorted(tensors.keys() ^ shard_of.keys())
        raise ValueError(f"{str(index)!r} and its shards do not list the same tensors: {shorten(unmatched)}")
    return tensors


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        mappable = zipfile.is_zipfile(path)  # files of torch < 1.6 are not, and are read as a whole
        if mappable:
            _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        reason = " ".join(str(error).split())
        if "Weights only load failed" in reason:
            reason = "it is no PyTorch file, or it holds more than tensors and plain containers, which is never loaded"
        raise ValueError(f"{str(path)!r} is not a readable PyTorch checkpoint: {reason[:300]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__}, expected a dictionary of tensors")
    return content


def _check_sums(path: Path) -> None:
    """Compares the archive's contents with its checksums, which torch.load does not do."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.CRC == 0:
                continue  # torch can be told to write no checksums: they are 0 then
            with archive.open(entry) as part:
                while part.read(_CHUNK):
                    pass


def find_network(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], str]:
    """Returns a checkpoint's state dict, freed of what training wrappers wrote into its keys, and where it was found.

    Raises:
        ValueError: there is none.
    """
    found = ""
    while not all(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        key = next((key for key in _NETWORK_KEYS if isinstance(checkpoint.get(key), Mapping)), None)
        if key is None:
            raise ValueError(
                "the checkpoint is neither a state dict of tensors nor has one under "
                f"{', '.join(repr(key) for key in _NETWORK_KEYS)}; it has {shorten(sorted(map(str, checkpoint)))}"
            )
        checkpoint, found = checkpoint[key], f"{found}.{key}".lstrip(".")
    state_dict: dict[str, torch.Tensor] = {}
    for key, tensor in checkpoint.items():
        name = _WRAPPER_SEGMENTS.sub("", str(key))
        if name in state_dict:
            raise ValueError(f"the key `{name}` is there twice, once as `{key}`")
        state_dict[name] = tensor
    if not state_dict:
        raise ValueError(f"the checkpoint holds no tensors{f' under {found!r}' if found else ''}")
    return state_dict, found


def shorten(keys: list[str], limit: int = 50) -> str:
    """Returns the keys as one line, the count of the rest where there are more than `limit`."""
    listed = ", ".join(f"`{key}`" for key in keys[:limit]) or "nothing"
    return listed if len(keys) <= limit else f"{listed} and {len(keys) - limit} more"
