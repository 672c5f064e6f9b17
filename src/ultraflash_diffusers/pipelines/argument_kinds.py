# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One checker for each kind of argument; all name the argument, its value and what would fit.

Those called `checked_...` return the value as Python's own type, so that numbers of numpy or of a tensor do not travel
on into states and files.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch

from .finite import all_finite


def shown(value: Any) -> str:
    """A value as it appears in errors: one line that is not endless, whatever it is."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a value's own code, such as that of numbers with too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def checked_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Returns a whole number, of whatever library, as an `int`.

    Raises:
        ValueError: it is no whole number from `least` to `most`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, RuntimeError):  # tensors that hold no integer
        number = None
    if number is None or number < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {shown(value)}")
    if most is not None and number > most:
        raise ValueError(f"`{name}` must be an integer of at most {most}, got {shown(value)}")
    return number


def optional_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int | None:
    """Returns `None`, or what [`checked_whole`] does."""
    return None if value is None else checked_whole(name, value, least, most)


def checked_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns a finite number, of whatever library, as a `float`.

    Raises:
        ValueError: it is no finite number, or outside [low, high].
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):
        expected = "a finite number" if math.isinf(low) and math.isinf(high) else f"in [{low:g}, {high:g}]"
        raise ValueError(f"`{name}` must be {expected}, got {shown(value)}")
    return number


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Checks that an argument is one of its choices.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {shown(value)}")


def check_type(name: str, value: Any, expected: type, hint: str = "") -> None:
    """Checks that an argument is `None` or of a class.

    Raises:
        TypeError: it is neither; `hint` says how to get one.
    """
    if value is not None and not isinstance(value, expected):
        raise TypeError(f"`{name}` must be a {expected.__name__}{hint}, got {shown(value)}")


def check_embeds(name: str, value: torch.Tensor, length: int, channels: int) -> None:
    """Checks that an argument holds embeddings, `[prompts, up to length, channels]`.

    Raises:
        TypeError: it is no tensor of floating-point numbers.
        ValueError: it has another shape, or values that are not finite.
    """
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        kind = f"one of {value.dtype}" if isinstance(value, torch.Tensor) else shown(value)
        raise TypeError(f"`{name}` must be a floating-point torch.Tensor, got {kind}")
    if value.ndim != 3 or value.shape[2] != channels or not 1 <= value.shape[1] <= length or value.shape[0] == 0:
        raise ValueError(f"`{name}` must have shape [prompts, up to {length}, {channels}], got {tuple(value.shape)}")
    if not all_finite(value):
        raise ValueError(f"`{name}` holds values that are not finite")
