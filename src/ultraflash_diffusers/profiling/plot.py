# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Plots as SVG text: bars of stages, lines through points. They need no plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_COLORS = ("#3b6ea5", "#d97b29", "#4a9a5b", "#b5483f", "#7c62a3", "#8a6b58", "#c46ca5", "#777777", "#a8a23b")
_WIDTH, _HEIGHT, _MARGIN = 720, 360, 64


def bar_chart(title: str, values: Mapping[str, float], unit: str) -> str:
    """One horizontal bar for each name, with its value beside it.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("`values` is empty, expected at least one bar")
    largest = max(values.values()) or 1.0
    parts = []
    for index, (name, value) in enumerate(values.items()):
        top, length = 40 + 28 * index, 400 * value / largest
        parts.append(_text(170, top + 15, name, "end"))
        parts.append(f'<rect x="180" y="{top}" width="{length:.1f}" height="20" fill="{_color(index)}"/>')
        parts.append(_text(188 + length, top + 15, f"{value:.2f} {unit}"))
    return _document(title, 56 + 28 * len(values), parts)


def line_chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Lines through `(x, y)` points; both axes start at 0.

    Raises:
        ValueError: there are no points.
    """
    points = [point for line in lines.values() for point in line]
    if not points:
        raise ValueError("`lines` is empty, expected at least one point")
    x_end, y_end = (1.05 * (max(point[axis] for point in points) or 1.0) for axis in (0, 1))
    bottom, right = _HEIGHT - _MARGIN, _WIDTH - 24

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        return _MARGIN + (right - _MARGIN) * x / x_end, bottom - (bottom - 40) * y / y_end

    parts = [f'<path d="M{_MARGIN} 40V{bottom}H{right}" fill="none" stroke="#333"/>']
    for share in (0.25, 0.5, 0.75, 1.0):
        x, y = place((share * x_end, share * y_end))
        parts.append(_text(x, bottom + 18, f"{share * x_end:.3g}", "middle"))
        parts.append(_text(_MARGIN - 6, y + 4, f"{share * y_end:.3g}", "end"))
    parts.append(_text((_MARGIN + right) / 2, bottom + 42, x_label, "middle"))
    parts.append(_text(8, 34, y_label))
    for index, (name, line) in enumerate(lines.items()):
        placed = [place(point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_color(index)}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{_color(index)}"/>' for x, y in placed]
        parts.append(f'<rect x="{right - 150}" y="{44 + 18 * index}" width="10" height="10" fill="{_color(index)}"/>')
        parts.append(_text(right - 134, 53 + 18 * index, name))
    return _document(title, _HEIGHT, parts)


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _document(title: str, height: int, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, f'<g font-size="14">{_text(8, 18, title)}</g>', *parts, "</svg>\n"])
