# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The drawing of the house shows the house as it is."""

from __future__ import annotations

import graphlib
from pathlib import Path

import pytest

from docs import house


def test_the_drawing_is_current() -> None:
    assert house.PICTURE.read_text() == house.draw(), "run `python docs/house.py`"


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    rooms = house.imports_between_rooms()
    order = [room for row in house.storeys(rooms) for room in row]
    assert order[-1] in {"degradation", "models", "rewards", "video_io", "weight_files"}
    assert all(order.index(room) < order.index(below) for room, others in rooms.items() for below in others)
    with pytest.raises(graphlib.CycleError):
        house.storeys(rooms | {"models": {"pipelines"}})


def test_imports_that_follow_from_others_are_left_out() -> None:
    assert house.direct({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == [("a", "b"), ("b", "c")]


def test_relative_and_late_imports_are_seen(tmp_path: Path) -> None:
    source = tmp_path / "stages.py"
    source.write_text(
        "from ..models import x\ndef f():\n    from . import y\n    import ultraflash_diffusers.rewards\n"
    )
    found = set(house.imported("ultraflash_diffusers.pipelines.stages", source))
    assert found == {
        "ultraflash_diffusers.models.x",
        "ultraflash_diffusers.pipelines.y",
        "ultraflash_diffusers.rewards",
    }
