"""`tuplet tune RECIPE`: search the settings of a recipe, and print trials as they end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import final

import optuna
from lightning_fabric import Fabric
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from tuplet.cli.console import print_compute_notes, same_command_resumes, with_resume_hint
from tuplet.cli.options import TuneArguments
from tuplet.config import RunConfig
from tuplet.config.overrides import with_absolute_paths
from tuplet.data.load import load_data
from tuplet.data.splits import Split
from tuplet.metrics.names import metric_title
from tuplet.progress import without_bars
from tuplet.research.queue import Queue
from tuplet.research.tuning.report import (
    SearchResult,
    result_of,
    setting,
    trial_outcome,
    value_text,
    write_result,
    write_search_report,
)
from tuplet.research.tuning.search import Search, finished_trials, open_search, require_trainable, run_trials
from tuplet.research.tuning.space import Dimension, Space, dimension, paper_space, wide_space
from tuplet.training.devices import launch
from tuplet.training.run_folder import EpochReport, Run
from tuplet.training.tracking import Tracking

_NUM_SHOWN = 8
"""Best trials in the live table."""


def tune(chosen: TuneArguments, command: str) -> None:
    """Search the settings of a recipe, and write the best ones and a report."""
    search = _search(chosen)
    fabric = launch(search.config, alone=True)
    images = load_data(search.config, decode_test=search.objective == "oracle")
    print_compute_notes(search.config, fabric, images.train.num_classes)
    how = same_command_resumes(search.folder)
    require_trainable(search, images)
    with Tracking(chosen.track) as tracking:
        queue = print_trials(search, fabric=fabric, images=images, how_to_resume=how, tracking=tracking)
    found = result_of(search, queue.study, fabric=fabric, images=images)
    file = write_result(search, found)
    write_search_report(search, queue.study, found, storage=queue.address, command=command)
    tracking.files(search.folder, [search.folder / "report.html", file])
    print_result(search, found)
    print(f"\nrecipe    {file}")
    print(f"report    {search.folder / 'report.html'}")
    train = f"tuplet train --config {shlex.quote(str(file))} --seeds 5"
    print(f"\nTry next, for a number with an interval:\n  {train}")


def _search(chosen: TuneArguments) -> Search:
    config = with_absolute_paths(chosen.config)
    suffix = "-oracle" if chosen.objective == "oracle" else ""
    return Search(
        config,
        _space(chosen.space, config),
        chosen.to or Path("runs") / f"tune-{config.name}{suffix}",
        num_trials=chosen.trials,
        objective=chosen.objective,
        metric=chosen.metric,
        num_folds=chosen.folds,
        sampler=chosen.sampler,
        pruner=chosen.pruner,
        seed=chosen.sampler_seed,
        storage=chosen.storage,
        study=chosen.study,
        heartbeat_seconds=chosen.heartbeat_seconds,
    )


def _space(asked: Sequence[str], config: RunConfig) -> Space:
    """Return the spaces that were asked for; later ones replace earlier ones."""
    space: dict[str, Dimension] = {}
    for text in asked or ("wide",):
        if text in ("wide", "paper"):
            space |= wide_space(config) if text == "wide" else paper_space(config)
        else:
            path, values = dimension(text, config)
            space[path] = values
    return space


def print_trials(
    search: Search, *, fabric: Fabric, images: Split, how_to_resume: str, tracking: Tracking
) -> Queue:
    """Run the trials of a search and print each as it ends.

    Args:
        search: a new one, or one to resume.
        fabric: launched; one rank.
        images: all of the config's.
        how_to_resume: after Ctrl-C.
        tracking: gets the epochs of every trial.

    Returns: the search's queue.
    """
    queue = open_search(search)
    print(f"\nsearch    {queue.study.study_name} in {queue.address}")
    for path, values in search.space.items():
        print(f"          {path} = {values}")
    again = with_resume_hint(f"the trial that was running is run again: {how_to_resume}")
    with again, without_bars(), LiveTable(search, queue.study) as table:

        def on_epoch(trial: optuna.Trial, run: Run, report: EpochReport) -> None:
            table.epoch(trial, run, report)
            tracking.epoch(run, report)

        trials = run_trials(search, fabric=fabric, images=images, on_epoch=on_epoch, waiting=table.waiting)
        for trial in trials:
            table.ended(trial)
    return queue


def print_result(search: Search, found: SearchResult) -> None:
    """Print the best trials beside the recipe's own settings, and how to read them."""
    oracle = search.objective == "oracle"
    first, second = ("best epoch (oracle)", "last epoch") if oracle else ("validation", "test")
    table = Table(title=f"{metric_title(search.metric)}, %", title_justify="left", box=None, pad_edge=False)
    for column in ("trial", first, second, "gap", *(path.rsplit(".", 1)[-1] for path in search.space)):
        table.add_column(column, justify="right")
    rows = [(str(one.trial.number), one) for one in found.best]
    if found.recipe is not None:
        rows.append((f"recipe ({found.recipe.trial.number})", found.recipe))
    for name, one in rows:
        value = 100 * (one.trial.value or 0.0)
        test = "elsewhere" if one.test is None else f"{100 * one.test:.1f}"
        gap = "" if one.test is None else f"{value - 100 * one.test:+z.1f}"
        settings = (value_text(one.trial.params[path]) for path in search.space)
        table.add_row(name, f"{value:.1f}", test, gap, *settings)
    print()
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
    if oracle:
        print("all on the test classes, which also chose the settings: new classes would show less")
    else:
        print("the test classes chose nothing: they were measured after the search had ended")


@final
class LiveTable:
    """The progress of a search, printed.

    Args:
        search: in progress.
        study: to which other workers may add trials too.
        console: to print on; the default is the standard output.
    """

    def __init__(self, search: Search, study: optuna.Study, console: Console | None = None) -> None:
        self._search, self._study = search, study
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._status = ""

    def __enter__(self) -> LiveTable:
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
        """Show an epoch that has ended."""
        self._status = f"trial {trial.number}: epoch {report.epoch} of {run.config.schedule.last_epoch}"
        self._show()

    def waiting(self, running: int) -> None:
        """Show that all trials have started and other workers still run some."""
        self._status = f"waiting for {running} {'trials' if running > 1 else 'trial'} of other workers"
        if self._live is None:
            self._console.print(self._status)
        self._show()

    def ended(self, trial: FrozenTrial) -> None:
        """Print a trial that has ended here."""
        best = finished_trials(self._study)
        line = f"trial {trial.number:>3}  {trial_outcome(trial):>9}  "
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
        oracle = " (oracle: test classes)" if search.objective == "oracle" else ""
        table = Table()
        for column in ("trial", metric_title(search.metric), *search.space):
            table.add_column(column.rsplit(".", 1)[-1], justify="right")
        for trial in finished_trials(self._study)[:_NUM_SHOWN]:
            values = (value_text(trial.params[path]) for path in search.space)
            table.add_row(str(trial.number), trial_outcome(trial), *values)
        return Group(f"{ended} of {search.wanted} trials{oracle}; {self._status}", table)
