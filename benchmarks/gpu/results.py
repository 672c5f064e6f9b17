# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Results as lines of JSON, each on disk as soon as it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")

_PREDICTIONS = Path(__file__).parent / "predictions.json"


def read_predictions() -> dict[str, dict[str, Any]]:
    """What is expected, by name of the value: `"value"`, `"unit"`, and where it comes from, `"from"`."""
    return json.loads(_PREDICTIONS.read_text())


def append(out: Path, line: dict[str, Any]) -> None:
    """Writes a line to `out / "results.jsonl"`, on disk when this returns."""
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


class Report:
    """The lines of one stage.

    Args:
        out (`Path`): folder of the results.
        stage (`str`): name of the stage.
        dry (`bool`): whether tiny networks run on a CPU.
    """

    def __init__(self, out: Path, stage: str, dry: bool) -> None:
        self.out, self.stage, self.dry = out, stage, dry
        self.device = "cpu" if dry else "cuda"

    def value(self, name: str, value: float, unit: str) -> None:
        """A figure that can have a prediction: `name` behind the stage's, for instance `"compiled.fps"`."""
        append(self.out, {"stage": self.stage, "name": f"{self.stage}.{name}", "value": _short(value), "unit": unit})

    def detail(self, **values: Any) -> None:
        """Anything else that is worth knowing."""
        append(self.out, {"stage": self.stage} | {name: _short(each) for name, each in values.items()})

    def attempt(self, name: str, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result | None:
        """Runs a part of the stage. Its error is a result like any other, and the next part follows."""
        try:
            return function(*args, **kwargs)
        except Exception as error:  # whatever a kernel, a compiler or an allocator can raise
            self.detail(failed=name, error=f"{type(error).__name__}: {error}"[:600])
            return None


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
