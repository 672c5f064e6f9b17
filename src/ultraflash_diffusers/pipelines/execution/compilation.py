# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Compiled networks: which calls of them run alone, and what happens where `torch.compile` fails.

`torch.compile` is not made for threads. While it traces, PyTorch marks and patches the whole process: a compiled
network that another thread calls in that time fails ("Detected that you are using FX to symbolically trace a
dynamo-optimized function"), and modules may end up in the other thread's graph
(https://github.com/pytorch/pytorch/issues/126024). Streams decode and denoise in two threads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition
from typing import Any

from diffusers.utils import logging
from torch import nn
from torch._dynamo import config
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.exc import InvalidBackend, TorchDynamoException
from torch._dynamo.utils import counters

logger = logging.get_logger(__name__)

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


def compile_parts(name: str, parts: Sequence[nn.Module], **settings: Any) -> str | None:
    """Has parts of a network compiled at their first calls; where that fails, all of them run as they are.

    Whether a compiler works shows when a part is called first, or with another size. As graphs are whole, nothing has
    run by then: the call is made again without the compiler, and so are all later ones, with one warning.

    Args:
        name (`str`): of the network, for the warning.
        parts (sequence of `nn.Module`): whose calls are compiled.
        settings: of `torch.compile`, with `fullgraph=True`.

    Returns:
        `str`: why nothing is compiled, `None` where it is left to the first calls.

    Raises:
        RuntimeError: an unknown backend.
    """
    try:
        for part in parts:
            part.compile(**settings)
    except InvalidBackend:
        raise
    except RuntimeError as error:  # a Python or a system that `torch.compile` is not made for
        return _run_plainly(name, parts, error)
    for part in parts:
        part._compiled_call_impl = _CompiledOrPlain(name, parts, part)
    return None


class _CompiledOrPlain:
    """The call of a compiled part: compiled, and plain once a part of its network could not be compiled."""

    def __init__(self, name: str, parts: Sequence[nn.Module], part: nn.Module) -> None:
        self._name, self._parts = name, parts
        assert part._compiled_call_impl is not None  # it was just compiled
        self._compiled: Callable[..., Any] = part._compiled_call_impl
        self._plain = part._call_impl

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._compiled(*args, **kwargs)
        except TorchDynamoException as error:
            _run_plainly(self._name, self._parts, error)
        return self._plain(*args, **kwargs)


def _run_plainly(name: str, parts: Sequence[nn.Module], error: RuntimeError) -> str:
    """Takes the compiled calls from `parts`, says so, and returns the reason in a line."""
    cause = getattr(error, "inner_exception", error)  # of the compiler, which Dynamo's own error tells of
    reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
    for part in parts:
        part._compiled_call_impl = None
    logger.warning(f"{name} could not be compiled and runs as it is from here on ({reason})")
    return reason


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
