"""Command-line arguments from types, by tyro, with its errors as one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from tuplet.errors import InputError

A = TypeVar("A")


def parse(kind: Callable[..., A], default: A, arguments: Sequence[str], program: str) -> A:
    """The arguments as tyro reads them from the types; its errors as one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            read: Any = tyro.cli
            parsed: A = read(kind, default=default, args=list(arguments), prog=program)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(f"{_one_line(said.getvalue())}; {program} --help lists what it takes") from None
    return parsed


def no_more(rest: Sequence[str], usage: str) -> None:
    """Nothing; raises InputError where arguments are left over."""
    if rest:
        raise InputError(f"{rest[0]!r} is one argument too many; want {usage}")


def _one_line(box: str) -> str:
    """What tyro's box says, without the box: the message, and the option that it thinks was meant."""
    sections: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        text = line.strip(" │")
        # Its title is followed by a line, or stands in one, depending on the terminal's encoding.
        if text.startswith(("╭", "╰")) or (text and not text.strip("─-")):
            sections.append([])
        elif text:
            sections[-1].append(text)
    sections += [[], []]
    hint = f", perhaps {sections[2][1]}" if sections[2][:1] == ["Perhaps you meant:"] else ""
    said = re.sub(r"^Error parsing [\w.]+: (?=[\w.]+ is )", "", " ".join(sections[1]))
    return (said or "the arguments cannot be used") + hint
