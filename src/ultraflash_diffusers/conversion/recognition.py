# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint was recognised as, and the building of that network: every key used exactly once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin

from ..models.wan_names import renamed
from ..weight_files import shorten
from .settings import Settings


@dataclass(frozen=True)
class Recognition:
    """A network found in a checkpoint.

    Args:
        component (`str`): the pipeline component that it serves as, which is the name of its sub-folder.
        network_class (`type[ModelMixin]`): our class.
        config (`dict[str, Any]`): the arguments of that class.
        description (`str`): what was found, in words.
        settings (`Settings`): what the caller said about it.
        names (`Sequence[tuple[str, str]]`): pairs of our and the published beginning of a key; the first pair that
            fits counts, and a key that none fits is spelled alike in both; see [`renamed`].
        weights (`Mapping[str, torch.Tensor]`): the tensors under the published keys.
        found_under (`str`, *optional*, defaults to `""`): the keys of a training checkpoint that led to them.
    """

    component: str
    network_class: type[ModelMixin]
    config: dict[str, Any]
    description: str
    settings: Settings
    names: Sequence[tuple[str, str]]
    weights: Mapping[str, torch.Tensor]
    found_under: str = ""

    def build(self) -> ModelMixin:
        """Returns the network, whose parameters are the checkpoint's own tensors.

        Raises:
            ValueError: keys are missing or left over, or a tensor has another shape or is not floating point.
        """
        tensors: dict[str, torch.Tensor] = {}
        published_to_own = [(published, own) for own, published in self.names]
        for key, tensor in self.weights.items():
            own = renamed(key, published_to_own)
            if own in tensors:
                raise ValueError(f"the key `{key}` is there twice in different spellings ({self.description})")
            tensors[own] = tensor
        with torch.device("meta"):
            network = self.network_class(**self.config)
        self._check(tensors, {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()})
        network.load_state_dict(tensors, assign=True)
        return network.eval()

    def _check(self, tensors: dict[str, torch.Tensor], expected: dict[str, tuple[int, ...]]) -> None:
        def published(keys: set[str]) -> str:
            return shorten(sorted(renamed(key, self.names) for key in keys))

        problems = []
        if missing := expected.keys() - tensors.keys():
            problems.append(f"missing keys: {published(missing)}")
        if left_over := tensors.keys() - expected.keys():
            problems.append(f"left-over keys: {published(left_over)}")
        for key in sorted(expected.keys() & tensors.keys()):
            if tuple(tensors[key].shape) != expected[key]:
                name, shape = renamed(key, self.names), tuple(tensors[key].shape)
                problems.append(f"`{name}` has shape {shape}, expected {expected[key]}")
            elif not tensors[key].is_floating_point():
                name = renamed(key, self.names)
                problems.append(f"`{name}` has dtype {tensors[key].dtype}, expected floating point")
        if problems:
            raise ValueError(f"the checkpoint does not fit a {self.description}: {'; '.join(problems[:20])}")


def count_blocks(weights: Mapping[str, torch.Tensor]) -> int:
    """How many blocks there are from `blocks.0` on without a gap.

    What lies behind a gap is left over then: a number alone must not make a network larger than what is there.
    """
    numbers = {match[1] for key in weights if (match := re.match(r"blocks\.(\d+)\.", key))}
    return next(count for count in itertools.count() if str(count) not in numbers)


def shape_of(weights: Mapping[str, torch.Tensor], key: str, rank: int, network: str) -> tuple[int, ...]:
    """Returns the shape of a tensor that the network's sizes are read off.

    Raises:
        ValueError: it is missing or has another rank.
    """
    if key not in weights:
        raise ValueError(f"the checkpoint does not fit a {network}: missing keys: `{key}`")
    shape = tuple(weights[key].shape)
    if len(shape) != rank:
        raise ValueError(f"the checkpoint does not fit a {network}: `{key}` has shape {shape}, expected {rank} axes")
    return shape
