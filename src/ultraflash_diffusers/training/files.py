# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Files of a training cache: written whole or not at all, and named after all that their contents depend on."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from diffusers.utils import logging
from torch import nn
from transformers import PreTrainedTokenizerBase

logger = logging.get_logger(__name__)

# whose processes' numbers say which files nobody writes any more
_HOST = socket.gethostname().replace(".", "-")


@dataclass(frozen=True)
class LeftOut:
    """Something that training does not use.

    Args:
        file (`str`): the source, or the clip of a source.
        reason (`str`): why not.
    """

    file: str
    reason: str


def write_left_out(path: Path, entries: Iterable[LeftOut]) -> None:
    """Lists what was left out, one JSON object a line; an earlier list is replaced, by an empty file if need be."""
    path.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in entries))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to; after the block what was written is at `path`, or nothing new is, where it failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own: several processes may write the same file
    temporary = path.with_name(f"{path.name}.{_HOST}.{os.getpid()}.tmp")
    try:
        yield temporary
        synced(temporary)
        os.replace(temporary, path)
        synced(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def delete_dead_files(folder: Path) -> list[Path]:
    """Deletes what killed processes of this machine were writing by [`written_whole`], and returns what it was.

    Args:
        folder (`Path`): of a cache or a run, at any depth; need not be there.
    """
    dead = []
    for path in sorted(folder.rglob(f"*.{_HOST}.*.tmp")):
        number = path.name.split(".")[-2]
        if path.is_file() and number.isdigit() and not psutil.pid_exists(int(number)):
            path.unlink(missing_ok=True)
            dead.append(path)
    return dead


def holds_array(path: Path) -> bool:
    """Whether a `.npy` file of a cache is there and whole; a damaged one is named and deleted, to be made anew."""
    try:
        np.load(path, mmap_mode="r")
        return True
    except FileNotFoundError:
        return False
    except (ValueError, OSError, EOFError) as error:
        logger.warning(f"{str(path)!r} of the cache is damaged ({error}), and is made anew")
        path.unlink()
        return False


def synced(path: Path) -> None:
    """Has a file, or the names in a folder, on the disk before what follows: a name must not outlive its contents."""
    if os.name == "nt" and path.is_dir():  # there, folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that a kill or a full disk leaves the old one as it was."""
    with written_whole(path) as temporary:
        temporary.write_text(text)


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array so that its `.npy` file is whole or not there.

    Raises:
        OSError: it cannot be written, for instance because the disk is full; nothing of it is left behind.
    """
    try:
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.save(file, array)
    except OSError as error:
        message = f"{error.strerror}: the cache could not be written; the files that it has already will be used again"
        raise OSError(error.errno, message, str(path)) from error


def weights_fingerprint(network: nn.Module, without: str | None = None) -> str:
    """Names the contents of a network: its configuration and every value of its weights, whatever files they are in.

    Args:
        network (`nn.Module`): with a `config`, as diffusers' and transformers' models have.
        without (`str`, *optional*): leaves out weights whose names begin with this.
    """
    digest = hashlib.sha256(json.dumps(_settings(network.config), sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.state_dict().items()):
        if without is None or not name.startswith(without):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names the contents of a tokenizer by the files that it saves."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(path.name.encode())
            digest.update(_lasting(path))
    return digest.hexdigest()[:16]


def _lasting(file: Path) -> bytes:
    """What a tokenizer's file holds, without the lengths that the last call has left in it."""
    if file.name != "tokenizer.json":
        return file.read_bytes()
    contents = json.loads(file.read_text())
    return json.dumps(contents | {"padding": None, "truncation": None}).encode()


def _settings(config: Any) -> dict:
    """A configuration without the entries that say where it came from."""
    settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: value for name, value in settings.items() if not name.startswith("_")}
