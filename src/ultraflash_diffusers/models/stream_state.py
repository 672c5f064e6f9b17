# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The base of every stream's state: plain data that can be moved, cloned, saved and loaded.

A network never keeps anything between calls. What a stream has to remember is a dataclass of tensors, numbers, strings
and nested containers of them; this module gives all such dataclasses the same few verbs.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_STATE_CLASSES: dict[str, type[StreamState]] = {}
_METADATA_KEY = "stream_state"


@dataclasses.dataclass
class StreamState:
    """Base class of the state dataclasses.

    Subclasses are dataclasses whose fields hold `torch.Tensor`, `int`, `float`, `Fraction`, `str`, `bool`, `None`,
    other [`StreamState`]s, or lists, tuples and string-keyed dictionaries of these.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _STATE_CLASSES[cls.__name__] = cls

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Returns a copy in which every tensor is replaced by `function(tensor)`."""
        return _map(self, function)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Returns a copy on `device`; floating-point tensors also take `dtype`, integer ones (counters) never do."""
        return self.map_tensors(
            lambda tensor: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
        )

    def clone(self) -> Self:
        """Returns an independent copy: what happens to one of the two never shows in the other."""
        return self.map_tensors(torch.clone)

    def save(self, path: str | Path) -> None:
        """Writes the state to one safetensors file, which [`StreamState.load`] reads in any process.

        The file appears whole or not at all; of a symbolic link, what it leads to is written. An earlier state is
        replaced, and nothing else.

        Raises:
            OSError: it cannot be written.
            ValueError: `path` is a pipe, a socket or a device, or a file that is no stream's state.
        """
        place = _checked_place(Path(path))
        tensors: dict[str, torch.Tensor] = {}
        structure = _flatten(self, "state", tensors)
        replacement = place.with_name(f"{place.name}.new")
        try:
            save_file(tensors, str(replacement), metadata={_METADATA_KEY: json.dumps(structure)})
            replacement.replace(place)
        except SafetensorError as error:  # what a full disk comes out as
            raise OSError(f"the state cannot be saved to {str(path)!r}: {error}") from error
        finally:
            replacement.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """Reads a state that [`StreamState.save`] wrote.

        Args:
            path (`str` or `Path`): the safetensors file.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): where the tensors go.

        Raises:
            FileNotFoundError: `path` does not exist.
            ValueError: the file is not a saved state, is damaged, or holds a state of another class.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"`path` {str(path)!r} does not exist")
        try:
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"`path` {str(path)!r} is not a readable safetensors file: {error}") from error
        if _METADATA_KEY not in metadata:
            raise ValueError(f"`path` {str(path)!r} is a safetensors file but holds no stream state")
        try:
            state = _unflatten(json.loads(metadata[_METADATA_KEY]), tensors)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"`path` {str(path)!r} holds a damaged stream state: {error!r}") from error
        if not isinstance(state, cls):
            raise ValueError(f"`path` {str(path)!r} holds a {type(state).__name__}, expected a {cls.__name__}")
        return state


def _checked_place(path: Path) -> Path:
    """Where a state may be written: nothing is there, or an earlier state."""
    place = Path(os.path.realpath(path))
    if not place.exists():
        return place
    if place.is_dir():
        raise IsADirectoryError(f"`path` {str(path)!r} is a folder, expected a file to write")
    if not place.is_file():
        raise ValueError(f"`path` {str(path)!r} is a pipe, a socket or a device, expected a file to write")
    try:
        with safe_open(str(place), framework="pt") as file:
            known = _METADATA_KEY in (file.metadata() or {})
    except SafetensorError:
        known = place.stat().st_size == 0
    if not known:
        raise ValueError(f"`path` {str(path)!r} is there and holds no stream state: it is not replaced by one")
    return place


def _map(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, StreamState):
        fields = {field.name: _map(getattr(value, field.name), function) for field in dataclasses.fields(value)}
        return type(value)(**fields)
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, function) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, function) for key, item in value.items()}
    return value


def _flatten(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Moves the tensors of `value` into `tensors`, returns the rest as JSON data that names them."""
    if isinstance(value, torch.Tensor):
        # safetensors refuses tensors that share storage; a saved state stands alone anyway
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, StreamState):
        fields = dataclasses.fields(value)
        return {
            "state": type(value).__name__,
            "fields": {f.name: _flatten(getattr(value, f.name), f"{name}.{f.name}", tensors) for f in fields},
        }
    if isinstance(value, (list, tuple)):
        items = [_flatten(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, dict):
        return {"dict": {key: _flatten(item, f"{name}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, Fraction):
        return {"fraction": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"`{name}` holds a {type(value).__name__}, which a stream state cannot save")


def _unflatten(structure: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, content), *rest) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "state":
        if content not in _STATE_CLASSES:
            raise ValueError(f"the saved state is of the unknown class {content!r}")
        fields = {name: _unflatten(item, tensors) for name, item in rest[0][1].items()}
        return _STATE_CLASSES[content](**fields)
    if kind in ("tuple", "list"):
        items = [_unflatten(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in content.items()}
    if kind == "fraction":
        return Fraction(content)
    return content
