# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The large scale: which room may import which, no circle between modules, no module that has grown too long.

Imports are read from the source, also those inside functions and under `TYPE_CHECKING`.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import pytest

from docs import house

# what a room may import, beside itself and `pixels`, which knows torch and numpy alone
ROOMS: dict[str, set[str]] = {
    "cli": {"commands"},
    "commands": {
        "allocation",
        "conversion",
        "demo",
        "hub_files",
        "models",
        "pipelines",
        "profiling",
        "serving",
        "video_io",
    },
    "demo": {"models", "pipelines", "serving", "video_io"},
    "serving": {"models", "pipelines", "video_io"},
    "profiling": {"models", "pipelines"},
    "training": {
        "allocation",
        "degradation",
        "models",
        "pipelines",
        "profiling",
        "rewards",
        "tables",
        "video_io",
        "weight_files",
    },
    "conversion": {"hub_files", "models", "pipelines", "tables", "weight_files"},
    "pipelines": {"hub_files", "models", "tables", "video_io", "weight_files"},
    "models": {"weight_files"},
    "rewards": {"models", "weight_files"},
    "degradation": set(),
    "video_io": {"lazy_names"},
    "hub_files": set(),
    "lazy_names": set(),
    "tables": set(),
    "torchao_notices": set(),
    "weight_files": set(),
    "allocation": set(),
    "pixels": set(),
}
# rooms inside training, likewise; all may use `files`, `processes` and `settings`
TRAINING: dict[str, set[str]] = {
    "loop": {"data", "files", "processes", "losses", "settings", "stages", "starting_points"},
    "stages": {"data", "files", "processes", "losses", "settings", "starting_points"},
    "data": {"files", "processes", "losses", "settings", "starting_points"},
    "losses": {"files", "processes", "settings"},
    "starting_points": {"files", "processes", "settings"},
    "files": set(),
    "processes": set(),
    "settings": set(),
}
LONGEST = 450
STILL_LONGER: set[str] = set()


def imports() -> dict[str, set[str]]:
    """The modules that each module imports, without the package's own `__init__`, which imports lazily."""
    modules = house.modules()
    found = {}
    for name, path in modules.items():
        if name == house.PACKAGE:
            continue
        targets = set()
        for target in house.imported(name, path):
            # `from .a import b`: b is a module, or something inside a
            known = target if target in modules else target.rpartition(".")[0]
            targets |= {known} & modules.keys() - {name, house.PACKAGE}
        found[name] = targets
    return found


IMPORTS = imports()


def check_no_circle(graph: dict[str, set[str]]) -> None:
    TopologicalSorter(graph).prepare()


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert len(IMPORTS) > 100 and sum(map(len, IMPORTS.values())) > 300
    check_no_circle(IMPORTS)
    stream, state = (f"{house.PACKAGE}.pipelines.{name}" for name in ("video_stream", "pipeline_state"))
    assert state in IMPORTS[stream]
    with pytest.raises(CycleError):
        check_no_circle(IMPORTS | {state: {stream}})


def between(prefix: str) -> dict[str, set[str]]:
    """Which parts of a package import which others of it."""
    parts: dict[str, set[str]] = {}
    for name, targets in IMPORTS.items():
        if name.startswith(prefix):
            part = name.removeprefix(prefix).split(".")[0]
            others = {target.removeprefix(prefix).split(".")[0] for target in targets if target.startswith(prefix)}
            parts[part] = parts.get(part, set()) | others - {part}
    return parts


@pytest.mark.parametrize(("inside", "allowed"), [("", ROOMS), ("training.", TRAINING)], ids=["the house", "training"])
def test_rooms_import_downwards(inside: str, allowed: dict[str, set[str]]) -> None:
    found = between(f"{house.PACKAGE}.{inside}")
    assert found.keys() == allowed.keys()
    beyond = {room: others - allowed[room] - {"pixels"} for room, others in found.items()}
    assert not {room: others for room, others in beyond.items() if others}
    check_no_circle(allowed)


def test_modules_fit_into_the_head() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in house.modules().items()}
    longer = {name.removeprefix(f"{house.PACKAGE}.") for name, count in lines.items() if count > LONGEST}
    assert longer == STILL_LONGER, "split what is new here, and strike what has been split off the list"
