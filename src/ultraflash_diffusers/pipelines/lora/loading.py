# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Loading, weighing, fusing and saving LoRA layers of a pipeline's two transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.peft_utils import get_adapter_name
from peft.tuners.tuners_utils import BaseTunerLayer

from ...hub_files import Hub
from .files import LoraWeights, read_lora
from .fitting import choose_components
from .layers import Layers, lora_layers

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class UltraFlashLoraLoaderMixin(LoraBaseMixin):
    """LoRA layers of [`UltraFlashSRTransformer`] (`transformer`) and [`CausalWanTransformer`]
    (`generator_transformer`), together or alone."""

    _lora_loadable_modules = ["transformer", "generator_transformer"]
    transformer_name = "transformer"

    @classmethod
    def lora_state_dict(
        cls, weights: LoraWeights, *, lora_alpha: float | None = None, **kwargs: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        """Reads LoRA weights and brings them into PEFT's naming.

        Args:
            weights (`str`, `os.PathLike` or `dict`): a file (`.safetensors`, or `.pt` and the like, of which tensors
                alone are read), a folder, a repository on the Hub, or tensors by name. In diffusers' or PEFT's own
                naming, that of the original Wan code, or that of kohya's and musubi's trainers; or a checkpoint that
                holds them under `generator_lora`.
            lora_alpha (`float`, *optional*): of layers for which the file says none, where it is not their rank: their
                scale is `lora_alpha / rank`.
            kwargs: `weight_name`, `use_safetensors`, `subfolder` and the Hub arguments of `from_pretrained`.

        Returns:
            The tensors, their names starting with `transformer.` or `generator_transformer.` where the LoRA says for
            which it is, and `None`: scales are inside of the tensors.

        Raises:
            OSError, ValueError: there is no such file, or it is no LoRA.
        """
        named = cls._read_layers(weights, lora_alpha, kwargs)
        tensors: dict[str, torch.Tensor] = {}
        for component, layers in named.items():
            prefix = "" if component is None else f"{component}."
            for name, layer in layers.items():
                tensors |= layer.tensors(prefix + name)
        return tensors, None

    @classmethod
    def _read_layers(
        cls, weights: LoraWeights, lora_alpha: float | None, kwargs: dict[str, Any]
    ) -> dict[str | None, Layers]:
        hub = Hub(**{name: kwargs.pop(name) for name in _HUB_ARGUMENTS if kwargs.get(name) is not None})
        read = {name: kwargs.pop(name, None) for name in ("weight_name", "use_safetensors", "subfolder")}
        if unknown := sorted(name for name, value in kwargs.items() if value is not None):
            raise TypeError(f"unexpected arguments for a LoRA: {', '.join(unknown)}")
        if lora_alpha is not None and not lora_alpha > 0:
            raise ValueError(f"`lora_alpha` must be positive, got {lora_alpha}")
        return lora_layers(*read_lora(weights, hub=hub, **read), lora_alpha)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: LoraWeights,
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = False,
        *,
        component: str | None = None,
        lora_alpha: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Loads a LoRA into the SR transformer, the generator, or both.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`): see
                [`~UltraFlashLoraLoaderMixin.lora_state_dict`], which also takes the further arguments.
            adapter_name (`str`, *optional*): how `set_adapters` will call it; `default_N` if not given.
            hotswap (`bool`, *optional*, defaults to `False`): replaces the weights of the adapter of this name in
                place, so that a compiled network stays compiled.
            low_cpu_mem_usage (`bool`, *optional*, defaults to `False`): loads without initialising the layers first.
            component (`str`, *optional*): `"transformer"` or `"generator_transformer"`. By default what the LoRA says
                (names that begin with either, as saved here; `generator_lora`), or else the one that it fits.
            lora_alpha (`float`, *optional*): see [`~UltraFlashLoraLoaderMixin.lora_state_dict`].

        Raises:
            OSError, ValueError: there is no such file, it is no LoRA, it fits no network or not the one it is for, it
                fits both and neither it nor `component` says which is meant, or the adapter's name is taken.
        """
        layers = self._read_layers(pretrained_model_name_or_path_or_dict, lora_alpha, kwargs)
        chosen = choose_components(layers, self._lora_networks(), component)
        name = self._checked_name(adapter_name, chosen, hotswap)
        loaded: list[ModelMixin] = []
        try:
            for target, part in chosen.items():
                loaded.append(network := getattr(self, target))
                self._load_into(network, part, name, hotswap, low_cpu_mem_usage)
        except Exception:
            for network in [] if hotswap else loaded:
                network.delete_adapters(name)
            raise

    def _load_into(
        self, network: ModelMixin, layers: Layers, name: str, hotswap: bool, low_cpu_mem_usage: bool
    ) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for layer_name, layer in layers.items():
            tensors |= layer.tensors(layer_name)
        network.load_lora_adapter(
            tensors,
            prefix=None,
            adapter_name=name,
            metadata=_peft_arguments(layers),
            _pipeline=self,
            low_cpu_mem_usage=low_cpu_mem_usage,
            hotswap=hotswap,
        )

    def _lora_networks(self) -> dict[str, ModelMixin]:
        named = ((name, getattr(self, name, None)) for name in self._lora_loadable_modules)
        return {name: network for name, network in named if network is not None}

    def _checked_name(self, name: str | None, chosen: Mapping[str, Layers], hotswap: bool) -> str:
        adapters = {target: self.get_list_adapters().get(target, []) for target in chosen}
        if name is None:
            if hotswap:
                raise ValueError("`hotswap` replaces an adapter: say by `adapter_name` which")
            return max(
                (get_adapter_name(getattr(self, target)) for target in chosen), key=lambda text: (len(text), text)
            )
        for target, names in adapters.items():
            if (name in names) is not hotswap:
                state = "has no adapter to replace" if hotswap else "already has an adapter"
                there = ", ".join(map(repr, names)) or "none"
                raise ValueError(f"`adapter_name` is {name!r}, but the {target} {state} of this name; it has {there}")
        return name

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | PathLike[str],
        transformer_lora_layers: dict[str, torch.Tensor] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: dict | None = None,
        generator_transformer_lora_layers: dict[str, torch.Tensor] | None = None,
        generator_transformer_lora_adapter_metadata: dict | None = None,
    ) -> None:
        """Writes LoRA layers, for instance those of `peft.get_peft_model_state_dict`, to a file that
        [`~UltraFlashLoraLoaderMixin.load_lora_weights`] reads.

        Args:
            save_directory (`str` or `os.PathLike`): folder, created if there is none.
            transformer_lora_layers (`dict`, *optional*): tensors by name, of the SR transformer.
            is_main_process (`bool`, *optional*, defaults to `True`): whether this process writes.
            weight_name (`str`, *optional*): file name; `pytorch_lora_weights.safetensors` if not given.
            safe_serialization (`bool`, *optional*, defaults to `True`): safetensors instead of a pickle.
            transformer_lora_adapter_metadata (`dict`, *optional*): the adapter's configuration, which says its alpha.
            generator_transformer_lora_layers (`dict`, *optional*): tensors by name, of the generator.
            generator_transformer_lora_adapter_metadata (`dict`, *optional*): the adapter's configuration.

        Raises:
            ValueError: there are no layers.
            NotADirectoryError: `save_directory` is a file.
        """
        given = {"transformer": transformer_lora_layers, "generator_transformer": generator_transformer_lora_layers}
        layers = {name: part for name, part in given.items() if part}
        if not layers:
            raise ValueError("`transformer_lora_layers` and `generator_transformer_lora_layers` are both empty")
        if Path(save_directory).is_file():
            raise NotADirectoryError(f"`save_directory` is the file {str(save_directory)!r}, expected a folder")
        if not is_main_process:
            return
        cls._save_lora_weights(
            save_directory=Path(save_directory),
            lora_layers=layers,
            lora_metadata={
                "transformer": transformer_lora_adapter_metadata,
                "generator_transformer": generator_transformer_lora_adapter_metadata,
            },
            weight_name=weight_name,
            save_function=None,
            safe_serialization=safe_serialization,
        )

    def set_adapters(
        self,
        adapter_names: list[str] | str,
        adapter_weights: float | dict[str, float] | Sequence[float | dict[str, float]] | None = None,
    ) -> None:
        """Chooses the adapters that work, and how much each does.

        Args:
            adapter_names (`str` or `list[str]`): all others rest.
            adapter_weights (`float`, `dict` or a sequence of them, *optional*, defaults to 1.0): one for all or one
                for each; a dictionary says it by component.

        Raises:
            ValueError: a name or component that is not there, or another number of weights than of names.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        places = {name: {part for part, there in self.get_list_adapters().items() if name in there} for name in names}
        if isinstance(adapter_weights, dict):  # one for all: of each adapter the networks that it is in
            _check_components(adapter_weights, {*self._lora_networks()})
            weights: list[Any] = [{k: v for k, v in adapter_weights.items() if k in places[name]} for name in names]
        elif adapter_weights is None or isinstance(adapter_weights, float | int):
            weights = [adapter_weights] * len(names)
        else:
            weights = [dict(weight) if isinstance(weight, dict) else weight for weight in adapter_weights]
            for name, weight in zip(names, weights, strict=False):
                _check_components(weight if isinstance(weight, dict) else {}, places[name])
        super().set_adapters(names, weights)

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that work in any of the networks."""
        active: dict[str, None] = {}
        for component, names in self.get_list_adapters().items():
            working = {name for module in self._tuned_layers([component]) for name in module.active_adapters}
            active |= dict.fromkeys(name for name in names if name in working)
        return list(active)

    def fuse_lora(
        self,
        components: list[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds the LoRA to the networks' own weights; see diffusers' `LoraBaseMixin.fuse_lora`.

        Args:
            components (`list[str]`, *optional*): of which networks; by default of all that have adapters.

        Raises:
            ValueError: no network has adapters, or an unknown component or adapter.
        """
        components = self._adapted(components)
        there = {name for component in components for name in self.get_list_adapters()[component]}
        if unknown := sorted({*(adapter_names or ())} - there):
            raise ValueError(f"`adapter_names` has {unknown}, but {components} have {sorted(there)}")
        for module in self._tuned_layers(components):
            # fusing multiplies them with `lora_scale`, and what is taken out again must be what was put in
            vars(module).setdefault("scaling_before_fusing", dict(module.scaling))
        super().fuse_lora(components, lora_scale, safe_fusing, adapter_names, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Takes a fused LoRA out again, by default of all networks that have adapters; see diffusers'
        `LoraBaseMixin.unfuse_lora`."""
        adapted = self._adapted(components)
        fused = [name for name in adapted if any(module.merged_adapters for module in self._tuned_layers([name]))]
        if not fused:
            return
        super().unfuse_lora(fused, **kwargs)
        for module in self._tuned_layers(fused):
            module.scaling.update(vars(module).pop("scaling_before_fusing", {}))

    def _tuned_layers(self, components: list[str]) -> list[Any]:
        modules = (module for component in components for module in getattr(self, component).modules())
        return [module for module in modules if isinstance(module, BaseTunerLayer)]

    def _adapted(self, components: list[str] | None) -> list[str]:
        adapted = list(self.get_list_adapters())
        if unknown := sorted({*(components or ())} - {*adapted}):
            raise ValueError(f"`components` has {unknown}, but LoRA layers are in {adapted or 'no network'}")
        if not adapted:
            raise ValueError("no LoRA is loaded: call `load_lora_weights` first")
        return components or adapted


def _check_components(weights: Mapping[str, float], expected: set[str]) -> None:
    if unknown := sorted(weights.keys() - expected):
        raise ValueError(f"`adapter_weights` names {unknown}, expected some of {sorted(expected)}")


def _peft_arguments(layers: Layers) -> dict[str, Any]:
    """PEFT's configuration: scales are inside of the tensors, so that alpha is the rank everywhere."""
    rank = max(layer.rank for layer in layers.values())
    other = {name: layer.rank for name, layer in layers.items() if layer.rank != rank}
    return {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": dict(other),
        "target_modules": list(layers),
        "lora_bias": any(layer.bias is not None for layer in layers.values()),
        "use_dora": any(layer.magnitude is not None for layer in layers.values()),
    }
