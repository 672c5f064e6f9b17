# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Cached latents as one file, which travels: to train from it takes neither the clips nor what decodes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..files import written_whole
from .preparation import CachedClip

_CLIPS, _ENCODER = "clips", "encoder"
SUFFIX = ".safetensors"


def save_latents(clips: Sequence[CachedClip], encoder: str, path: Path) -> None:
    """Writes the latents of clips, in float16, and their texts into one file; all of them are in memory meanwhile.

    Args:
        clips (sequence of `CachedClip`): from [`~ultraflash_diffusers.training.data.latents.cache_latents`].
        encoder (`str`): what made them, by [`~ultraflash_diffusers.training.data.latents.encoder_fingerprint`].
        path (`Path`): a `.safetensors` file; an older one is replaced.

    Raises:
        ValueError: a name that ends otherwise, or latents that float16 cannot hold.
        OSError: the file cannot be written.
    """
    if path.suffix != SUFFIX:
        raise ValueError(f"`path` must end in {SUFFIX}, got {str(path)!r}")
    arrays: dict[str, np.ndarray] = {}
    rows = []
    for number, clip in enumerate(clips):
        files = {f"{number}.high": clip.high} | {f"{number}.low{at}": file for at, file in enumerate(clip.lows)}
        arrays |= {name: _halved(file) for name, file in files.items()}
        size = {"frames": clip.frames, "height": clip.height, "width": clip.width}
        rows.append({"text": clip.text, "lows": len(clip.lows), **size})
    with written_whole(path) as temporary:
        save_file(arrays, temporary, metadata={_CLIPS: json.dumps(rows), _ENCODER: encoder})


def _halved(file: Path) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.load(file).astype(np.float16)
    if not np.isfinite(array).all():
        raise ValueError(f"the latents {str(file)!r} are not finite in float16")
    return array


def load_latent_clips(path: Path, encoder: str) -> list[CachedClip]:
    """Lists the clips of a file of [`save_latents`]; the names of their latents are paths inside it.

    Args:
        path (`Path`): the file.
        encoder (`str`): the encoder that training has; see [`save_latents`].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file, or of another encoder.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is not there")
    try:
        metadata = _opened(path).metadata() or {}
        rows, made_by = json.loads(metadata[_CLIPS]), metadata[_ENCODER]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no whole file of latents, as --pack_latents writes them") from error
    if made_by != encoder:
        raise ValueError(f"{str(path)!r} holds latents of another encoder, {made_by}, not --autoencoder's {encoder}")
    return [_listed(path, number, row) for number, row in enumerate(rows)]


def _listed(path: Path, number: int, row: dict[str, Any]) -> CachedClip:
    lows = tuple(path / f"{number}.low{at}" for at in range(row["lows"]))
    return CachedClip(path / f"{number}.high", lows, row["text"], row["frames"], row["height"], row["width"])


def read_latents(file: Path, frames: int, rows: slice, columns: slice) -> np.ndarray:
    """Reads a part of a clip's latents.

    Args:
        file (`Path`): a `.npy` file `[channels, frames, height, width]`, or a path inside a file of [`save_latents`].
        frames (`int`): the first ones.
        rows, columns (`slice`): with both ends.

    Returns:
        `np.ndarray`: float32, a copy.
    """
    if file.parent.suffix == SUFFIX:
        part = _opened(file.parent).get_slice(file.name)[:, :frames, rows, columns]
    else:
        part = np.load(file, mmap_mode="r")[:, :frames, rows, columns]
    return np.array(part, dtype=np.float32)


@lru_cache(maxsize=2)
def _opened(path: Path) -> Any:
    return safe_open(path, framework="np")
