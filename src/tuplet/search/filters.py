"""SQL conditions on the rows of an index, written so that no name in them can break out of its quotes."""

from __future__ import annotations

import re
from collections.abc import Collection


def label_is(label: str) -> str:
    """The condition that a picture has this label."""
    return f"label = {quoted(label)}"


def path_like(pattern: str) -> str:
    """The condition that a picture's whole path fits a pattern of the shell.

    Args:
        pattern: * is any text, slashes too; ? one character; [abc] and [a-z] one of these, [!abc] one of the
            others; anything else is itself. One that begins with neither / nor * may begin anywhere behind a
            slash.
    """
    if not pattern.startswith(("/", "*")):
        return path_like(f"*/{pattern}")
    return f"regexp_like(path, {quoted(_expression(pattern))})"


def any_of(column: str, values: Collection[str]) -> str:
    """The condition that a column has one of some texts."""
    return f"{column} IN ({', '.join(map(quoted, sorted(values)))})" if values else "FALSE"


def all_of(*conditions: str | None) -> str | None:
    """All conditions together, each in brackets; None where there are none."""
    given = [f"({condition})" for condition in conditions if condition is not None]
    return " AND ".join(given) or None


def quoted(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def _expression(pattern: str) -> str:
    """The regular expression of a shell's pattern."""
    parts, place = [], 0
    while place < len(pattern):
        char, place = pattern[place], place + 1
        closing = pattern.find("]", place + 1 + pattern[place : place + 1].count("!")) if char == "[" else -1
        if char in "*?":
            parts.append(".*" if char == "*" else ".")
        elif closing > 0:
            parts.append(_one_of(pattern[place:closing]))
            place = closing + 1
        else:
            parts.append(re.escape(char))
    return f"(?s)^{''.join(parts)}$"


def _one_of(inside: str) -> str:
    negated = inside.startswith("!")
    members = re.sub(r"([\\\[\]^&~])", r"\\\1", inside[negated:])
    return f"[{'^' if negated else ''}{members}]"
