# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""LoRA layers to train: where they are, how strong they begin, and how they are saved."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from accelerate.utils import parse_flag_from_env
from diffusers.models.modeling_utils import ModelMixin
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from ...pipelines.lora import UltraFlashLoraLoaderMixin
from ..settings import NonNegative, Positive, Settings

Network = TypeVar("Network", bound=ModelMixin)

# by name: the projections of the attention, to the text and within the video; the feed-forward network's
LAYERS = {"attention": ["to_q", "to_k", "to_v", "to_out.0"], "ffn": ["ffn.net.0.proj", "ffn.net.2"]}


@dataclass(frozen=True)
class LoraLayers(Settings):
    """What LoRA layers are trained.

    Args:
        rank (`int`): of each.
        lora_alpha (`float`, *optional*): their scale is `lora_alpha / rank`; the rank by default.
        lora_dropout (`float`, *optional*, defaults to 0.0): share of a layer's inputs that a step leaves out.
        lora_target_modules (sequence of `str`, *optional*, defaults to `("attention",)`): `attention`, `ffn`, or ends
            of layers' names, such as `attn1.to_q`.

    Raises:
        ValueError: a number outside its range, a dropout of 1, or no layers.
    """

    rank: Positive[int]
    lora_alpha: Positive[float] | None = None
    lora_dropout: NonNegative[float] = 0.0
    lora_target_modules: Sequence[str] = ("attention",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_dropout >= 1:
            raise ValueError(f"`lora_dropout` must be below 1, got {self.lora_dropout}")
        if not self.lora_target_modules:
            raise ValueError("`lora_target_modules` is empty")

    def add_to(self, transformer: ModelMixin) -> None:
        """Adds the layers to a transformer, which is frozen but for them.

        Raises:
            ValueError: a name of `lora_target_modules` that no linear layer's name ends in.
        """
        linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
        targets = [part for name in self.lora_target_modules for part in LAYERS.get(name, [name])]
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in linear):
                raise ValueError(
                    f"`lora_target_modules` has {target!r}, which no linear layer of the {type(transformer).__name__} "
                    f"is called: use {', '.join(LAYERS)}, or ends of names such as {', '.join(linear[:3])}"
                )
        alpha = self.rank if self.lora_alpha is None else self.lora_alpha
        config = LoraConfig(
            r=self.rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT takes fractions, too
            lora_dropout=self.lora_dropout,
            target_modules=targets,
        )
        transformer.add_adapter(config)


def lora_of(arguments: argparse.Namespace) -> LoraLayers | None:
    """The LoRA layers that a command line asks for; `None` without `rank`.

    Args:
        arguments (`argparse.Namespace`): of a parser with
            [`~ultraflash_diffusers.training.loop.arguments.add_lora_arguments`].

    Raises:
        ValueError: settings of layers that are not there.
    """
    given = {name: vars(arguments)[name] for name in ("lora_alpha", "lora_dropout", "lora_target_modules")}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.rank is None:
        if given or arguments.lora_format != "diffusers":
            raise ValueError(f"--{next(iter(given), 'lora_format')} needs --rank")
        return None
    return LoraLayers(arguments.rank, **given)


def choose_trained(transformer: ModelMixin, lora: LoraLayers | None) -> None:
    """Makes a transformer trained as a whole, or freezes it and adds LoRA layers that are trained.

    Args:
        transformer (`ModelMixin`): with Wan's layer names.
        lora (`LoraLayers`, *optional*): `None` trains the whole network.
    """
    transformer.requires_grad_(lora is None)
    if lora is not None:
        lora.add_to(transformer)


def tuned_copy(network: Network, lora: LoraLayers | None = None, shares: bool = True) -> Network:
    """A copy of a frozen network that is trained, as [`choose_trained`] says.

    Args:
        network (`ModelMixin`): stays as it is.
        lora (`LoraLayers`, *optional*): `None` trains the whole copy.
        shares (`bool`, *optional*, defaults to `True`): with LoRA layers, all other weights are the network's own and
            take no more memory.
    """
    shared = {} if lora is None or not shares else {id(parameter): parameter for parameter in network.parameters()}
    tuned = copy.deepcopy(network, shared)
    choose_trained(tuned, lora)
    return tuned


def may_share(arguments: argparse.Namespace) -> bool:
    """Whether networks may share weights: FSDP, run or planned, spreads each, and no parameter twice.

    Args:
        arguments (`argparse.Namespace`): of the run.
    """
    planned = arguments.dry_run and arguments.plan_processes > 1
    return not (planned or parse_flag_from_env("ACCELERATE_USE_FSDP"))


def save_lora(
    transformer: ModelMixin,
    folder: Path,
    component: Literal["transformer", "generator_transformer"] = "transformer",
) -> None:
    """Writes a transformer's LoRA layers as diffusers does, with what PEFT says of them (rank, alpha, layers).

    Args:
        transformer (`ModelMixin`): with the layers.
        folder (`Path`): where the file goes.
        component (`str`, *optional*, defaults to `"transformer"`): what the network is in a pipeline.
    """
    (config,) = transformer.peft_config.values()
    metadata = {name: _as_json(value) for name, value in config.to_dict().items()}
    layers = get_peft_model_state_dict(transformer)
    given: dict[str, Any] = {f"{component}_lora_layers": layers, f"{component}_lora_adapter_metadata": metadata}
    UltraFlashLoraLoaderMixin.save_lora_weights(folder, **given)


def _as_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else getattr(value, "value", value)
