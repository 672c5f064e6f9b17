# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The networks that training begins with: loaded or new, and which of their parameters are trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from diffusers.models.modeling_utils import ModelMixin
from peft import LoraConfig
from torch import nn

from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.hr_autoencoder import HRAutoencoder

Network = TypeVar("Network", bound=ModelMixin)

# the attention's projections, to the text and within the video
LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]


def decoder_parameters(autoencoder: HRAutoencoder) -> list[nn.Parameter]:
    """Returns the parameters of the decoder's stack: tuning them leaves the latent space and its linear code alone."""
    return [parameter for name, parameter in autoencoder.named_parameters() if name.startswith("decoder.")]


def upsampler_parameters(upsampler: CausalLatentUpsampler) -> list[nn.Parameter]:
    """Returns the parameters but the residual head's, which stays bicubic interpolation in closed form."""
    return [parameter for name, parameter in upsampler.named_parameters() if not name.startswith("skip_up.")]


def train_only(parameters: Iterable[nn.Parameter], network: ModelMixin) -> None:
    """Freezes a network but for some of its parameters."""
    network.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def choose_trained(transformer: ModelMixin, rank: int | None) -> None:
    """Makes a transformer trained as a whole, or freezes it and adds LoRA layers that are trained.

    Args:
        transformer (`ModelMixin`): with Wan's layer names.
        rank (`int`, *optional*): of the LoRA layers; `None` trains the whole network.
    """
    transformer.requires_grad_(rank is None)
    if rank is not None:
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_LAYERS))


def load_network(network_class: type[Network], name_or_path: str, subfolder: str) -> Network:
    """Loads a network from its own folder or repository, or from a local pipeline folder that has it in `subfolder`.

    Args:
        network_class (`type`): a diffusers model class.
        name_or_path (`str`): folder or Hub repository.
        subfolder (`str`): the component's name in a pipeline.
    """
    if (Path(name_or_path) / subfolder).is_dir():
        return network_class.from_pretrained(name_or_path, subfolder=subfolder)
    return network_class.from_pretrained(name_or_path)


def start_network(network_class: type[Network], arguments: argparse.Namespace, subfolder: str) -> Network:
    """The network that `--network_config` or `--pretrained_model_name_or_path` names; by default the class' own.

    Args:
        network_class (`type`): a diffusers model class.
        arguments (`argparse.Namespace`): of a parser with
            [`~ultraflash_diffusers.training.loop.arguments.add_start_arguments`].
        subfolder (`str`): the component's name in a pipeline.
    """
    if arguments.network_config is not None:
        return new_network(network_class, arguments.network_config)
    if arguments.pretrained_model_name_or_path is not None:
        return load_network(network_class, arguments.pretrained_model_name_or_path, subfolder)
    return network_class()


def new_network(network_class: type[Network], config: str | Path) -> Network:
    """Builds a network with random weights from a JSON file of its constructor's arguments.

    A saved network's `config.json` is such a file.

    Args:
        network_class (`type`): a diffusers model class.
        config (`str` or `Path`): the file.

    Raises:
        ValueError: the file is no JSON object, or names an argument that the class does not have.
    """
    try:
        settings = json.loads(Path(config).read_text())
        arguments = {name: _as_tuple(value) for name, value in settings.items() if not name.startswith("_")}
        return network_class(**arguments)
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        name = network_class.__name__
        raise ValueError(f"`network_config` {str(config)!r} is no configuration of {name}: {error}") from error


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
