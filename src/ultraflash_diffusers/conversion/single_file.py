# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One published file, local or on the Hub, to one network: what the networks' `from_single_file` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from diffusers import GGUFQuantizationConfig
from diffusers.models.modeling_utils import ModelMixin

from ..hub_files import Hub, split_address
from ..weight_files import read_checkpoint
from .convert import from_original, in_dtype
from .gguf_file import load_gguf_file


def load_single_file(
    network_class: type[ModelMixin],
    source: str | PathLike[str] | Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    subfolder: str | None,
    hub: Mapping[str, Any],
    quantization_config: GGUFQuantizationConfig | None,
    settings: Mapping[str, Any],
) -> ModelMixin:
    """See [`Network.from_single_file`].

    Raises:
        ImportError: a GGUF file without the package `gguf`.
        OSError, ValueError: there is no such file, or it holds another network.
    """
    content = source if isinstance(source, Mapping) else _local_file(source, subfolder, Hub(**hub))
    is_gguf = isinstance(content, Path) and content.suffix == ".gguf"
    if is_gguf != isinstance(quantization_config, GGUFQuantizationConfig):
        raise ValueError(
            f"`quantization_config` is {quantization_config!r}, expected "
            + ("GGUFQuantizationConfig(compute_dtype=...) for a .gguf file" if is_gguf else "None for this source")
        )
    if isinstance(content, Path) and isinstance(quantization_config, GGUFQuantizationConfig):
        network = load_gguf_file(content, quantization_config, settings)
    else:
        network = from_original(content if isinstance(content, Mapping) else read_checkpoint(content), **settings)
    if not isinstance(network, network_class):
        place = "the tensors" if isinstance(source, Mapping) else repr(str(source))
        raise ValueError(
            f"{place} are of a {type(network).__name__}, not of a {network_class.__name__}: call "
            f"`{type(network).__name__}.from_single_file`"
        )
    if not is_gguf:
        in_dtype(network, dtype)
    return network


def _local_file(source: str | PathLike[str], subfolder: str | None, hub: Hub) -> Path:
    path = Path(source)
    if path.exists():
        return path
    address = split_address(str(source))
    if address is None:
        raise FileNotFoundError(
            f"{str(source)!r} is not there; on the Hub a file is called owner/name/path/file.pt, or by its address"
        )
    repository, revision, name = address
    if revision is not None:
        hub = dataclasses.replace(hub, revision=revision)
    return hub.file(repository, str(PurePosixPath(subfolder or "") / name))
