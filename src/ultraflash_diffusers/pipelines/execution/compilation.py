# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which calls of networks run alone: `torch.compile` is not made for threads.

While it traces, PyTorch marks and patches the whole process: a compiled network that another thread calls in that time
fails ("Detected that you are using FX to symbolically trace a dynamo-optimized function"), and modules may end up in
the other thread's graph (https://github.com/pytorch/pytorch/issues/126024). Streams decode and denoise in two threads.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from threading import Condition

from torch import nn
from torch._dynamo import config
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.utils import counters

# that may be compiled of one function: enough for some eighty sizes of video
_GRAPHS = 1024


def allow_graphs() -> None:
    """Lets this thread compile a network for many sizes.

    The blocks of both transformers have some twelve graphs in all for each size: of the generator's, two for each
    number of filled slots. Eight of a function are allowed by default, beyond which calls fail. Newer PyTorch keeps
    that limit per thread.
    """
    if config.recompile_limit < _GRAPHS:
        config.recompile_limit = _GRAPHS
    if config.accumulated_recompile_limit < _GRAPHS:
        config.accumulated_recompile_limit = _GRAPHS


def is_compiled(module: nn.Module) -> bool:
    """Whether `module` or a part of it was given to `torch.compile`."""
    return any(isinstance(part, OptimizedModule) or part._compiled_call_impl is not None for part in module.modules())


class _Gate:
    """A lock that any number of threads hold beside each other, or one of them alone."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._inside = 0
        self._taken = False
        self._wanted_alone = 0

    @contextmanager
    def entered(self, alone: bool) -> Iterator[None]:
        """Holds it. Not to be nested; who waits to be alone comes before those who need not be."""
        with self._changed:
            if alone:
                self._wait_for_all()
            else:
                self._changed.wait_for(lambda: not self._taken and not self._wanted_alone)
            self._inside += 1
            self._taken = alone
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._taken = False
                self._changed.notify_all()

    def _wait_for_all(self) -> None:
        self._wanted_alone += 1
        try:
            self._changed.wait_for(lambda: not self._inside)
        finally:
            self._wanted_alone -= 1
            self._changed.notify_all()


_GATE = _Gate()


class GuardedCalls:
    """The calls of a network by one stage of a stream: alone in the process while they may compile.

    Only calls of networks are guarded, never code of the user's or anything that waits for another thread.
    """

    def __init__(self) -> None:
        self._settled: set[Hashable] = set()

    @contextmanager
    def __call__(self, kind: Hashable = None) -> Iterator[None]:
        """Surrounds a call.

        Args:
            kind (`Hashable`, *optional*): what decides which graph the call needs. A kind runs beside other threads'
                calls once a call of it has compiled nothing, until one does so again.
        """
        allow_graphs()
        with _GATE.entered(alone=kind not in self._settled):
            before = counters["stats"]["unique_graphs"]
            yield
            compiled = counters["stats"]["unique_graphs"] != before
        (self._settled.discard if compiled else self._settled.add)(kind)
