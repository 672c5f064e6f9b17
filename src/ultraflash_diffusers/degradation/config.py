# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Degradations as plain data, so that a training run can say what it was trained on."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .combining import Compose, CutMix, OneOf, Sometimes, Transform
from .compression import H264, Jpeg
from .temporal import FrameDrop, GridWarp, MotionBlur, TemporalMorph
from .transforms import Downscale, GaussianBlur, GaussianNoise, Rescale, UnsharpMask

_CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Compose, OneOf, Sometimes, CutMix),
        *(TemporalMorph, FrameDrop, MotionBlur, GridWarp),
        *(Downscale, Rescale, GaussianBlur, UnsharpMask, GaussianNoise),
        *(H264, Jpeg),
    )
}


def to_config(transform: Transform) -> dict[str, Any]:
    """Describes a transform as a dictionary that JSON can hold.

    Args:
        transform (`Transform`): one of this package's, made of no others than these.

    Returns:
        `dict`: the class' name as `type`, and its arguments.

    Raises:
        ValueError: it is, or contains, a transform of another kind.
    """
    name = type(transform).__name__
    if _CLASSES.get(name) is not type(transform):
        raise ValueError(f"`transform` {transform!r} cannot be described: it is none of {sorted(_CLASSES)}")
    return {"type": name, **{part.name: _plain(getattr(transform, part.name)) for part in fields(transform)}}  # type: ignore[arg-type]


def from_config(config: dict[str, Any]) -> Transform:
    """Makes the transform that [`to_config`] described.

    Args:
        config (`dict`): `type` and the arguments; those that are left out have their defaults.

    Raises:
        ValueError: no such type or argument, or a value that the type refuses.
    """
    if not isinstance(config, dict) or config.get("type") not in _CLASSES:
        raise ValueError(f"`config` must be an object whose `type` is one of {sorted(_CLASSES)}, got {config!r}")
    kind = _CLASSES[config["type"]]
    arguments = {name: _made(value) for name, value in config.items() if name != "type"}
    try:
        return kind(*arguments.pop("transforms", ()), **arguments)
    except TypeError as error:
        raise ValueError(f"`config` of {config['type']}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, (int, float, str, type(None))) else to_config(value)


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_made(entry) for entry in value)
    return from_config(value) if isinstance(value, dict) else value
