# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""All that a run goes on from, as safetensors and JSON: a checkpoint is read without running anything of it.

Tensors are whole, whatever the processes: a run may go on with other ones, sharded or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from .sharding import WeightAverage, placed_as, whole

WEIGHTS = "trained.safetensors"
MOMENTS = "optimizer.safetensors"
AVERAGE = "average.safetensors"
PROGRESS = "progress.json"
FILES = (WEIGHTS, MOMENTS, PROGRESS)


@dataclass
class Progress:
    """Where a run is.

    Args:
        step (`int`, *optional*, defaults to 0): optimiser steps done.
        seconds (`float`, *optional*, defaults to 0.0): that they took.
    """

    step: int = 0
    seconds: float = 0.0


@dataclass
class RunState:
    """What a checkpoint holds.

    Args:
        trained (`dict[str, nn.Parameter]`): trained parameters by name, perhaps sharded.
        optimizer (`torch.optim.Optimizer`): theirs.
        averaged (list of `nn.Parameter`): those that are averaged, of the trained ones.
        average (`WeightAverage`, *optional*): of them.
        scaler (`torch.amp.GradScaler`, *optional*): of half precision.
        progress (`Progress`): how far the run is.
    """

    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    averaged: list[nn.Parameter]
    average: WeightAverage | None = None
    scaler: torch.amp.GradScaler | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def sharded(self) -> bool:
        """Whether processes hold parts of the parameters."""
        return any(isinstance(parameter, DTensor) for parameter in self.trained.values())

    def save(self, folder: Path, writes: bool) -> None:
        """Writes the state to a new folder. All processes have to call, as sharded tensors are gathered.

        Args:
            folder (`Path`): is created.
            writes (`bool`): whether this process is the one that writes.
        """
        moments, numbers = self._moments()
        parts = {WEIGHTS: self.trained.items(), MOMENTS: moments}
        if self.average is not None:
            parts[AVERAGE] = zip(self._averaged_names(), self.average.shadow_params, strict=True)
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
        for file, named in parts.items():
            gathered = _gathered(named, writes)
            if writes:
                save_file(gathered, folder / file)
        if writes:
            (folder / PROGRESS).write_text(json.dumps(self._described(numbers), indent=2) + "\n")

    def _described(self, numbers: dict[str, dict[str, float]]) -> dict[str, Any]:
        return asdict(self.progress) | {
            "optimizer": numbers,
            "average_updates": None if self.average is None else self.average.optimization_step,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "sharded": self.sharded,
        }

    def _moments(self) -> tuple[Iterator[tuple[str, torch.Tensor]], dict[str, dict[str, float]]]:
        """The optimiser's tensors by `PARAMETER/NAME`, and its plain numbers by parameter."""
        held = {name: self.optimizer.state.get(parameter, {}) for name, parameter in self.trained.items()}
        tensors = (
            (f"{name}/{key}", value)
            for name, state in held.items()
            for key, value in state.items()
            if isinstance(value, torch.Tensor)
        )
        numbers = {
            name: {key: value for key, value in state.items() if isinstance(value, (int, float))}
            for name, state in held.items()
        }
        return tensors, {name: each for name, each in numbers.items() if each}

    def _averaged_names(self) -> list[str]:
        names = {id(parameter): name for name, parameter in self.trained.items()}
        return [names[id(parameter)] for parameter in self.averaged]

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Goes on from a checkpoint that [`~checkpoints.check_checkpoint`] has found to fit."""
        described = json.loads((folder / PROGRESS).read_text())
        self.progress.step, self.progress.seconds = described["step"], described["seconds"]
        with safe_open(folder / WEIGHTS, "pt") as file:
            for name, parameter in self.trained.items():
                parameter.copy_(placed_as(file.get_tensor(name), parameter))
        self._load_moments(folder / MOMENTS, described["optimizer"])
        if self.average is not None:
            with safe_open(folder / AVERAGE, "pt") as file:
                saved = [file.get_tensor(name) for name in self._averaged_names()]
            shadows = zip(saved, self.average.shadow_params, strict=True)
            self.average.shadow_params = [placed_as(*pair) for pair in shadows]
            self.average.optimization_step = described["average_updates"]
        if self.scaler is not None and described["scaler"]:
            self.scaler.load_state_dict(described["scaler"])

    def _load_moments(self, path: Path, numbers: dict[str, dict[str, float]]) -> None:
        names = {id(parameter): name for name, parameter in self.trained.items()}
        state: dict[int, dict[str, Any]] = {}
        ordered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        with safe_open(path, "pt") as file:
            keys: dict[str, list[str]] = {}
            for entry in file.keys():
                keys.setdefault(entry.rpartition("/")[0], []).append(entry)
            for index, parameter in enumerate(ordered):
                name = names[id(parameter)]
                moments = {entry.rpartition("/")[2]: file.get_tensor(entry) for entry in keys.get(name, ())}
                placed = {key: _placed_like_a_moment(tensor, parameter) for key, tensor in moments.items()}
                state[index] = placed | numbers.get(name, {})
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(
            {"state": {i: each for i, each in state.items() if each}, "param_groups": groups}
        )


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint's trained parameters, by name."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def uses_plain_adam(folder: Path) -> bool | None:
    """Whether the moments are those of Adam in 32 bits; `None` without any."""
    with safe_open(folder / MOMENTS, "pt") as file:
        kinds = {entry.rpartition("/")[2] for entry in file.keys()}
    return "exp_avg" in kinds if kinds else None


def _gathered(named: Any, keep: bool) -> dict[str, torch.Tensor]:
    """Whole tensors on the CPU, none of which shares memory with another."""
    gathered = {}
    for name, tensor in named:
        complete = whole(tensor)
        if keep:
            gathered[name] = complete.cpu().contiguous().clone()
    return gathered


def _placed_like_a_moment(tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """A moment is as its parameter; a count of steps, and tables of moments in 8 bits, are not."""
    return placed_as(tensor, parameter) if tensor.shape == parameter.shape and tensor.is_floating_point() else tensor
