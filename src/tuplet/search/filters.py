"""SQL conditions on the rows of an index, written so that no name in them can break out of its quotes."""

from __future__ import annotations

import re
from collections.abc import Collection

from tuplet.errors import InputError

MOST_STARS, MOST_ONES = 8, 64
"""Of a path's pattern: places with *, and signs that stand for one character."""

_PART = re.compile(r"(?P<wild>[*?]+)|\[(?P<inside>!?+.[^\]]*)\]|.", re.DOTALL)


def label_is(label: str) -> str:
    """The condition that a picture has this label."""
    return f"label = {quoted(label)}"


def path_like(pattern: str) -> str:
    """The condition that a picture's whole path fits a pattern of the shell.

    Args:
        pattern: * is any text, slashes too; ? one character; [abc] and [a-z] one of these, [!abc] one of the
            others; anything else is itself. One that begins with neither / nor * may begin anywhere behind a
            slash.

    Raises:
        InputError: it has so many * or ? that a search by it would take very long.
    """
    anywhere = "" if pattern.startswith(("/", "*")) else ".*/"
    return f"regexp_like(path, {quoted(f'(?s)^{anywhere}{_expression(pattern)}$')})"


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
    parts, stars, ones = [], 0, 0
    for found in _PART.finditer(pattern):
        wild, inside = found["wild"] or "", found["inside"]
        # In whatever order they stand, ? and * in a row are any text of so many characters or more.
        stars, ones = stars + ("*" in wild), ones + wild.count("?") + (inside is not None)
        if inside is not None:
            parts.append(_one_of(inside))
        elif wild:
            parts.append("." * wild.count("?") + (".*" if "*" in wild else ""))
        else:
            parts.append(re.escape(found[0]))
    if stars > MOST_STARS or ones > MOST_ONES:
        raise InputError(
            f"the path's pattern has {stars} * (in a row they count once) and {ones} ? or [...]; want at most"
            f" {MOST_STARS} and {MOST_ONES}"
        )
    return "".join(parts)


def _one_of(inside: str) -> str:
    negated = inside.startswith("!")
    members = re.sub(r"([\\\[\]^&~])", r"\\\1", inside[negated:])
    return f"[{'^' if negated else ''}{members}]"
