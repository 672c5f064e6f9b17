# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the caller says about a network, checked against what its tensors show: nothing is ignored in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Settings:
    """The settings given for one network, under our names or the published ones.

    Whoever builds the network's config asks for each setting that it knows; [`check_known`] then refuses the rest.

    Args:
        given (`Mapping[str, Any]`): names and values.
        network (`str`): what the network is, for messages.
    """

    def __init__(self, given: Mapping[str, Any], network: str) -> None:
        self._given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        self.network = network
        self.known: set[str] = set()
        self.ignored: list[str] = []

    def take(self, default: Any, *names: str, or_none: Any = None) -> Any:
        """Returns a setting that tensors do not show, `default` where it was not given.

        Args:
            default: its released value, whose type it must have.
            names (`str`): our name and the published ones.
            or_none (*optional*): where `None` is a value too, an example of the others.

        Raises:
            ValueError: wrong type, or different values under two of the names.
        """
        name = self._find(*names)
        if name is None:
            return default
        value = self._given[name]
        if or_none is not None and value is None:
            return None
        example = default if or_none is None else or_none
        if isinstance(example, float) and type(value) is int:
            return float(value)
        if not _is_like(value, example):
            raise ValueError(f"setting `{name}` is {value!r}; expected a value like {example!r} ({self.network})")
        return value

    def take_numbers(self, default: Sequence[float] | None, *names: str) -> tuple[float, ...] | None:
        """Returns a setting that is a list of numbers of any length, or `None`.

        Raises:
            ValueError: it is something else, or different values under two of the names.
        """
        name = self._find(*names)
        if name is None:
            return None if default is None else tuple(default)
        value = self._given[name]
        numbers = isinstance(value, tuple) and all(type(number) in (int, float) for number in value)
        if not numbers and value is not None:
            raise ValueError(f"setting `{name}` is {value!r}; expected a list of numbers ({self.network})")
        return value

    def agree(self, shown: Any, *names: str) -> Any:
        """Returns what the tensors show, after checking that a given setting says the same.

        A single number stands for a tuple of equal ones, `None` for no statement.

        Raises:
            ValueError: the setting contradicts the tensors.
        """
        for name in self._find_all(*names):
            value = self._given[name]
            if isinstance(shown, tuple) and not isinstance(value, tuple):
                value = (value,) * len(shown)
            if self._given[name] is not None and value != shown:
                raise ValueError(
                    f"setting `{name}` is {self._given[name]!r}, but the checkpoint's tensors show {shown!r} "
                    f"({self.network})"
                )
        return shown

    def only(self, supported: Any, *names: str) -> None:
        """Checks a published option of which one value is supported; `None` states nothing.

        Raises:
            ValueError: it was given and is another one.
        """
        for name in self._find_all(*names):
            if self._given[name] is not None and self._given[name] != supported:
                raise ValueError(
                    f"setting `{name}` is {self._given[name]!r}; only {supported!r} is supported ({self.network})"
                )

    def without_effect(self, *names: str) -> None:
        """Allows published options that say how weights are initialised or computed with, not what comes out."""
        self.ignored += self._find_all(*names)

    def unknown(self) -> set[str]:
        """Names that were given and that nobody asked for."""
        return self._given.keys() - self.known

    def _find_all(self, *names: str) -> list[str]:
        self.known.update(names)
        return [name for name in names if name in self._given]

    def _find(self, *names: str) -> str | None:
        found = self._find_all(*names)
        for name in found[1:]:
            if self._given[name] != self._given[found[0]]:
                raise ValueError(
                    f"settings `{found[0]}` ({self._given[found[0]]!r}) and `{name}` ({self._given[name]!r}) are the "
                    "same one and contradict each other"
                )
        return found[0] if found else None


def _is_like(value: Any, example: Any) -> bool:
    if isinstance(example, tuple) and isinstance(value, tuple):
        return len(value) == len(example) and all(map(_is_like, value, example))
    return type(value) is type(example)


def check_known(asked: Sequence[Settings]) -> None:
    """Refuses settings, given alike for a few networks, that none of them knows.

    Raises:
        ValueError: there is one.
    """
    unknown = sorted(set.intersection(*(settings.unknown() for settings in asked)))
    if unknown:
        names = ", ".join(f"`{name}`" for name in unknown)
        known = set[str]().union(*(settings.known for settings in asked))
        networks = " or ".join(sorted({settings.network for settings in asked}))
        raise ValueError(f"unknown setting {names} for {networks}; known: {', '.join(sorted(known))}")
