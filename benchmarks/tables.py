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
    return explained(markdown_table([first, *columns], cells), columns, notes, facts)


def grouped(
    titles: tuple[str, str],
    groups: Mapping[str, Rows],
    columns: Columns,
    notes: Sequence[str],
    facts: Mapping[str, object],
) -> str:
    """A table of groups of rows, a column for the group's name before that of the row's; columns that no row fills are
    left out."""
    everything = [(group, name, row) for group, rows in groups.items() for name, row in rows.items()]
    filled = {
        title: column
        for title, column in columns.items()
        if any(show(row, column[1]) != "-" for _, _, row in everything)
    }
    cells = [[group, name, *(show(row, form) for _, form in filled.values())] for group, name, row in everything]
    return explained(markdown_table([*titles, *filled], cells, text_columns=2), filled, notes, facts)


def explained(table: str, columns: Columns, notes: Sequence[str], facts: Mapping[str, object]) -> str:
    """A table with what its columns mean, notes and facts under it."""
    meanings = [f"- {title}: {meaning}." for title, (meaning, _) in columns.items()]
    circumstances = [f"- {key}: {value}" for key, value in facts.items()]
    return "\n".join([table, "", "Columns:", *meanings, *notes, "", *circumstances])
