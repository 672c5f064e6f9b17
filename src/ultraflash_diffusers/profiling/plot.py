# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Plots as SVG text, by matplotlib: bars of stages, lines through points."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def bar_chart(title: str, values: Mapping[str, float], unit: str) -> str:
    """One horizontal bar for each name, with its value beside it.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("`values` is empty, expected at least one bar")
    figure, axes = _figure(title, height=0.8 + 0.35 * len(values))
    bars = axes.barh(list(values), list(values.values()))
    axes.bar_label(bars, fmt=f"%.2f {unit}", padding=4)
    axes.margins(x=0.2)
    axes.invert_yaxis()
    return _svg(figure)


def line_chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Lines through `(x, y)` points; both axes start at 0.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: there are no points.
    """
    if not any(lines.values()):
        raise ValueError("`lines` is empty, expected at least one point")
    figure, axes = _figure(title, height=3.6)
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
    return _svg(figure)


def _figure(title: str, height: float) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError("plots need matplotlib: pip install 'ultraflash_diffusers[benchmark]'") from error
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _svg(figure: Figure) -> str:
    import matplotlib

    text = io.StringIO()
    # words stay words, and equal figures give equal text
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ultraflash"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
