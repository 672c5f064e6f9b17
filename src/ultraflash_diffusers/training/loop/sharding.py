# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Parameters that FSDP2 spreads over processes: gathered to be saved, spread again when they are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard_layers(accelerator: Accelerator, stage: nn.Module, mixed_precision: str) -> bool:
    """Spreads the layers that FSDP's configuration names, one after the other, before anything is on a device.

    A device then never holds more than its share and the layer at hand. With bfloat16 layers are gathered in it, at
    half the bytes, and gradients are still added up in float32; what is kept and updated stays float32.

    Args:
        accelerator (`Accelerator`): nothing happens without FSDP.
        stage (`nn.Module`): on the CPU. `accelerator.prepare` spreads what is left of it.
        mixed_precision (`str`): `"bf16"`, or another one, which leaves layers in float32.

    Returns:
        `bool`: whether it is sharded.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return False
    plugin, layers = accelerator.state.fsdp_plugin, list(stage.modules())
    named = plugin.transformer_cls_names_to_wrap or []
    plugin.transformer_cls_names_to_wrap = []  # accelerate need look for no more
    kind = torch.bfloat16 if mixed_precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in layers:
        if type(module).__name__ in named:
            fully_shard(module, mp_policy=policy, reshard_after_forward=plugin.reshard_after_forward)
    return True


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a parameter without its gradient; a sharded one gathered on the CPU, for which all processes call."""
    tensor = tensor.detach()
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def reshard(module: nn.Module) -> None:
    """Makes sharded modules forget what they have gathered, so that the next call sees parameters as they are now."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@contextmanager
def whole_parameters(module: nn.Module, keep: bool) -> Iterator[None]:
    """Puts whole parameters in the place of sharded ones, on the CPU, so that the module can be saved.

    All processes have to enter it; nothing happens where nothing is sharded.

    Args:
        module (`nn.Module`): the module.
        keep (`bool`): whether this process needs them; the others only give their shards.
    """
    reshard(module)
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                gathered = whole(parameter)
                if keep:
                    replaced.append((part, name, parameter))
                    part.register_parameter(name, nn.Parameter(gathered, requires_grad=parameter.requires_grad))
    try:
        yield
    finally:
        for part, name, parameter in replaced:
            part.register_parameter(name, parameter)


class WeightAverage(EMAModel):
    """An exponential average of parameters that may be sharded; its state is whole, whatever the processes.

    Args:
        parameters (list of `nn.Parameter`): what is averaged.
        decay (`float`): of the average, once it is warm.
        warm_up (`bool`, *optional*, defaults to `True`): lets the decay rise with the updates, for averages that begin
            with weights that are far from good; `False` has it from the second update on. The first one takes the
            weights as they are.
    """

    shadow_params: list[torch.Tensor]

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float, warm_up: bool = True) -> None:
        sharded = any(isinstance(parameter, DTensor) for parameter in parameters)
        super().__init__(parameters, decay=decay, foreach=not sharded)  # not all of torch's foreach takes shards
        self._warm_up = warm_up

    def get_decay(self, optimization_step: int) -> float:
        if self._warm_up or optimization_step <= 1:
            return super().get_decay(optimization_step)
        return self.decay


def placed_as(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Returns a whole tensor as another one is: on its device, and sharded if it is, for which all processes call."""
    tensor = tensor.to(other.device)
    if isinstance(other, DTensor):
        return distribute_tensor(tensor, other.device_mesh, other.placements)
    return tensor
