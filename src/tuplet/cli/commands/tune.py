"""`tuplet tune RECIPE`: search the settings of a recipe."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal, Self, final

import tyro

from tuplet.cli.arguments import parse
from tuplet.cli.commands.base_config import base_config, require_extra, require_root
from tuplet.config import RunConfig
from tuplet.config.overrides import with_absolute_paths
from tuplet.metrics.names import metric_title
from tuplet.progress import without_bars

if TYPE_CHECKING:
    import optuna
    from lightning_fabric import Fabric
    from optuna.trial import FrozenTrial
    from rich.console import Console, Group

    from tuplet.data.splits import Split
    from tuplet.research.queue import Queue
    from tuplet.research.tuning.report import SearchResult
    from tuplet.research.tuning.search import Search
    from tuplet.research.tuning.space import Space
    from tuplet.training.run_folder import EpochReport, Run


_USAGE = """\
usage: tuplet tune RECIPE|--config FILE [--trials N] [--space ...] [--sampler gp|tpe|random|grid]
                   [--pruner none|median|hyperband] [--objective validation|oracle] [--to FOLDER]
                   [--loss NAME] [--field value ...]

Searches settings by Bayesian optimisation. A trial is a training on part of the training classes, measured
on the others; test classes are looked at when the search has ended, and choose nothing. Ends with the best
settings as a recipe (TO/best.yaml) and a report (TO/report.html).

  --space wide                     the loss's own settings over wide ranges (the default)
  --space paper                    what the study searched for its recipes (Tables 5 and 6)
  --space loss.tau=8:64:log        one field over a range; :log searches its logarithm evenly
  --space loss.alpha=0.5,1,2       one field over a list; --space may be given several times

The same command goes on where it was stopped. Started several times, at once, on one machine or with
--storage postgresql://USER:PASSWORD@HOST/DATABASE on many, it is one search with several workers.

tuplet recipes lists the recipes; tuplet tune RECIPE --help lists every field."""


@dataclass(frozen=True)
class TuneArguments:
    """Search the settings of a recipe.

    Ends with the best settings in TO/best.yaml, for tuplet train --config, and a report in TO/report.html.
    The option --loss NAME takes another loss than hist.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    trials: int = 60
    """In all, over all workers, >= 1; more than before goes on with a search that had ended."""
    space: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """wide, paper, PATH=VALUE,VALUE,..., PATH=LOW:HIGH or PATH=LOW:HIGH:log; may be given several times."""
    sampler: Literal["gp", "tpe", "random", "grid"] = "gp"
    """gp: Gaussian process; tpe: tree-structured Parzen estimators; random; grid: every combination."""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """What ends poor trials early, by their epochs."""
    objective: Literal["validation", "oracle"] = "validation"
    """validation: the last epoch on validation classes; oracle: the best epoch on the test classes
    themselves, as the study searched. An oracle's scores flatter, and are labelled so."""
    metric: str = "recall_at_1"
    """What is made large: recall_at_K, map_at_r or r_precision."""
    folds: int = 1
    """Folds of validation classes whose mean counts, 1..evaluation.validation_folds, a training each."""
    sampler_seed: int = 0
    """Of the sampler, >= 0; the trainings have the recipe's `seed`."""
    storage: str | None = None
    """Address of a database that workers share; the default is an SQLite file, TO/study.db."""
    study: str | None = None
    """Name of the search in the storage; the default is NAME-OBJECTIVE."""
    heartbeat_seconds: int = 20
    """A worker that was silent for three times as long is lost, and its trial is tried again, >= 1."""
    to: Path | None = None
    """Folder of the trials and of what was found; the default is runs/tune-NAME."""


def tune(arguments: list[str]) -> None:
    """Search the settings of a recipe, and write the best ones and a report."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return
    config, rest, program = base_config(arguments, "tuplet tune")
    chosen = parse(TuneArguments, TuneArguments(config), rest, program)
    require_root(chosen.config)
    require_extra("tune", "optuna", "plotly", "psycopg")
    search = _search(chosen)
    from tuplet.data.load import load_data
    from tuplet.research.tuning.report import result_of, write_result, write_search_report
    from tuplet.research.tuning.search import require_trainable
    from tuplet.training.devices import launch

    fabric = launch(search.config)
    images = load_data(search.config)
    require_trainable(search, images)
    queue = say_trials(
        search, fabric=fabric, images=images, go_on=f"the same command with --to {search.folder} goes on"
    )
    outcome = result_of(search, queue.study, fabric=fabric, images=images)
    file = write_result(search, outcome)
    command = shlex.join(["tuplet", "tune", *arguments])
    write_search_report(search, queue.study, outcome, storage=queue.address, command=command)
    say_outcome(search, outcome)
    print(f"\nrecipe    {file}")
    print(f"report    {search.folder / 'report.html'}")
    print(f"\nTry next, for a number with an interval:\n  tuplet train --config {file} --seeds 5")


def _search(chosen: TuneArguments) -> Search:
    from tuplet.research.tuning.search import Search

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
    """The spaces that were asked for, later ones in place of earlier ones."""
    from tuplet.research.tuning.space import Dimension, dimension, paper_space, wide_space

    space: dict[str, Dimension] = {}
    for text in asked or ("wide",):
        if text in ("wide", "paper"):
            space |= wide_space(config) if text == "wide" else paper_space(config)
        else:
            path, values = dimension(text, config)
            space[path] = values
    return space


_SHOWN = 8


def say_trials(search: Search, *, fabric: Fabric, images: Split, go_on: str) -> Queue:
    """The search's queue, its trials ended and each printed as it did. Ctrl-C ends the process.

    Args:
        search: opened, or gone on with.
        fabric: launched; one rank.
        images: all of the config's.
        go_on: what to do after Ctrl-C, for whoever reads.

    Raises:
        InputError: (a ValueError) as `run_trials` does.
    """
    from tuplet.research.tuning.search import open_search, run_trials

    queue = open_search(search)
    print(f"\nsearch    {queue.study.study_name} in {queue.address}")
    for path, values in search.space.items():
        print(f"          {path} = {values}")
    try:
        with without_bars(), LiveTable(search, queue.study) as table:
            trials = run_trials(
                search, fabric=fabric, images=images, on_epoch=table.epoch, waiting=table.waiting
            )
            for trial in trials:
                table.ended(trial)
    except KeyboardInterrupt:
        print(f"\nstopped; the trial that ran is tried again: {go_on}", file=sys.stderr)
        sys.exit(130)
    return queue


def say_outcome(search: Search, outcome: SearchResult) -> None:
    """Nothing; prints the best trials beside the recipe's own settings, and how to read them."""
    from rich.console import Console
    from rich.table import Table

    from tuplet.research.tuning.report import value_text

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
        from rich.console import Console
        from rich.live import Live

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
        from tuplet.research.tuning.report import setting, trial_outcome
        from tuplet.research.tuning.search import finished_trials

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
        from optuna.trial import TrialState
        from rich.console import Group
        from rich.table import Table

        from tuplet.research.tuning.report import trial_outcome, value_text
        from tuplet.research.tuning.search import finished_trials

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
            table.add_row(str(trial.number), trial_outcome(trial), *values)
        return Group(said, table)
