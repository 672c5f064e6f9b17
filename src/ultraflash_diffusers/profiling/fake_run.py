# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What code would allocate and compute, from a run of it on tensors without contents: no weights, no device, seconds.

Kernels are those that PyTorch would choose on a CPU; a GPU adds its context and the allocator's fragments.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_flop_count
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

_Faked = Callable[[torch.Tensor], torch.Tensor]
_Call = Callable[[nn.Module, _Faked], Any]
# elements from which on what code makes of nothing, such as a cache, has no contents either
_LARGE = 2**20
_ATEN = torch.ops.aten


@dataclass
class Counts:
    """What a run took.

    Args:
        peak (`int`): bytes at most of what it made, gradients of its parameters included.
        flops (`int`): of matrix products, convolutions and attention; a multiplication and an addition are two.
        tokens (`dict`): of each Wan-shaped transformer that ran, by its name in the module: the shape of its latents
            and the number of their tokens, of the longest call.
    """

    peak: int = 0
    flops: int = 0
    tokens: dict[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)


class _Watch(TorchDispatchMode):
    """Adds up operations, and the storages that they make until the last tensor that uses them is gone.

    Args:
        fake (`FakeTensorMode`): makes what is large and made of nothing.

    Attributes:
        live (`int`): bytes now.
        peak (`int`): bytes at most so far.
        flops (`int`): so far.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._fake, self._known = fake, WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
        if func is _ATEN._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return _plausible(args[0])
        if not tensors and _elements(args) > _LARGE and "generator" not in kwargs:
            with self._fake:
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        if (count := _FLOPS.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        tree_map_only(torch.Tensor, self._add, result)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = True
            weakref.finalize(storage, self._remove, storage.nbytes())
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)

    def _remove(self, size: int) -> None:
        self.live -= size


def _elements(args: tuple) -> int:
    """Elements of what a factory is asked for, 0 for other operations."""
    sized = args and isinstance(args[0], (list, tuple)) and all(isinstance(side, int) for side in args[0])
    return math.prod(args[0]) if sized else 0


def _plausible(scalar: torch.Tensor) -> bool | int | float:
    """A value for checks of inputs, which ask whether all is well, and are not what is counted."""
    return True if scalar.dtype is torch.bool else 1 if not scalar.is_floating_point() else 1.0


def count_step(module: nn.Module, call: _Call) -> Counts:
    """Counts what a module's step takes, gradients included; the module's own tensors, which may have contents or be
    on the meta device, stay as they are.

    Args:
        module (`nn.Module`): called with parameters and buffers without contents.
        call (`Callable`): gets the module to call and a function that makes tensors without contents of others;
            returns the loss, or anything if nothing is trained.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def faked(tensor: torch.Tensor) -> torch.Tensor:
        with fake:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        tensors[f"module.{name}"] = faked(parameter).requires_grad_(parameter.requires_grad)
    tensors |= {f"module.{name}": faked(buffer) for name, buffer in module.named_buffers()}
    counts, watch = Counts(), _Watch(fake)
    handles = _watch_tokens(module, counts)
    try:
        with watch:
            functional_call(_Step(module, call, faked), tensors, ())
    finally:
        for handle in handles:
            handle.remove()
    counts.peak, counts.flops = watch.peak, watch.flops
    return counts


@contextmanager
def fake_processes(number: int) -> Iterator[None]:
    """Lets code inside believe to be the first of so many processes; what it exchanges with them has no contents."""
    # registers the backend; torch has no other door to it
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=number, store=FakeStore())
    try:
        yield
    finally:
        distributed.destroy_process_group()


class _Step(nn.Module):
    """Forward and backward in one call: checkpointed layers run again in the latter, with the same tensors."""

    def __init__(self, module: nn.Module, call: _Call, faked: _Faked) -> None:
        super().__init__()
        self.module = module
        self._run = lambda: call(module, faked)

    def forward(self) -> None:
        result = self._run()
        if isinstance(result, torch.Tensor) and result.requires_grad:
            result.backward()


def _watch_tokens(module: nn.Module, counts: Counts) -> list[RemovableHandle]:
    """Notes what passes through the first layers of transformers."""

    def note(name: str, latents: tuple[int, ...], patches: torch.Tensor) -> None:
        number = math.prod(patches.shape[2:])
        if number > counts.tokens.get(name, ((), 0))[1]:
            counts.tokens[name] = (latents, number)

    def hook_of(name: str) -> Callable[..., None]:
        return lambda _, inputs, output: note(name, tuple(inputs[0].shape), output)

    return [
        part.patch_embedding.register_forward_hook(hook_of(name))
        for name, part in module.named_modules()
        if isinstance(getattr(part, "patch_embedding", None), nn.Conv3d)
    ]


def _attention_on_a_cpu(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_on_a_cpu_backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    # the scores again, and four products: of gradients with values, and with each of query, key and scores
    return 5 * sdpa_flop_count(query.shape, key.shape, value.shape) // 2


_FLOPS: dict[Any, Callable[..., int]] = flop_registry | {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention_on_a_cpu,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_on_a_cpu_backward,
}
