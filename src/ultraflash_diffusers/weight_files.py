# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Files of weights that strangers made: read without running their code and without more memory than they are long.

Files are mapped into memory, not read: a tensor's bytes come from disk when they are used, so that converting never
holds two copies. Only tensors and plain containers are unpickled, never code. What a file claims (shapes, strides,
sizes of its parts) is compared with how long it is before anything is made of it.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
_CHUNK = 1 << 22
_MAX_DEPTH = 16  # of containers in containers; training checkpoints have four or five
# tensors that share their bytes (averaged weights that are the weights) may claim the file's length a few times
_MAX_CLAIM = 4
# Written into keys by torch.compile, FSDP and activation checkpointing, at any depth.
_WRAPPER_SEGMENTS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint file without copying its tensors into memory.

    Args:
        path (`str` or `Path`): a `.safetensors` file, the `.safetensors.index.json` of a sharded one, or a file that
            `torch.save` wrote (`.pth`, `.pt`, `.ckpt`, `.bin`).

    Returns:
        `dict[str, Any]`: what the file holds: a state dict, or a dictionary that has one under `model` or the like.

    Raises:
        FileNotFoundError: `path` is not a file.
        ValueError: the file is empty, truncated, damaged, of another kind, compressed, a pickle that would run code,
            or claims more than it holds.
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
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise ValueError(
        f"{str(path)!r} has the suffix {path.suffix!r}; expected .safetensors, .safetensors.index.json, .pth, .pt, "
        ".ckpt or .bin"
    )


def without_wrappers(key: str) -> str:
    """Returns a weight's name freed of what torch.compile, FSDP and activation checkpointing wrote into it."""
    return _WRAPPER_SEGMENTS.sub("", key)


def shorten(keys: list[str], limit: int = 50) -> str:
    """Returns the keys as one line, the count of the rest where there are more than `limit`."""
    listed = ", ".join(f"`{key}`" for key in keys[:limit]) or "nothing"
    return listed if len(keys) <= limit else f"{listed} and {len(keys) - limit} more"


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
        foreign = [shard for shard in shards if Path(shard).name != shard or not shard.endswith(".safetensors")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(index)!r} is not the index of a sharded safetensors file") from error
    if foreign:
        raise ValueError(f"{str(index)!r} names {shorten(foreign, 3)}; expected .safetensors files beside it")
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
            _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        reason = " ".join(str(error).split())
        if "Weights only load failed" in reason:
            reason = "it is no PyTorch file, or it holds more than tensors and plain containers, which is never loaded"
        raise ValueError(f"{str(path)!r} is not a readable PyTorch checkpoint: {reason[:300]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__}, expected a dictionary of tensors")
    _check_claims(path, content)
    return content


def _check_archive(path: Path) -> None:
    """Compares the archive's entries with the file's length and their checksums, neither of which torch.load does.

    Compressed entries, which torch.save does not write, would be mapped as they lie there: weights of noise.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if compressed := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
            raise ValueError(f"its entries are compressed ({compressed[0]!r}): load it and torch.save it again")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its entries claim more bytes than the file has")
        for entry in entries:
            if entry.CRC == 0:
                continue  # torch can be told to write no checksums: they are 0 then
            with archive.open(entry) as part:
                while part.read(_CHUNK):
                    pass


def _check_claims(path: Path, content: dict[str, Any]) -> None:
    """Refuses tensors that are longer than their bytes (strides of 0), not plain, or too many for the file."""
    claimed = 0
    for key, tensor in _tensors(path, content, set()):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{str(path)!r}: `{key}` is no plain tensor with its values in the file")
        size = tensor.numel() * tensor.element_size()
        if size > tensor.untyped_storage().nbytes():
            raise ValueError(
                f"{str(path)!r}: `{key}` of shape {tuple(tensor.shape)} claims {size} bytes, its part of the file has "
                f"{tensor.untyped_storage().nbytes()}"
            )
        claimed += size
    if claimed > _MAX_CLAIM * path.stat().st_size:
        raise ValueError(f"{str(path)!r}: its tensors claim {claimed} bytes, the file has {path.stat().st_size}")


def _tensors(
    path: Path, content: Any, seen: set[int], key: str = "", depth: int = 0
) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of nested containers, with where they stand; a container that is there again counts once."""
    if isinstance(content, torch.Tensor):
        yield key, content
    elif isinstance(content, Mapping | list | tuple | set) and id(content) not in seen:
        if depth == _MAX_DEPTH:
            raise ValueError(f"{str(path)!r}: more than {_MAX_DEPTH} containers in one another at `{key[:100]}`")
        seen.add(id(content))
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for name, value in items:
            yield from _tensors(path, value, seen, f"{key}.{name}".lstrip("."), depth + 1)
