# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Settings as dataclasses: one declaration gives the default, the range that is checked, the flag and its help.

    @dataclass(frozen=True)
    class Objective(Settings):
        '''What is learnt.

        Args:
            weight (`float`, *optional*, defaults to 1.0): of the loss.
        '''

        weight: NonNegative[float] = 1.0

`add_settings(parser, Objective)` adds `--weight`, and `read_settings(arguments, Objective)` makes the dataclass of it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from inspect import cleandoc
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Number = TypeVar("Number", int, float)
T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """What numbers are allowed, in code and in words that follow "must be"."""

    holds: Callable[[float], bool]
    words: str


POSITIVE = Range(lambda value: value > 0, "above 0")
NON_NEGATIVE = Range(lambda value: value >= 0, "0 or above")
SHARE = Range(lambda value: 0 <= value <= 1, "in [0, 1]")
AT_LEAST_ONE = Range(lambda value: value >= 1, "at least 1")

Positive = Annotated[Number, POSITIVE]
NonNegative = Annotated[Number, NON_NEGATIVE]
Share = Annotated[float, SHARE]
Count = Annotated[int, AT_LEAST_ONE]

# of a dataclass' field that no flag sets; `{"flag": "name"}` gives it a flag of another name
NO_FLAG = {"flag": None}


class Settings:
    """Base of the dataclasses: checks that numbers are in their fields' ranges, and texts among their choices."""

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: names a field, its value and what would fit.
        """
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if value is not None:
                _check(name, value, _Kind.of(hint))


def _check(name: str, value: Any, kind: _Kind) -> None:
    if kind.choices and value not in kind.choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, kind.choices))}, got {value!r}")
    numbers = value if kind.pair else (value,)
    if kind.range is not None and not all(kind.range.holds(number) for number in numbers):
        raise ValueError(f"`{name}` must be {kind.range.words}, got {value}")
    if kind.pair and value[0] > value[1]:
        raise ValueError(f"`{name}`: LOW must not be above HIGH, got {value[0]} {value[1]}")


@dataclass(frozen=True)
class _Kind:
    """What a field holds: of type hints, that which flags and checks need."""

    type: Any
    range: Range | None = None
    choices: tuple[str, ...] = ()
    pair: bool = False

    @classmethod
    def of(cls, hint: Any) -> _Kind:
        if get_origin(hint) in (Union, UnionType):
            (hint,) = (part for part in get_args(hint) if part is not type(None))
        if get_origin(hint) is tuple:
            inner = cls.of(get_args(hint)[0])
            return cls(inner.type, inner.range, pair=True)
        if get_origin(hint) is Annotated:
            kind, *notes = get_args(hint)
            return cls(kind, next(note for note in notes if isinstance(note, Range)))
        if get_origin(hint) is Literal:
            return cls(str, choices=get_args(hint))
        return cls(hint)


@dataclass(frozen=True)
class _Flag:
    name: str
    field: str
    kind: _Kind
    default: Any
    help: str


def bounded(kind: Callable[[str], Number], allowed: Range) -> Callable[[str], Number]:
    """A type for `add_argument`: a number of this kind in a range."""

    def parse(text: str) -> Number:
        value = kind(text)
        if not allowed.holds(value):
            raise argparse.ArgumentTypeError(f"must be {allowed.words}, got {text}")
        return value

    parse.__name__ = kind.__name__  # what argparse calls it where `kind` itself fails
    return parse


def add_settings(parser: argparse.ArgumentParser, *kinds: type, title: str) -> None:
    """Adds a flag for each field of dataclasses, those of dataclasses inside them too.

    A flag of several dataclasses may have other defaults in each. Parsed, a flag that was not given is `None` until
    [`complete_settings`].

    Args:
        parser (`argparse.ArgumentParser`): gets a group of arguments.
        kinds (`type`): dataclasses, all of whose fields have defaults.
        title (`str`): of the group.
    """
    group = parser.add_argument_group(title)
    flags: dict[str, list[tuple[type, _Flag]]] = {}
    for kind in kinds:
        for flag in _flags(kind()):
            flags.setdefault(flag.name, []).append((kind, flag))
    for owners in flags.values():
        _add(group, owners[0][1], _defaults(owners, len(kinds)))


def _add(group: Any, flag: _Flag, defaults: str) -> None:
    options: dict[str, Any] = {"default": None, "help": (flag.help + defaults).replace("%", "%%") or " "}
    if flag.kind.type is bool:
        group.add_argument(f"--{flag.name}", action="store_true", **options)
        return
    kind = flag.kind.type if flag.kind.range is None else bounded(flag.kind.type, flag.kind.range)
    if flag.kind.choices:
        options["choices"] = flag.kind.choices
    if flag.kind.pair:
        options |= {"nargs": 2, "metavar": ("LOW", "HIGH")}
    group.add_argument(f"--{flag.name}", type=kind, **options)


def _defaults(owners: list[tuple[type, _Flag]], kinds: int) -> str:
    """How a flag's help ends: its default, or that of each dataclass that has it."""
    if kinds == 1:
        shown = _shown(owners[0][1].default)
        return f" (default: {shown})" if shown else ""
    parts = (f"{kind.__name__}: {_shown(flag.default)}".removesuffix(": ") for kind, flag in owners)
    return f" ({', '.join(parts)})"


