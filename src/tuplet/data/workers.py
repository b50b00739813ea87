"""What every process that decodes images does first."""

from __future__ import annotations

import signal
import sys
from types import TracebackType


def prepare_worker(_: int) -> None:
    """Nothing; Ctrl-C then ends only the main process, which ends its workers, and no worker prints of it.

    Args:
        _: number of the worker, as torch's DataLoader hands it to its `worker_init_fn`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _say_all_but_lost_connections


def _say_all_but_lost_connections(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    # A main process that was interrupted in taking a batch leaves the thread that handed it over alone.
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, traceback)
