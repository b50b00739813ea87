"""Print trials as they end: a line each, and on a terminal a live table."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self, final

import optuna
from lightning_fabric import Fabric
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from tuplet.data.table import Split
from tuplet.metrics.names import metric_title
from tuplet.progress import without_bars
from tuplet.research.queue import Storage
from tuplet.research.tuning.outcome import Outcome
from tuplet.research.tuning.report import outcome, setting, value_text
from tuplet.research.tuning.search import Search, finished_trials, open_study, run_trials
from tuplet.training.run_folder import EpochReport, Run

if TYPE_CHECKING:
    from tuplet.research.tuning.search import Search


_SHOWN = 8


def say_trials(search: Search, *, fabric: Fabric, images: Split, go_on: str) -> tuple[Storage, optuna.Study]:
    """The search's storage and study, its trials ended and each printed as it did. Ctrl-C ends the process.

    Args:
        search: opened, or gone on with.
        fabric: launched; one rank.
        images: all of the config's.
        go_on: what to do after Ctrl-C, for whoever reads.

    Raises:
        InputError: (a ValueError) as `run_trials` does.
    """
    storage, study = open_study(search)
    print(f"\nsearch    {study.study_name} in {storage.name}")
    for path, values in search.space.items():
        print(f"          {path} = {values}")
    try:
        with without_bars(), LiveTable(search, study) as table:
            trials = run_trials(
                search, fabric=fabric, images=images, on_epoch=table.epoch, waiting=table.waiting
            )
            for trial in trials:
                table.ended(trial)
    except KeyboardInterrupt:
        print(f"\nstopped; the trial that ran is tried again: {go_on}", file=sys.stderr)
        sys.exit(130)
    return storage, study


def say_outcome(search: Search, outcome: Outcome) -> None:
    """Nothing; prints the best trials beside the recipe's own settings, and how to read them."""
    oracle = search.objective == "oracle"
    first, second = ("best epoch (oracle)", "last epoch") if oracle else ("validation", "test")
    table = Table(title=f"{metric_title(search.metric)}, %", title_justify="left", box=None, pad_edge=False)
    for column in ("trial", first, second, "gap", *(path.rsplit(".", 1)[-1] for path in search.space)):
        table.add_column(column, justify="right")
    rows = [(str(one.trial.number), one) for one in outcome.best]
    if outcome.recipe is not None:
        rows.append((f"recipe ({outcome.recipe.trial.number})", outcome.recipe))
    for name, one in rows:
        value = 100 * (one.trial.value or 0.0)
        test = "elsewhere" if one.test is None else f"{100 * one.test:.1f}"
        gap = "" if one.test is None else f"{value - 100 * one.test:+.1f}"
        settings = (value_text(one.trial.params[path]) for path in search.space)
        table.add_row(name, f"{value:.1f}", test, gap, *settings)
    print()
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
    if oracle:
        print("all on the test classes, on which the settings were chosen: new classes would show less")
    else:
        print("test classes chose nothing: they were measured when the search had ended")


@final
class LiveTable:
    """The search as it goes on, printed.

    Args:
        search: what is searched.
        study: in which other workers may end trials too.
        console: where it is printed; the standard output.
    """

    def __init__(self, search: Search, study: optuna.Study, console: Console | None = None) -> None:
        self._search, self._study = search, study
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._status = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._status = ""
            self._show()
            self._live.stop()

    def epoch(self, trial: optuna.Trial, run: Run, report: EpochReport) -> None:
        """Note an epoch that has ended."""
        self._status = f"trial {trial.number}: epoch {report.epoch} of {run.config.schedule.last_epoch}"
        self._show()

    def waiting(self, running: int) -> None:
        """Note that there is nothing left to begin, while other workers are at their trials."""
        self._status = f"waiting for {running} {'trials' if running > 1 else 'trial'} of other workers"
        if self._live is None:
            self._console.print(self._status)
        self._show()

    def ended(self, trial: FrozenTrial) -> None:
        """Print a trial that has ended here."""
        best = finished_trials(self._study)
        line = f"trial {trial.number:>3}  {outcome(trial):>9}  "
        line += ", ".join(setting(path, value) for path, value in trial.params.items())
        began, ended = trial.datetime_start, trial.datetime_complete
        if began is not None and ended is not None:
            line += f"  {(ended - began).total_seconds():,.0f} s"
        if best and best[0].number == trial.number:
            line += "  best so far"
        self._console.print(line)
        self._show()

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Group:
        search = self._search
        trials = self._study.get_trials(deepcopy=False)
        ended = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        flattering = " (oracle: test classes)" if search.objective == "oracle" else ""
        said = f"{ended} of {search.wanted} trials{flattering}; {self._status}"
        table = Table()
        for column in ("trial", metric_title(search.metric), *search.space):
            table.add_column(column.rsplit(".", 1)[-1], justify="right")
        for trial in finished_trials(self._study)[:_SHOWN]:
            values = (value_text(trial.params[path]) for path in search.space)
            table.add_row(str(trial.number), outcome(trial), *values)
        return Group(said, table)
