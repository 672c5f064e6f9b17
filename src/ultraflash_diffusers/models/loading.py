# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How all networks are loaded: from a diffusers folder, whole or not at all, or from one published file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import GGUFQuantizationConfig
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin

# far above what anybody trains, and far below what a crafted config could ask for
_MAX_LAYERS = 1000
_LISTED = 10


class Network(ModelMixin, ConfigMixin):
    """Base of the networks."""

    # `AutoModel.from_pretrained(folder, trust_remote_code=True)` finds the class by a file in the folder
    _auto_class = "AutoModel"

    def save_pretrained(self, save_directory: str | PathLike[str], *arguments: Any, **keywords: Any) -> None:
        """Saves the network as diffusers does, and a file by which its `AutoModel` finds the class."""
        folder, module = Path(save_directory), type(self).__module__
        if not folder.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            name = type(self).__name__
            code = f'# pip install ultraflash_diffusers\nfrom {module} import {name}\n\n__all__ = ["{name}"]\n'
            (folder / f"{module.rpartition('.')[2]}.py").write_text(code)
        super().save_pretrained(save_directory, *arguments, **keywords)

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **keywords: Any) -> Any:
        """Sorts what a config holds; see diffusers' `ConfigMixin`. What is there for `AutoModel` is no setting."""
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k != "auto_map"}, **keywords)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str] | None, **kwargs: Any) -> Any:
        """Loads the network from a folder or a Hub repository; see diffusers' `ModelMixin.from_pretrained`.

        Raises:
            ValueError: the weights lack some that the config asks for, which diffusers would leave without values.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        network, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        if missing := sorted(info["missing_keys"]):
            more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
            raise ValueError(
                f"the weights of the {cls.__name__} in {str(pretrained_model_name_or_path)!r} lack "
                f"{', '.join(missing[:_LISTED])}{more}"
            )
        return (network, info) if wants_info else network

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | PathLike[str] | Mapping[str, Any],
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        quantization_config: GGUFQuantizationConfig | None = None,
        **settings: Any,
    ) -> Self:
        """Loads the network from a published checkpoint file, whose sizes are read off its tensors.

        Args:
            pretrained_model_link_or_path_or_dict (`str`, `os.PathLike` or `Mapping`): a local file; a file on the Hub,
                as `owner/name/path/file.pt` or its address; or tensors by name. See [`read_checkpoint`].
            dtype (`torch.dtype`, *optional*): precision, but for weights that the network keeps in float32; as in the
                file by default. `torch_dtype` is another name for it.
            subfolder, revision, token, cache_dir, local_files_only, force_download (*optional*): as in
                `from_pretrained`.
            quantization_config (`GGUFQuantizationConfig`, *optional*): for a `.gguf` file (extra `gguf`), and for no
                other: its linear layers stay quantised, and work in the `compute_dtype`.
            settings: what tensors do not show, under our config's names or the published ones; see [`from_original`].

        Raises:
            ImportError: a GGUF file without the package `gguf`.
            OSError: the file is not there or cannot be downloaded.
            ValueError: it holds another network, or see [`read_checkpoint`] and [`from_original`].
        """
        # by name: the converter knows all networks and imports them, a plain import would be a circle
        single_file = importlib.import_module("ultraflash_diffusers.conversion.single_file")
        return single_file.load_single_file(
            cls,
            pretrained_model_link_or_path_or_dict,
            dtype=dtype or torch_dtype,
            subfolder=subfolder,
            hub={
                "revision": revision,
                "token": token,
                "cache_dir": cache_dir,
                "local_files_only": local_files_only,
                "force_download": force_download,
            },
            quantization_config=quantization_config,
            settings=settings,
        )


def check_layers(name: str, count: int) -> None:
    """Checks a number of layers before they are made.

    Raises:
        ValueError: it is no number, negative, or beyond anything that was ever trained.
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MAX_LAYERS:
        raise ValueError(f"`{name}` must be a whole number of 0 to {_MAX_LAYERS}, got {count!r}")
