"""Progress bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 30.0

_silent = ContextVar("silent", default=False)


def track(items: Iterable[T], description: str) -> Iterator[T]:
    """The same items, and on standard error how far they have come, said by one rank.

    On a terminal that is a bar while they last, elsewhere a line every half a minute.

    Args:
        items: what to go through.
        description: words before it.
    """
    if _silent.get() or os.environ.get("LOCAL_RANK", "0") != "0":
        yield from items
        return
    if not sys.stderr.isatty():
        yield from _with_lines(items, description)
        return
    from rich.console import Console
    from rich.progress import track as bar

    total = len(items) if isinstance(items, Sized) else None
    yield from bar(items, description, total=total, console=Console(stderr=True), transient=True)


def _with_lines(items: Iterable[T], description: str) -> Iterator[T]:
    told = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            far = f"{100 * done / len(items):.0f} %" if isinstance(items, Sized) else f"{done:,}"
            sys.stderr.write(f"{description}: {far}\n")
            sys.stderr.flush()
        yield item


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Draw no bars inside: something else is drawn on the terminal meanwhile."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)