def _shown(default: Any) -> str:
    if default is None or default is False:
        return ""
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def read_settings(arguments: argparse.Namespace, kind: type[T]) -> T:
    """Makes a dataclass of parsed flags; where one was not given, of the dataclass' own default.

    Args:
        arguments (`argparse.Namespace`): of a parser that [`add_settings`] has added the dataclass to.
        kind (`type`): the dataclass.

    Raises:
        ValueError: what the dataclass itself refuses.
    """
    return _read(arguments, kind())


def _read(arguments: argparse.Namespace, default: Any) -> Any:
    values: dict[str, Any] = {}
    for field in fields(default):
        value = getattr(default, field.name)
        if is_dataclass(value):
            values[field.name] = _read(arguments, value)
        else:
            given = getattr(arguments, field.metadata.get("flag", field.name) or "", None)
            values[field.name] = value if given is None else tuple(given) if isinstance(given, list) else given
    return type(default)(**values)


def complete_settings(
    parser: argparse.ArgumentParser,
    parsed: argparse.Namespace,
    kind: type,
    others: tuple[type, ...] = (),
    why: str = "",
) -> None:
    """Checks parsed flags as a whole, and sets those that were not given to the dataclass' defaults.

    Args:
        parser (`argparse.ArgumentParser`): tells the errors.
        parsed (`argparse.Namespace`): its result.
        kind (`type`): the dataclass of this run.
        others (tuple of `type`): other dataclasses that the parser has flags of; those must not be given here.
        why (`str`): follows the name of such a flag, for instance "needs --objective one_step".
    """
    own = {flag.field: flag.name for flag in _flags(kind())}
    foreign = {flag.name for other in others for flag in _flags(other())} - {*own.values()}
    for name in sorted(foreign):
        if getattr(parsed, name) is not None:
            parser.error(f"--{name} {why}")
    try:
        settings: Any = read_settings(parsed, kind)
    except ValueError as error:
        parser.error(_with_flags(str(error), own))
    for flag in _flags(settings):
        setattr(parsed, flag.name, flag.default)


def add_choice(parser: argparse.ArgumentParser, kinds: dict[str, type]) -> None:
    """Adds `--objective`, which chooses between dataclasses, and the flags of all of them.

    Args:
        parser (`argparse.ArgumentParser`): gets a group of arguments.
        kinds (`dict[str, type]`): the dataclasses by name, of which the first is the default.
    """
    parser.add_argument("--objective", choices=tuple(kinds), default=next(iter(kinds)), help="what is learnt")
    add_settings(parser, *kinds.values(), title="objective")


def complete_choice(parser: argparse.ArgumentParser, parsed: argparse.Namespace, kinds: dict[str, type]) -> None:
    """[`complete_settings`] with the chosen dataclass; flags of the others alone are refused.

    Args:
        parser (`argparse.ArgumentParser`): tells the errors.
        parsed (`argparse.Namespace`): its result.
        kinds (`dict[str, type]`): of [`add_choice`].
    """
    others = {name: kind for name, kind in kinds.items() if name != parsed.objective}
    why = f"needs --objective {' or '.join(others)}"
    complete_settings(parser, parsed, kinds[parsed.objective], tuple(others.values()), why)


def _with_flags(message: str, flags: dict[str, str]) -> str:
    """A message about fields, `name`, as one about flags, --name."""
    return re.sub(r"`(\w+)`", lambda found: f"--{flags[found[1]]}" if found[1] in flags else found[0], message)


def _flags(settings: Any) -> Iterator[_Flag]:
    """The flags of a dataclass; as default each has what the instance holds."""
    hints = get_type_hints(type(settings), include_extras=True)
    helps = _descriptions(type(settings))
    for field in fields(settings):
        value, name = getattr(settings, field.name), field.metadata.get("flag", field.name)
        if is_dataclass(value):
            yield from _flags(value)
        elif name is not None:
            yield _Flag(name, field.name, _Kind.of(hints[field.name]), value, helps.get(field.name, ""))


def _descriptions(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of those that it extends say of each argument."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        text = cleandoc(part.__doc__ or "")
        for name, said in re.findall(r"^    (\w+) \(.*?\): ((?:.*\n?)(?: {8}.*\n?)*)", text, re.MULTILINE):
            plain = re.sub(r"\[`~?(?:[\w.]*\.)?(\w+)`\]", r"\1", " ".join(said.split()))
            found[name] = plain.replace("`", "").rstrip(".")
    return found
