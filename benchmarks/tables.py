# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Markdown tables of measures, with what a reader needs to judge and repeat them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ultraflash_diffusers.tables import markdown_table

# title of a column: what it means, and how a row's measures show it
Columns = Mapping[str, tuple[str, str]]
Rows = Mapping[str, Mapping[str, float]]


def show(row: Mapping[str, float], form: str) -> str:
    """A cell's text: a dash for what a row does not have, or is perfect by definition."""
    try:
        text = form.format(**row)
    except KeyError:
        return "-"
    return "-" if text == "inf" else text


def markdown(first: str, rows: Rows, columns: Columns, notes: Sequence[str], facts: Mapping[str, object]) -> str:
    """The table.

    Args:
        first (`str`): title of the column of names.
        rows: measures by name.
        columns: what is shown of them.
        notes (sequence of `str`): lines between the columns' meanings and the facts.
        facts: the command, the machine and the like.
    """
    cells = [[name, *(show(row, form) for _, form in columns.values())] for name, row in rows.items()]
    lines = [
        markdown_table([first, *columns], cells),
        "",
        "Columns:",
        *(f"- {title}: {meaning}." for title, (meaning, _) in columns.items()),
    ]
    return "\n".join([*lines, *notes, "", *(f"- {key}: {value}" for key, value in facts.items())])
