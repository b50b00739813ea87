"""Progress bars on a terminal, silence elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str) -> Iterator[T]:
    """The same items, with a bar on standard error while they last, if that is a terminal; one rank draws it.

    Args:
        items: what to go through.
        description: words before the bar.
    """
    if not sys.stderr.isatty() or os.environ.get("LOCAL_RANK", "0") != "0":
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    total = len(items) if isinstance(items, Sized) else None
    yield from bar(items, description, total=total, console=Console(stderr=True), transient=True)
