# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Work in other threads under the caller's settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def for_another_thread(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Returns `function` for a call in another thread, where it finds what holds for the caller now.

    Python and PyTorch keep per thread: context variables, in which newer PyTorch has the settings of `torch.compile`,
    and `torch.autocast`.
    """
    context = copy_context()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    autocasts = [
        torch.autocast(
            device,
            torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=torch.is_autocast_cache_enabled(),
        )
        for device in devices
    ]

    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with ExitStack() as stack:
            for autocast in autocasts:
                stack.enter_context(autocast)
            return function(*args, **kwargs)

    return partial(context.run, run)
