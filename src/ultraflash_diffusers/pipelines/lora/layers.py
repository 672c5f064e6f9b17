# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a LoRA file holds, whatever its spelling: pairs of matrices by diffusers' name of the layer.

Known spellings: PEFT's (`base_model.model.` in front or not, with or without the adapter's name), diffusers',
the original Wan code's (`diffusion_model.`, `lora_down`), and those of kohya's and musubi's trainers, which write
underscores for dots (`lora_unet_`, `lora_transformer_`) and an alpha beside each pair.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...models.wan_names import WAN_NAMES, renamed
from ...weight_files import shorten, without_wrappers
from ..finite import all_finite

Part = Literal["down", "up", "bias", "added_bias", "alpha", "magnitude"]
# what stands in front of a layer's name, and the component that it says
_PREFIXES = {
    "base_model.model.": None,
    "diffusion_model.": None,
    "module.": None,
    "model.": None,
    "transformer.": "transformer",
    "generator_transformer.": "generator_transformer",
}
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_")
_PARTS: tuple[tuple[re.Pattern[str], Part], ...] = (
    (re.compile(r"\.(?:lora_A|lora_down|lora\.down)(?:\.([^.]+))?\.weight$"), "down"),
    (re.compile(r"\.(?:lora_B|lora_up|lora\.up)(?:\.([^.]+))?\.weight$"), "up"),
    (re.compile(r"\.lora_B(?:\.([^.]+))?\.bias$"), "bias"),
    (re.compile(r"\.lora_magnitude_vector(?:\.([^.]+?))??(?:\.weight)?$"), "magnitude"),
    (re.compile(r"\.diff_b()$"), "added_bias"),
    (re.compile(r"\.alpha()$"), "alpha"),
)
_ORIGINAL_TO_DIFFUSERS = [(original, diffusers) for diffusers, original in WAN_NAMES]
_FLAT_NAMES = {
    name.rstrip(".").replace(".", "_"): diffusers.rstrip(".")
    for diffusers, original in (*WAN_NAMES, ("patch_embedding.", "patch_embedding."))
    for name in (diffusers, original)
}


