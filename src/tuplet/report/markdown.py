"""Tables of Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table_head(titles: Sequence[str], alignment: str) -> list[str]:
    """Return the first two lines of a table: the titles of its columns, and how these are aligned.

    Args:
        titles: one a column.
        alignment: a letter a column: l for text, flush left; r for numbers, flush right.
    """
    rules = {"l": "---", "r": "---:"}
    cells = [rules[letter] for _, letter in zip(titles, alignment, strict=True)]
    return [table_row(titles), table_row(cells)]


def table_row(cells: Sequence[str]) -> str:
    """Return one row of a table."""
    return f"| {' | '.join(cells)} |"
