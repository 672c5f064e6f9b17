# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a training script defines, and how it finds its networks."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from peft import LoraConfig
from torch import nn

from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.hr_autoencoder import HRAutoencoder
from ..data.crops import Batch

Network = TypeVar("Network", bound=ModelMixin)

# the attention's projections, to the text and within the video
LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]


class Stage(nn.Module, ABC):
    """A training stage: networks as submodules, of which those with `requires_grad` are trained.

    Only calling the stage, as the loop does, passes through distributed training's and mixed precision's wrappers;
    under the latter the networks' outputs may be half precision and have to be brought to the next network's dtype.
    """

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the loss of a batch and the numbers to log.

        Args:
            batch (`Batch`): pixels in [-1, 1].
            generator (`torch.Generator`): on the CPU, seeded for this batch: all randomness has to come from it.
        """

    @abstractmethod
    def validate(self, batch: Batch) -> Mapping[str, float | torch.Tensor]:
        """Returns what one held-out clip shows; called without gradients, in every process.

        Numbers are quality measures, of which the log gets the means over the clips. Tensors are videos
        `[1, 3, frames, height, width]` in [-1, 1], written side by side in their order (input, result, truth).
        """

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Writes what was trained so that it can be loaded from `folder` (with diffusers' usual methods)."""

    def begin_step(self, step: int) -> None:
        """Tells the stage which optimiser step comes next, for stages whose steps alternate.

        Trained parameters that a step gives no gradient stay exactly as they are, their optimiser's moments too.

        Args:
            step (`int`): steps done so far, those before a resumed checkpoint included.
        """

    def averaged_parameters(self) -> list[nn.Parameter]:
        """Returns the trained parameters that an average of the weights covers; by default all of them."""
        return self.trained_parameters()

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        """Returns the optimiser's parameter groups; by default one of all trained parameters."""
        return [{"params": self.trained_parameters(), "lr": learning_rate}]

    def trained_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that are trained, in the order of the modules."""
        return list(self.named_trained_parameters().values())

    def named_trained_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


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


def one_in(every: int | None, generator: torch.Generator) -> bool:
    """Draws whether a batch is one in `every`; none is where that is `None`.

    Args:
        every (`int`, *optional*): 1 for all batches.
        generator (`torch.Generator`): the batch's, on the CPU.
    """
    return every is not None and int(torch.randint(every, (), generator=generator)) == 0


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
        raise ValueError(f"`config` {str(config)!r} is no configuration of {name}: {error}") from error


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