@dataclass(frozen=True)
class LoraLayer:
    """What is added to one layer: `up @ down`, its scale inside of `up`.

    Args:
        down (`torch.Tensor` of shape `[rank, in, ...]`): the first matrix.
        up (`torch.Tensor` of shape `[out, rank, ...]`): the second one.
        bias (`torch.Tensor` of shape `[out]`, *optional*): added to the output.
        magnitude (`torch.Tensor` of shape `[out]`, *optional*): DoRA's norm of each row of the changed weight.
    """

    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]

    @property
    def adds_nothing(self) -> bool:
        """Whether the layer stays as it is."""
        changed = self.down.any() and self.up.any()
        return not changed and self.magnitude is None and (self.bias is None or not self.bias.any())

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The layer as PEFT spells it."""
        parts = {"lora_A.weight": self.down, "lora_B.weight": self.up}
        parts |= {} if self.bias is None else {"lora_B.bias": self.bias}
        parts |= {} if self.magnitude is None else {"lora_magnitude_vector": self.magnitude}
        return {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}


Layers = dict[str, LoraLayer]


def lora_layers(
    content: Mapping[str, Any], configs: Mapping[str | None, Mapping[str, Any]], alpha: float | None
) -> dict[str | None, Layers]:
    """Reads the layers of a LoRA.

    Args:
        content (`Mapping[str, Any]`): tensors by name, or a checkpoint that holds them under `generator_lora`; what
            else is in such a checkpoint (`critic_lora`, `step`) is of training and left out.
        configs (`Mapping`): PEFT's configuration by component, as far as the file has one; under `None` if it names
            none.
        alpha (`float`, *optional*): of layers for which the file says none; their rank by default.

    Returns:
        `dict`: layers by diffusers' names, by the component that the file says, under `None` where it says none.

    Raises:
        ValueError: it is no LoRA, or of a kind that is not known; a matrix without its other half, of another rank or
            not finite; nothing that would change anything; an `alpha` that the file contradicts.
    """
    component, content = _unpacked(content)
    found = _grouped(content)
    layers: dict[str | None, Layers] = {}
    for (said, name), parts in found.items():
        config = configs.get(said) or configs.get(None) or {}
        layer = _layer(name, parts, _alpha(name, parts, config, alpha), bool(config.get("use_rslora")))
        layers.setdefault(component or said, {})[name] = layer
    if all(layer.adds_nothing for part in layers.values() for layer in part.values()):
        raise ValueError(f"the LoRA adds nothing: all products of its {len(found)} layers are zero")
    return layers


def _unpacked(content: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    if isinstance(content.get("generator_lora"), Mapping):
        return "generator_transformer", content["generator_lora"]
    if isinstance(content.get("state_dict"), Mapping):
        return None, content["state_dict"]
    return None, content


def _grouped(content: Mapping[str, Any]) -> dict[tuple[str | None, str], dict[Part, torch.Tensor]]:
    """The tensors by component and layer."""
    found: dict[tuple[str | None, str], dict[Part, torch.Tensor]] = {}
    foreign, adapters = [], set[str]()
    for key, tensor in content.items():
        name = without_wrappers(str(key))
        matches = ((part, match) for pattern, part in _PARTS if (match := pattern.search(name)))
        part, match = next(matches, (None, None))
        if part is None or match is None or not isinstance(tensor, torch.Tensor):
            foreign.append(str(key))
            continue
        adapters |= {match[1]} if match[1] else set()
        parts = found.setdefault(_layer_name(name[: match.start()]), {})
        if len(adapters) > 1:
            raise ValueError(f"the file holds the adapters {', '.join(sorted(adapters))}: save the one that is wanted")
        if part in parts:
            raise ValueError(f"the LoRA holds the layer of `{key}` twice, in two spellings")
        parts[part] = tensor
    if foreign or not found:
        raise ValueError(f"this is no LoRA, or one of another kind: it holds {shorten(foreign, 3)}")
    return found


def _layer_name(name: str) -> tuple[str | None, str]:
    """The component that a layer's name says, and diffusers' name of the layer."""
    component = None
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        component = component or _PREFIXES[prefix]
        name = name.removeprefix(prefix)
    for prefix in _FLAT_PREFIXES:
        if name.startswith(prefix):
            number = re.search(r"(?<=^blocks_)\d+(?=_)", flat := name.removeprefix(prefix))
            flat = re.sub(r"(?<=^blocks_)\d+(?=_)", "*", flat)
            return component, _FLAT_NAMES.get(flat, name).replace("*", number[0] if number else "*")
    return component, renamed(f"{name}.", _ORIGINAL_TO_DIFFUSERS).rstrip(".")


def _alpha(
    name: str, parts: Mapping[Part, torch.Tensor], config: Mapping[str, Any], given: float | None
) -> float | None:
    """A layer's alpha: the file's, or else the caller's."""
    said = _configured_alpha(name, config)
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            raise ValueError(f"the alpha of `{name}` has shape {tuple(parts['alpha'].shape)}, expected one number")
        said = float(parts["alpha"])
    if said is not None and not (math.isfinite(said) and said > 0):
        raise ValueError(f"the LoRA's alpha of `{name}` is {said}, expected a positive number")
    if None not in (said, given) and said != given:
        raise ValueError(f"`lora_alpha` is {given}, but the LoRA's own alpha of `{name}` is {said}")
    return given if said is None else said


def _configured_alpha(name: str, config: Mapping[str, Any]) -> float | None:
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        layer = _layer_name(pattern.removeprefix("^"))[1]
        if name == layer or name.endswith(f".{layer}"):
            return float(alpha)
    return None if config.get("lora_alpha") is None else float(config["lora_alpha"])


def _layer(name: str, parts: Mapping[Part, torch.Tensor], alpha: float | None, rslora: bool) -> LoraLayer:
    halves: tuple[Part, Part] = ("down", "up")
    for half in halves:
        if half not in parts:
            raise ValueError(f"the LoRA has no {half} matrix (lora_A is down, lora_B is up) for the layer `{name}`")
        if not all_finite(parts[half]):
            raise ValueError(f"the LoRA's {half} matrix of `{name}` holds values that are not finite")
    down, up = parts["down"], parts["up"]
    if down.ndim < 2 or up.ndim != down.ndim or up.shape[1] != down.shape[0] or not down.shape[0]:
        raise ValueError(
            f"the LoRA's matrices of `{name}` have shapes {tuple(down.shape)} and {tuple(up.shape)}, expected "
            "[rank, in] and [out, rank]"
        )
    rank = down.shape[0]
    scale = 1.0 if alpha is None else alpha / (math.sqrt(rank) if rslora else rank)
    bias = parts.get("added_bias")
    if scale != 1:  # inside of the matrix, so that adapters of any scales can take one another's place
        up = up.float() * scale
    if "bias" in parts:
        bias = parts["bias"] if scale == 1 else parts["bias"].float() * scale
    magnitude = parts.get("magnitude")
    return LoraLayer(down, up, bias, None if magnitude is None else magnitude.flatten())
