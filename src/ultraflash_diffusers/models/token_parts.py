# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Work on each token alone, done for some tokens after the others: less memory, the same result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

# tokens that go together where there is no backward pass: many enough for full speed, few enough for float32 copies
# and the wide feed-forward layers to be small beside a clip's tokens
_PART_TOKENS = 12288

Function = TypeVar("Function", bound=Callable[..., Any])


def in_parts(function: Function) -> Function:
    """Decorates a function that treats each token alone, so that it works on parts of many tokens.

    Tensors among its positional arguments, and what it returns (a tensor or a tuple of them), are `[batch, tokens,
    ...]`; keyword arguments serve all parts. With gradients, which need everything at once anyway, nothing is cut;
    nor with `modulation=` that differs from frame to frame, since parts need not be whole frames.
    """

    @functools.wraps(function)
    def run(*arguments: Any, **shared: Any) -> Any:
        tokens = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        count = -(-tokens[0].shape[1] // _PART_TOKENS)
        modulation = shared.get("modulation", ())
        if count == 1 or torch.is_grad_enabled() or any(tensor.shape[1] > 1 for tensor in modulation):
            return function(*arguments, **shared)
        before = arguments[: len(arguments) - len(tokens)]
        chunks = zip(*(tensor.chunk(count, dim=1) for tensor in tokens), strict=True)
        return _joined([function(*before, *part, **shared) for part in chunks])

    return cast(Function, run)


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts, dim=1)
    outputs = [list(each) for each in zip(*parts, strict=True)]
    parts.clear()  # so that each output's parts go as soon as it is whole
    return tuple(torch.cat(outputs.pop(0), dim=1) for _ in range(len(outputs)))
