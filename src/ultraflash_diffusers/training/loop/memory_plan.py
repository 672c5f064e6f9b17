# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a stage's step will take, counted without a device, what a device has, and which flags make it fit."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.utils import logging
from torch import nn
from torch.utils.data import Dataset

from ...profiling.fake_run import count_step, fake_processes
from ..processes import wait_patiently
from ..stages.base import Training
from .accelerator import share_tokens

logger = logging.get_logger(__name__)

GIB = 2**30
# what is not in the plan: a device's context and the allocator's fragments
SLACK = 1.1
PROCESSES = (2, 4, 8, 16, 32, 64)
# of an H100 in bfloat16, and the share of it that training of video transformers reaches where it is done well
PEAK_FLOPS, EFFICIENCY = 989e12, 0.4
# batches among which the largest is looked for
_LOOKED_AT = 8


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a process at the peak of its heaviest step, and what the step computes.

    Args:
        weights (`int`): of all networks, frozen ones too.
        gradients (`int`): of what is trained.
        moments (`int`): the optimiser's.
        average (`int`): averaged weights.
        activations (`int`): what is kept for the gradients, decoded pixels and buffers.
        layer (`int`): the largest part that FSDP2 gathers.
        flops (`int`): of the step's batch.
        tokens (`dict`): by transformer, the shape of its latents and how many tokens they are.
    """

    weights: int
    gradients: int
    moments: int
    average: int
    activations: int
    layer: int
    flops: int
    tokens: dict[str, tuple[tuple[int, ...], int]]

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by what they are for."""
        names = ("weights", "gradients", "moments", "average", "activations")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())

    def sharded(self, processes: int) -> MemoryPlan:
        """The plan of one of so many processes under FSDP2; two of the largest layers are whole at a time."""
        if processes == 1:
            return self
        divided = {name: -(-getattr(self, name) // processes) for name in ("gradients", "moments", "average")}
        return replace(self, weights=-(-self.weights // processes) + 2 * self.layer, **divided)


def plan_step(stage: Training, batch: Any, arguments: argparse.Namespace) -> MemoryPlan:
    """Counts a stage's heaviest step.

    Args:
        stage (`Training`): its networks may be on the meta device.
        batch: of the kind that the stage takes, likewise.
        arguments (`argparse.Namespace`): of the run.
    """
    trained = [parameter for parameter in stage.parameters() if parameter.requires_grad]
    gradients = sum(map(_bytes, trained))
    stage.begin_step(stage.heaviest_step, torch.Generator().manual_seed(arguments.seed))
    stage.train()

    def step(module: nn.Module, faked: Any) -> torch.Tensor:
        tensors = {each.name: faked(value) for each in fields(batch) if _is_tensor(value := getattr(batch, each.name))}
        inputs = replace(batch, **tensors).to(torch.device("cpu"))
        with _autocast(arguments):
            return module(inputs, torch.Generator().manual_seed(arguments.seed))[0]

    counts = count_step(stage, step)
    moments = 2 * (sum(parameter.numel() for parameter in trained) if arguments.use_8bit_adam else gradients)
    return MemoryPlan(
        weights=sum(map(_bytes, [*stage.parameters(), *stage.buffers()])),
        gradients=gradients,
        moments=moments,
        average=sum(map(_bytes, stage.averaged_parameters())) if arguments.use_ema else 0,
        activations=max(0, counts.peak - gradients),
        layer=_largest_layer(stage) // (2 if arguments.mixed_precision == "bf16" else 1),
        flops=counts.flops,
        tokens=counts.tokens,
    )


def what_helps(
    plan: MemoryPlan,
    stage: Training,
    batch: Any,
    arguments: argparse.Namespace,
    available: int,
    most: int = PROCESSES[-1],
) -> list[str]:
    """Flags that make a step fit, the gentlest first; each is enough with those before it in its line.

    Args:
        plan (`MemoryPlan`): of what was asked for.
        stage, batch, arguments: see [`plan_step`].
        available (`int`): bytes that a device has.
        most (`int`, *optional*, defaults to 64): processes that may share the networks.
    """
    flags: list[str] = []
    with _checkpointing(stage, arguments.gradient_checkpointing):
        for flag, change in _changes(batch, arguments):
            arguments = argparse.Namespace(**vars(arguments) | change)
            batch = _first_of(batch) if "train_batch_size" in change else batch
            if arguments.gradient_checkpointing:
                _set_checkpointing(stage, True)
            flags.append(flag)
            plan = plan_step(stage, batch, arguments)
            if SLACK * plan.total <= available:
                return [" ".join(flags)]
    found, base = [], " ".join(flags)
    if not arguments.use_8bit_adam and SLACK * (plan.total - 3 * plan.moments // 4) <= available:
        found.append(f"{base} --use_8bit_adam")
    enough = [n for n in PROCESSES if n <= most and SLACK * plan.sharded(n).total <= available]
    if enough:
        found.append(f"{base}, and accelerate launch --config_file .../fsdp2.yaml --num_processes {enough[0]}")
    if "rank" in vars(arguments) and arguments.rank is None and SLACK * (plan.weights + plan.activations) <= available:
        found.append(f"{base} --rank 32")
    return [line.strip(", ") for line in found]


def describe(plan: MemoryPlan, arguments: argparse.Namespace, processes: int = 1) -> str:
    """A plan in words."""
    lines = []
    for name, (latents, tokens) in plan.tokens.items():
        shape = "x".join(map(str, latents))
        by = f", shared by {together}" if (together := arguments.ring_degree * arguments.ulysses_degree) > 1 else ""
        lines.append(f"  {name.removeprefix('stage.')}: latents {shape}, {tokens:,} tokens{by}")
    shared = plan.sharded(processes)
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in shared.parts.items())
    where = "one process" if processes == 1 else f"each of {processes} processes (FSDP2)"
    lines.append(f"  GiB of {where}: {parts}; in all {shared.total / GIB:.2f}")
    seconds = plan.flops * arguments.gradient_accumulation_steps / (EFFICIENCY * PEAK_FLOPS)
    lines.append(
        f"  {plan.flops / 1e12:.3g} TFLOP a batch, {seconds:.3g} s a step at {EFFICIENCY:.0%} of an H100's "
        f"{PEAK_FLOPS / 1e12:.0f} TFLOP/s in bfloat16"
    )
    return "\n".join(lines)


def dry_run(stage: Training, batch: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Prints what the heaviest step will take, and whether it fits; for `--dry_run`.

    Args:
        stage (`Training`): of networks on the meta device.
        batch: of the largest crops, likewise.
        arguments (`argparse.Namespace`): of the run.

    Returns:
        `dict[str, float]`: `gib`, `tflop` and `seconds`, of a process and a step.
    """
    shares = arguments.ring_degree * arguments.ulysses_degree > 1
    with fake_processes(arguments.plan_processes) if shares else nullcontext():
        share_tokens(stage, arguments, arguments.plan_processes, torch.device("cpu"))
        return _say_dry_run(stage, batch, arguments)


def _say_dry_run(stage: Training, batch: Any, arguments: argparse.Namespace) -> dict[str, float]:
    plan, processes = plan_step(stage, batch, arguments), arguments.plan_processes
    shared, available = plan.sharded(processes), arguments.plan_memory * GIB
    print(f"The heaviest step of {type(stage).__name__}, counted on tensors without contents:")
    print(describe(plan, arguments, processes))
    if SLACK * shared.total <= available:
        print(f"  fits into {arguments.plan_memory:g} GiB")
    else:
        print(f"  does not fit into {arguments.plan_memory:g} GiB (10 % are left for what cannot be counted)")
        helps = what_helps(plan, stage, batch, arguments, available)
        print("\n".join(f"  would fit: {line}" for line in helps) or "  nothing that is known makes it fit")
    flops = plan.flops * arguments.gradient_accumulation_steps
    return {"gib": shared.total / GIB, "tflop": flops / 1e12, "seconds": flops / (EFFICIENCY * PEAK_FLOPS)}


def say_plan(stage: Training, dataset: Dataset, arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    """Before the first step on a GPU: says what it takes, warns where it will not fit, and says what would help."""
    if accelerator.device.type == "cuda":
        if accelerator.is_main_process:
            _say_plan(stage, dataset, arguments, accelerator)
        wait_patiently()


def _say_plan(stage: Training, dataset: Dataset, arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    batch = max((dataset[number] for number in range(_LOOKED_AT)), key=_elements)
    processes = accelerator.num_processes if accelerator.distributed_type == DistributedType.FSDP else 1
    try:
        plan = plan_step(stage, batch, arguments)
    except (RuntimeError, NotImplementedError, TypeError) as error:  # a plan is no reason not to try
        logger.warning(f"the step's memory could not be planned: {error}")
        return
    print(f"Planned:\n{describe(plan, arguments, processes)}")
    available = torch.cuda.mem_get_info(accelerator.device)[0]
    if SLACK * plan.sharded(processes).total > available:
        helps = what_helps(plan, stage, batch, arguments, available, accelerator.num_processes)
        would = "; would fit: " + " | ".join(helps) if helps else ""
        logger.warning(f"the step may not fit into the {available / GIB:.1f} GiB that are free{would}")


def _changes(batch: Any, arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    if not arguments.gradient_checkpointing:
        yield "--gradient_checkpointing", {"gradient_checkpointing": True}
    if arguments.mixed_precision == "no":
        yield "--mixed_precision bf16", {"mixed_precision": "bf16"}
    if len(batch.texts) > 1:
        accumulated = arguments.gradient_accumulation_steps * len(batch.texts)
        flag = f"--train_batch_size 1 --gradient_accumulation_steps {accumulated}"
        yield flag, {"train_batch_size": [1], "gradient_accumulation_steps": accumulated}


def _autocast(arguments: argparse.Namespace) -> AbstractContextManager:
    if arguments.mixed_precision == "no":
        return nullcontext()
    return torch.autocast("cpu", torch.bfloat16)


def _networks(stage: nn.Module) -> list[Any]:
    return [part for part in stage.modules() if getattr(part, "_supports_gradient_checkpointing", False)]


def _set_checkpointing(stage: nn.Module, on: bool) -> None:
    for network in _networks(stage):
        network.enable_gradient_checkpointing() if on else network.disable_gradient_checkpointing()


@contextmanager
def _checkpointing(stage: nn.Module, before: bool) -> Iterator[None]:
    try:
        yield
    finally:
        _set_checkpointing(stage, before)


def _first_of(batch: Any) -> Any:
    """A batch of its first sample."""
    cut = {each.name: getattr(batch, each.name) for each in fields(batch)}
    return replace(batch, **{name: value[:1] for name, value in cut.items() if _is_tensor(value) or name == "texts"})


def _largest_layer(stage: nn.Module) -> int:
    stacks = [stack for name, stack in stage.named_modules() if name.endswith(".blocks")]
    return max((sum(map(_bytes, block.parameters())) for stack in stacks for block in stack.children()), default=0)


def _elements(batch: Any) -> int:
    values = (getattr(batch, each.name) for each in fields(batch))
    return sum(value.numel() if _is_tensor(value) else 0 for value in values)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _bytes(tensor: torch.Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()
