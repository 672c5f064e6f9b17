# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The networks that training begins with: loaded or new, and which of their parameters are trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.causal_wan_transformer import CausalWanTransformer
from ...models.hr_autoencoder import HRAutoencoder
from ...models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ...models.video_encoder import VideoEncoder
from ...pipelines.encoding import fitting_encoder
from ...pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline

Network = TypeVar("Network", bound=ModelMixin)

_CASCADE: dict[str, type[ModelMixin]] = {
    "transformer": UltraFlashSRTransformer,
    "latent_upsampler": CausalLatentUpsampler,
    "autoencoder": HRAutoencoder,
    "generator_transformer": CausalWanTransformer,
}


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


def load_network(network_class: type[Network], name_or_path: str, subfolder: str) -> Network:
    """Loads a network from its own folder or repository, or from a local pipeline folder that has it in `subfolder`.

    Args:
        network_class (`type`): a diffusers model class.
        name_or_path (`str`): folder or Hub repository.
        subfolder (`str`): the component's name in a pipeline.

    Inside [`without_weights`] only its configuration is read.
    """
    where = {"subfolder": subfolder} if (Path(name_or_path) / subfolder).is_dir() else {}
    if has_no_weights():
        return network_class.from_config(network_class.load_config(name_or_path, **where))
    return network_class.from_pretrained(name_or_path, **where)


def load_cascade(name_or_path: str, **networks: ModelMixin) -> UltraFlashStreamingPipeline:
    """Loads a pipeline in float32; inside [`without_weights`] the configurations of its networks, but no text encoder.

    Args:
        name_or_path (`str`): folder or Hub repository.
        networks (`ModelMixin`): components that take the place of its own.
    """
    if not has_no_weights():
        return UltraFlashStreamingPipeline.from_pretrained(name_or_path, dtype=torch.float32, **networks)
    index = UltraFlashStreamingPipeline.load_config(name_or_path)
    classes = {name: kind for name, kind in _CASCADE.items() if index.get(name, [None])[0] is not None}
    components: dict[str, Any] = {
        name: kind.from_config(kind.load_config(name_or_path, subfolder=name))
        for name, kind in classes.items()
        if name not in networks
    }
    if (Path(name_or_path) / "encoder").is_dir():
        components["encoder"] = _load_encoder_network(Path(name_or_path) / "encoder")
    with torch.device("cpu"):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(name_or_path, subfolder="scheduler")
    settings = {name: value for name, value in index.items() if not (name.startswith("_") or isinstance(value, list))}
    return UltraFlashStreamingPipeline(scheduler=scheduler, **settings, **components, **networks)


@dataclass(frozen=True)
class StreamSettings:
    """How a pipeline streams its transformer.

    Args:
        kv_cache_blocks (`int`, *optional*, defaults to 3): temporal blocks that are remembered.
        group_frames (`int`, *optional*): latents of a group; a chunk of the transformer by default.
    """

    kv_cache_blocks: int = 3
    group_frames: int | None = None

    def frames_of(self, transformer: UltraFlashSRTransformer) -> int:
        """Latents of a group."""
        return self.group_frames or transformer.config.chunk_size

    @classmethod
    def of(cls, name_or_path: str | None) -> StreamSettings:
        """Those of a local pipeline's folder; the defaults of anything else."""
        index = Path(name_or_path or "") / "model_index.json"
        if name_or_path is None or not index.is_file():
            return cls()
        said = json.loads(index.read_text())
        return cls(said.get("kv_cache_blocks", cls.kv_cache_blocks), said.get("group_frames"))


def without_weights(wanted: bool) -> AbstractContextManager:
    """Inside, networks are made on the meta device, of their configurations alone: all that a plan needs.

    Args:
        wanted (`bool`): does nothing otherwise.
    """
    return torch.device("meta") if wanted else nullcontext()


def has_no_weights() -> bool:
    """Whether this is inside [`without_weights`]."""
    return torch.get_default_device().type == "meta"


def load_encoder(name_or_path: str, autoencoder: HRAutoencoder) -> VideoEncoder:
    """Finds what encodes clips for an autoencoder: itself or, if it cannot, the `encoder` of the pipeline's folder.

    Args:
        name_or_path (`str`): what the autoencoder was loaded from.
        autoencoder (`HRAutoencoder`): it.

    Raises:
        ValueError: it holds a decoder alone, and there is no `encoder`, or one of another latent space.
    """
    if autoencoder.has_encoder:
        return autoencoder
    folder = Path(name_or_path) / "encoder"
    if not folder.is_dir():
        raise ValueError(
            f"the autoencoder of {name_or_path!r} holds a decoder alone and cannot encode clips, and there is no "
            f"{str(folder)!r}: name a pipeline's folder that has an encoder, as `ultraflash convert --recipe` makes it"
        )
    return fitting_encoder(_load_encoder_network(folder), autoencoder)


def _load_encoder_network(folder: Path) -> ModelMixin:
    name = json.loads((folder / "config.json").read_text()).get("_class_name")
    known = {each.__name__: each for each in (AutoencoderKLWan, HRAutoencoder)}
    if name not in known:
        raise ValueError(f"{str(folder)!r} holds a {name}, expected one of {', '.join(known)}")
    return load_network(known[name], str(folder), "encoder")


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
