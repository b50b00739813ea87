"""Progress bars on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The same items, with a bar on standard error while they last, if that is a terminal.

    Args:
        items: what to go through.
        description: words before the bar.
        total: number of items; len(items) where it is known.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    total = total if total is not None or not isinstance(items, Sized) else len(items)
    yield from bar(items, description, total=total, console=Console(stderr=True), transient=True)
