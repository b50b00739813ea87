"""Epochs as they end, a line each; and what to say when they are stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tuplet.console import epoch_line

if TYPE_CHECKING:
    from tuplet.runs import EpochReport, Run


def say_epochs(epochs: Iterable[tuple[Run, EpochReport]], *, speaks: bool, go_on: str) -> int:
    """How many epochs there were, each printed below the folder of its run. Ctrl-C ends the process.

    Args:
        epochs: of one run after the other.
        speaks: whether this rank prints.
        go_on: what to do after Ctrl-C, or where a file cannot be written, for whoever reads.
    """
    told: Path | None = None
    number = 0
    try:
        for run, epoch in epochs:
            number += 1
            if speaks and run.folder != told:
                told = run.folder
                print(f"\nrun       {run.folder}", flush=True)
            if speaks:
                print(epoch_line(epoch, run.config.schedule.last_epoch), flush=True)
    except OSError as error:
        error.add_note(go_on)
        raise
    except KeyboardInterrupt:
        if speaks:
            print(f"\nstopped; {go_on}", file=sys.stderr)
        sys.exit(130)
    return number
