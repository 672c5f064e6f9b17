# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[object]], text_columns: int = 1) -> str:
    """Writes a table.

    Args:
        titles (sequence of `str`): of the columns.
        rows (sequence of sequences): a cell for each title.
        text_columns (`int`, *optional*, defaults to 1): the first columns, which hold text; the others hold numbers,
            which stand to the right.
    """
    lines = [titles, ["---"] * text_columns + ["---:"] * (len(titles) - text_columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)
