# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A stream is a chain of states that share their buffers; this says which of them may still be called from.

Calls write into the buffers in place, so a state ends in one of two ways. One that may be called from again (several
denoising steps) ends when a later one's call overwrites what it needs: the buffers bear marks of how far they have
gone on, and a state whose marks are passed is [`superseded`]. One for a [`SingleUse`] ends with its own call, and the
host alone keeps that in mind: no device is asked.
"""

from __future__ import annotations

from typing import ClassVar

import torch


def shapes_are_static() -> bool:
    """Whether this is being compiled or captured as a CUDA graph: then no number may be read from the device."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def superseded(state: str, gone_on: str) -> ValueError:
    """The error that a state cannot be called from any more: both arguments tell which, and what became of it."""
    return ValueError(
        f"{state}, but its buffers have {gone_on}: go on from the newest state, or branch with `state.clone()`"
    )


class SingleUse:
    """What states have in common that may be called from once, since the call overwrites what they hold.

    Nothing is checked or marked while code is compiled or captured, which runs without its host.

    Args:
        used (`list[bool]`): whether it has been called from; one element, which copies by `dataclasses.replace` share
            like the buffers.
    """

    used: list[bool]
    use: ClassVar[str] = "been used"  # as errors call it

    def check_unused(self) -> None:
        """Checks that the state may be called from.

        Raises:
            ValueError: it has been.
        """
        if self.used[0] and not shapes_are_static():
            raise ValueError(
                f"`state` is for a single use and has {self.use}: go on from the newest state, branch with "
                "`state.clone()` before that, or begin with `new_stream(single_use=False)`"
            )

    def mark_used(self) -> None:
        """Notes that it has been."""
        if not shapes_are_static():
            self.used[0] = True
