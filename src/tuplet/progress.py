"""Progress bars on a terminal, silence elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_silent = ContextVar("silent", default=False)


def track(items: Iterable[T], description: str) -> Iterator[T]:
    """The same items, with a bar on standard error while they last, if that is a terminal; one rank draws it.

    Args:
        items: what to go through.
        description: words before the bar.
    """
    if _silent.get() or not sys.stderr.isatty() or os.environ.get("LOCAL_RANK", "0") != "0":
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    total = len(items) if isinstance(items, Sized) else None
    yield from bar(items, description, total=total, console=Console(stderr=True), transient=True)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Draw no bars inside: something else is drawn on the terminal meanwhile."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)
