# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Draws the house: the package's rooms, each above what it imports.

python docs/house.py        # writes docs/house.svg
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path

PACKAGE = "ultraflash_diffusers"
ROOT = Path(__file__).parents[1] / "src" / PACKAGE
PICTURE = Path(__file__).with_name("house.svg")

ROOM_WIDTH, GAP, LINE, PADDING = 216, 24, 17, 12
STYLE = """
.room { fill: #eef2ff; stroke: #4f46e5; stroke-width: 1.2 }
.import { fill: none; stroke: #94a3b8; stroke-width: 1.2 }
text { font: 12px sans-serif; fill: #334155 }
.name { font: bold 14px monospace; fill: #1e1b4b }
.inner { font: 12px monospace; fill: #4338ca }
"""


def modules() -> dict[str, Path]:
    """The package's modules by their dotted names; a package's own name is that of its folder.

    The files in `checkpoint` are no modules but part of what is loaded from there.
    """
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
        if parts[1] == "checkpoint":
            continue
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported(name: str, path: Path) -> Iterator[str]:
    """The dotted names that a module imports from this package, wherever in the file and for whatever purpose."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            if base.split(".")[0] == PACKAGE:
                yield from (f"{base}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str | None:
    """The folder, or file beside the folders, that a module belongs to; None is the package's own `__init__`."""
    parts = name.split(".")[1:]
    return parts[0] if parts and ((ROOT / parts[0]).is_dir() or (ROOT / f"{parts[0]}.py").is_file()) else None


def imports_between_rooms() -> dict[str, set[str]]:
    """Which rooms each room imports."""
    rooms: dict[str, set[str]] = {}
    for name, path in modules().items():
        room = room_of(name)
        if room is not None:
            others = {room_of(other) for other in imported(name, path)} - {room, None}
            rooms.setdefault(room, set()).update(other for other in others if other)
    in_use = set().union(*rooms.values())
    return {room: below for room, below in rooms.items() if below or room in in_use}


def storeys(rooms: dict[str, set[str]]) -> list[list[str]]:
    """The rooms in rows, the lowest last: each as low as what it imports allows.

    Raises:
        graphlib.CycleError: rooms import each other in a circle.
    """
    height: dict[str, int] = {}
    for room in TopologicalSorter(rooms).static_order():
        height[room] = 1 + max((height[below] for below in rooms[room]), default=-1)
    return [sorted(room for room in rooms if height[room] == level) for level in range(max(height.values()), -1, -1)]


def arranged(rows: list[list[str]], lines: list[tuple[str, str]]) -> list[list[str]]:
    """Each row in the order of what stands above it, so that few lines cross."""
    place: dict[str, float] = {}

    def middle_of_importers(room: str) -> float:
        importers = [place[above] for above, below in lines if below == room]
        return sum(importers) / len(importers) if importers else float("inf")

    for row in rows:
        row.sort(key=middle_of_importers)
        place.update((room, number - (len(row) - 1) / 2) for number, room in enumerate(row))
    return rows


def direct(rooms: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports without those that follow from others, so that the drawing stays clear."""

    def below(room: str) -> set[str]:
        return rooms[room].union(*(below(other) for other in rooms[room]))

    return [
        (room, other)
        for room in sorted(rooms)
        for other in sorted(rooms[room])
        if not any(other in below(between) for between in rooms[room] - {other})
    ]


def lines_of(room: str) -> tuple[list[str], list[str]]:
    """What a room is for, by its docstring, and the rooms inside it."""
    folder = ROOT / room
    source = folder / "__init__.py" if folder.is_dir() else ROOT / f"{room}.py"
    purpose = (ast.get_docstring(ast.parse(source.read_text())) or "").split("\n\n")[0].replace("\n", " ")
    inner = sorted(each.parent.name for each in folder.glob("*/__init__.py"))
    return textwrap.wrap(purpose.replace("`", ""), 32, max_lines=4, placeholder=" …"), inner


def draw() -> str:
    """The picture as SVG."""
    rooms = imports_between_rooms()
    lines = direct(rooms)
    rows = arranged(storeys(rooms), lines)
    width = max(map(len, rows)) * (ROOM_WIDTH + GAP) + GAP
    places: dict[str, tuple[float, float, float]] = {}  # left, top, height
    top = float(GAP)
    for row in rows:
        left = (width - len(row) * (ROOM_WIDTH + GAP) + GAP) / 2
        for number, room in enumerate(row):
            purpose, inner = lines_of(room)
            height = 2 * PADDING + LINE * (1 + len(purpose) + len(inner))
            places[room] = (left + number * (ROOM_WIDTH + GAP), top, height)
        top += max(places[room][2] for room in row) + 2 * GAP
    boxes = [part for room, place in places.items() for part in _box(room, *place)]
    arrows = [_arrow(places[above], places[below]) for above, below in lines]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top:.0f}" viewBox="0 0 {width} {top:.0f}">'
    )
    title = f"<title>The rooms of {PACKAGE}: lines run from a room down to what it imports</title>"
    paper = f'<rect width="{width}" height="{top:.0f}" rx="8" fill="#ffffff"/>'
    return "\n".join([head, title, f"<style>{STYLE}</style>", paper, *arrows, *boxes, "</svg>"]) + "\n"


def _box(room: str, left: float, top: float, height: float) -> list[str]:
    purpose, inner = lines_of(room)
    is_folder = (ROOT / room).is_dir()
    texts = [("name", room + ("/" if is_folder else ".py")), *(("", line) for line in purpose)]
    texts += [("inner", f"{each}/") for each in inner]
    parts = [f'<rect class="room" x="{left:.0f}" y="{top:.0f}" width="{ROOM_WIDTH}" height="{height:.0f}" rx="6"/>']
    for number, (kind, text) in enumerate(texts, start=1):
        y = top + PADDING + LINE * number - 4
        parts.append(f'<text class="{kind}" x="{left + PADDING:.0f}" y="{y:.0f}">{escape(text)}</text>')
    return parts


def _arrow(above: tuple[float, float, float], below: tuple[float, float, float]) -> str:
    x1, y1 = above[0] + ROOM_WIDTH / 2, above[1] + above[2]
    x2, y2 = below[0] + ROOM_WIDTH / 2, below[1]
    middle = (y1 + y2) / 2
    return (
        f'<path class="import" d="M{x1:.0f} {y1:.0f}C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2:.0f}"/>'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw())
