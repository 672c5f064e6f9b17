# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""LoRA for the SR transformer, which takes those that were made for Wan as they are."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict
from diffusers.loaders.lora_conversion_utils import (
    _convert_musubi_wan_lora_to_diffusers,
    _convert_non_diffusers_wan_lora_to_diffusers,
)

LoraWeights = str | PathLike[str] | dict[str, torch.Tensor]
_HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


class UltraFlashLoraLoaderMixin(LoraBaseMixin):
    """Loads, saves and fuses LoRA layers of [`UltraFlashSRTransformer`]; the other networks have none."""

    _lora_loadable_modules = ["transformer"]
    transformer_name = "transformer"

    @classmethod
    def lora_state_dict(cls, weights: LoraWeights, **kwargs: Any) -> tuple[dict[str, torch.Tensor], dict | None]:
        """Reads LoRA weights and brings them into diffusers' naming.

        Args:
            weights (`str`, `os.PathLike` or `dict`): a file, a folder, a repository on the Hub, or tensors by name. In
                diffusers' own (PEFT) naming, that of the original Wan code, or that of musubi-tuner.
            kwargs: `weight_name`, `use_safetensors` and the Hub arguments of `from_pretrained`.

        Returns:
            The tensors, their names starting with `transformer.`, and the file's adapter metadata if it has any.

        Raises:
            ValueError: the names are not those of a LoRA.
        """
        use_safetensors = kwargs.pop("use_safetensors", None)
        hub_arguments = {name: kwargs.pop(name, None) for name in _HUB_ARGUMENTS}
        weight_name = kwargs.pop("weight_name", None)
        if kwargs:
            raise TypeError(f"`lora_state_dict` got unexpected arguments {sorted(kwargs)}")
        state_dict, metadata = _fetch_state_dict(
            pretrained_model_name_or_path_or_dict=weights if isinstance(weights, dict) else str(weights),
            weight_name=weight_name,
            use_safetensors=use_safetensors is not False,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            allow_pickle=use_safetensors is None,
            **hub_arguments,
        )
        state_dict = dict(state_dict)
        if any(name.startswith("diffusion_model.") for name in state_dict):
            state_dict = _convert_non_diffusers_wan_lora_to_diffusers(state_dict)
        elif any(name.startswith("lora_unet_") for name in state_dict):
            state_dict = _convert_musubi_wan_lora_to_diffusers(state_dict)
        foreign = [name for name in state_dict if "lora" not in name]
        if foreign or not state_dict:
            raise ValueError(f"`weights` is no LoRA: it holds {foreign[:3] or 'nothing'}")
        return state_dict, metadata

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: LoraWeights,
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = False,
        **kwargs: Any,
    ) -> None:
        """Loads a LoRA into the SR transformer.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`): see
                [`~UltraFlashLoraLoaderMixin.lora_state_dict`], which also takes the further arguments.
            adapter_name (`str`, *optional*): how `set_adapters` will call it; `default_N` if not given.
            hotswap (`bool`, *optional*, defaults to `False`): replaces the weights of the adapter of this name in
                place, so that a compiled network stays compiled.
            low_cpu_mem_usage (`bool`, *optional*, defaults to `False`): loads without initialising the layers first.

        Raises:
            ValueError: these are no LoRA weights, or they do not fit the network.
        """
        state_dict, metadata = self.lora_state_dict(pretrained_model_name_or_path_or_dict, **kwargs)
        self.transformer.load_lora_adapter(
            state_dict,
            prefix=self.transformer_name,
            adapter_name=adapter_name,
            metadata=metadata,
            _pipeline=self,
            low_cpu_mem_usage=low_cpu_mem_usage,
            hotswap=hotswap,
        )

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | PathLike[str],
        transformer_lora_layers: dict[str, torch.Tensor],
        is_main_process: bool = True,
        weight_name: str | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: dict | None = None,
    ) -> None:
        """Writes LoRA layers, for instance those of `peft.get_peft_model_state_dict`, to a file that
        [`~UltraFlashLoraLoaderMixin.load_lora_weights`] reads.

        Args:
            save_directory (`str` or `os.PathLike`): folder, created if there is none.
            transformer_lora_layers (`dict`): tensors by name.
            is_main_process (`bool`, *optional*, defaults to `True`): whether this process writes.
            weight_name (`str`, *optional*): file name; `pytorch_lora_weights.safetensors` if not given.
            safe_serialization (`bool`, *optional*, defaults to `True`): safetensors instead of a pickle.
            transformer_lora_adapter_metadata (`dict`, *optional*): the adapter's configuration.
        """
        cls._save_lora_weights(
            save_directory=Path(save_directory),
            lora_layers={cls.transformer_name: transformer_lora_layers},
            lora_metadata={cls.transformer_name: transformer_lora_adapter_metadata},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=None,
            safe_serialization=safe_serialization,
        )

    def fuse_lora(
        self,
        components: list[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds the LoRA to the SR transformer's own weights; see diffusers' `LoraBaseMixin.fuse_lora`."""
        super().fuse_lora(components or [self.transformer_name], lora_scale, safe_fusing, adapter_names, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Takes a fused LoRA out again; see diffusers' `LoraBaseMixin.unfuse_lora`."""
        super().unfuse_lora(components or [self.transformer_name], **kwargs)
