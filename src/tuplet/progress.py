"""Progress on standard error: a bar on a terminal, elsewhere a line every half a minute."""

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


def is_first_of_machine() -> bool:
    """Return whether this process is the first of its machine in a run of several, or alone.

    torchrun and Fabric tell a process its number on the machine by one variable, Slurm by another.
    """
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def is_first_process() -> bool:
    """Return whether this process is the first of all machines in a run of several, or alone."""
    machine = os.environ.get("GROUP_RANK", os.environ.get("NODE_RANK", os.environ.get("SLURM_NODEID", "0")))
    return is_first_of_machine() and machine == "0"


def track(items: Iterable[T], description: str) -> Iterator[T]:
    """Yield the items, and show how many are done; only the first rank of a machine shows it.

    Args:
        items: what to go through.
        description: words before the progress.
    """
    if _silent.get() or not is_first_of_machine():
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
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            share = f"{100 * done / len(items):.0f} %" if isinstance(items, Sized) else f"{done:,}"
            sys.stderr.write(f"{description}: {share}\n")
            sys.stderr.flush()
        yield item


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Show no progress inside the block, such as while something else is drawn on the terminal."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)
