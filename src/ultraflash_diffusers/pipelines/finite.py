# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What networks make has to be finite: found out beside the work, and said by the network's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .execution.devices import DeferredFlag


def all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Returns whether all values are finite, as a 0-d bool tensor: `isfinite().all()` in one pass instead of six."""
    if tensor.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    return torch.stack(tensor.aminmax()).isfinite().all()  # a NaN is passed on as both


@dataclass(frozen=True)
class FiniteCheck:
    """A check that may still be under way on a GPU.

    Args:
        made (`str`): what was made, by which component.
        where (`str`): in which part of the video.
        finite (`DeferredFlag`): whether all of it is.
    """

    made: str
    where: str
    finite: DeferredFlag

    @classmethod
    def of(cls, made: str, where: str, tensor: torch.Tensor) -> FiniteCheck:
        """Begins to check a tensor."""
        return cls(made, where, DeferredFlag(all_finite(tensor)))

    def ensure(self) -> None:
        """Waits for the result.

        Raises:
            ValueError: something is not finite.
        """
        if not self.finite:
            raise ValueError(f"{self.made} that are not finite in {self.where}")


def first_failure(checks: Sequence[tuple[int, FiniteCheck]]) -> tuple[int, ValueError] | None:
    """The number that goes with the first check that fails, and its error."""
    for number, check in checks:
        try:
            check.ensure()
        except ValueError as error:
            return number, error
    return None
