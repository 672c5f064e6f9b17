# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Context parallelism: processes share the tokens of every frame, in training as in streams.

Each process has the same part of each frame, so that what differs from frame to frame (noise levels, chunks, a cache's
slots) is the same everywhere. Self-attention alone needs more. By Ulysses (arXiv 2309.14509) processes exchange tokens
for heads: each sees all tokens of some heads, which serves every kind of attention here, since none mixes heads. By
ring attention keys and values are gathered beside a process' own queries, as diffusers' ring does by default; only
dense attention can do with that.

Gradients are those of the mean of all processes' losses once they are averaged over processes, as DDP and FSDP do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ParallelConfig, TensorParallelConfig
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import distributed
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import init_device_mesh

from .wan_layers import Attend


@dataclass(frozen=True)
class ContextParallel:
    """The processes that share a network's tokens.

    Args:
        ulysses (`ProcessGroup`): those that exchange tokens for heads.
        ring (`ProcessGroup`): those that gather keys and values.
        everyone (`ProcessGroup`): both together, in the order of a frame's parts.
    """

    ulysses: distributed.ProcessGroup
    ring: distributed.ProcessGroup
    everyone: distributed.ProcessGroup

    @property
    def head_parts(self) -> int:
        """Parts into which heads are cut."""
        return self.ulysses.size()

    def check(self, grid: tuple[int, int, int]) -> None:
        """Checks that frames of `grid` = (t, h, w) tokens can be shared.

        Raises:
            ValueError: they cannot be cut into equal parts.
        """
        tokens = grid[1] * grid[2]
        if tokens % self.everyone.size():
            raise ValueError(
                f"`hidden_states` has frames of {grid[1]} x {grid[2]} tokens, which `ring_degree` {self.ring.size()} "
                f"times `ulysses_degree` {self.ulysses.size()} processes cannot share equally"
            )

    def split(self, tokens: torch.Tensor, frames: int) -> torch.Tensor:
        """This process' tokens of `[batch, frames * n, ...]`: its part of each frame."""
        parts = tokens.unflatten(1, (frames, self.everyone.size(), -1))
        return parts[:, :, self.everyone.rank()].flatten(1, 2)

    def gather(self, tokens: torch.Tensor, frames: int) -> torch.Tensor:
        """All tokens, of each process' own: the inverse of [`~ContextParallel.split`]."""
        return _gathered(tokens, frames, self.everyone)


@dataclass  # not frozen, like `CachedAttention`
class SharedAttention:
    """Self-attention of tokens that processes share: `attend` over what it needs of all of them.

    Args:
        attend (`Attend`): gets all keys and values of this process' heads, and all queries or, in a ring, a part.
        context (`ContextParallel`): the processes.
        frames (`int`): frames of the call.
    """

    attend: Attend
    context: ContextParallel
    frames: int

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: AttentionBackendName
    ) -> tuple[torch.Tensor, Any]:
        ulysses, ring = self.context.ulysses, self.context.ring
        query, key, value = (_by_heads(tensor, self.frames, ulysses) for tensor in (query, key, value))
        key, value = (_gathered(tensor, self.frames, ring) for tensor in (key, value))
        output, cache = self.attend(query, key, value, backend)
        return _by_tokens(output, self.frames, ulysses), cache


def make_context_parallel(
    config: ParallelConfig | ContextParallelConfig, heads: int, device: torch.device, sparse: bool
) -> tuple[ParallelConfig, ContextParallel]:
    """Sets up what `enable_parallelism` was asked for, in all processes at once.

    Args:
        config (`ContextParallelConfig` or `ParallelConfig`): degrees, and the device mesh if it is not of them alone.
        heads (`int`): of the network's attention.
        device (`torch.device`): where the network is.
        sparse (`bool`): whether its attention is block-sparse.

    Returns:
        `tuple`: the config as diffusers keeps it, and the processes.

    Raises:
        RuntimeError: processes that do not know of each other.
        ValueError: degrees that heads or attention do not allow, or another kind of parallelism.
    """
    if isinstance(config, ContextParallelConfig):
        config = ParallelConfig(context_parallel_config=config)
    context = None if isinstance(config, TensorParallelConfig) else config.context_parallel_config
    if context is None:
        raise ValueError(f"`config` must hold a ContextParallelConfig, got {type(config).__name__} without one")
    for name in ("ulysses_anything", "ring_anything"):
        if vars(context)[name]:
            raise ValueError(f"`{name}` is not supported: the tokens of a frame are shared in equal parts")
    if heads % context.ulysses_degree:
        raise ValueError(f"`ulysses_degree` {context.ulysses_degree} does not divide `num_attention_heads` {heads}")
    if sparse and context.ring_degree > 1:
        raise ValueError(
            f"`ring_degree` {context.ring_degree} needs dense attention: with `use_sparse_attention` share by "
            "`ulysses_degree` alone"
        )
    if not distributed.is_initialized():
        raise RuntimeError("context parallelism needs `torch.distributed.init_process_group` before")
    sizes, world = context.mesh_shape, distributed.get_world_size()
    if context.mesh is None and math.prod(sizes) != world:
        raise ValueError(
            f"`ring_degree` {sizes[0]} times `ulysses_degree` {sizes[1]} is not the number of processes {world}: give "
            "a `mesh` with the dimensions 'ring' and 'ulysses' beside others"
        )
    mesh = context.mesh or init_device_mesh(device.type, sizes, mesh_dim_names=context.mesh_dim_names)
    config.setup(distributed.get_rank(), world, device, mesh=mesh)
    everyone = context._flattened_mesh.get_group()
    return config, ContextParallel(mesh["ulysses"].get_group(), mesh["ring"].get_group(), everyone)


def _by_heads(tensor: torch.Tensor, frames: int, group: distributed.ProcessGroup) -> torch.Tensor:
    """All processes' tokens of this process' heads, of `[batch, frames * n, heads, channels]`."""
    if group.size() == 1:
        return tensor
    parts = tensor.unflatten(2, (group.size(), -1)).unflatten(1, (frames, -1)).movedim(3, 0)
    return _exchanged(parts, group).movedim(0, 2).flatten(1, 3)


def _by_tokens(tensor: torch.Tensor, frames: int, group: distributed.ProcessGroup) -> torch.Tensor:
    """All heads of this process' tokens: the inverse of [`_by_heads`]."""
    if group.size() == 1:
        return tensor
    parts = tensor.unflatten(1, (frames, group.size(), -1)).movedim(2, 0)
    return _exchanged(parts, group).movedim(0, 3).flatten(3, 4).flatten(1, 2)


def _exchanged(parts: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
    """Sends part `n` to process `n`; the result's part `n` is what came from it."""
    return all_to_all_single_autograd(parts.contiguous(), None, None, group)


def _gathered(tensor: torch.Tensor, frames: int, group: distributed.ProcessGroup) -> torch.Tensor:
    """All processes' parts of each frame, of `[batch, frames * n, ...]`."""
    if group.size() == 1:
        return tensor
    part = tensor.unflatten(1, (frames, -1))
    # the same to everyone, whose gradients then add up
    return _exchanged(part.expand(group.size(), *part.shape), group).movedim(0, 2).flatten(1, 3)
