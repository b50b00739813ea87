"""`tuplet tune RECIPE`: search the settings of a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from tuplet.cli.arguments import parse
from tuplet.cli.commands.base_config import base_config, require_extra, require_root
from tuplet.config import RunConfig
from tuplet.config.overrides import with_absolute_paths

if TYPE_CHECKING:
    from tuplet.research.tuning.search import Search
    from tuplet.research.tuning.space import Space


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
    from tuplet.cli.trials import say_outcome, say_trials
    from tuplet.data.load import load_data
    from tuplet.research.tuning.outcome import outcome_of, write_outcome
    from tuplet.research.tuning.report import write_search_report
    from tuplet.training.devices import launch

    fabric = launch(search.config)
    images = load_data(search.config)
    storage, study = say_trials(
        search, fabric=fabric, images=images, go_on=f"the same command with --to {search.folder} goes on"
    )
    outcome = outcome_of(search, study, fabric=fabric, images=images)
    file = write_outcome(search, outcome)
    command = shlex.join(["tuplet", "tune", *arguments])
    write_search_report(search, study, outcome, storage=storage.name, command=command)
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
    from tuplet.research.tuning.space import Dimension, dimension
    from tuplet.research.tuning.spaces import study_space, wide_space

    space: dict[str, Dimension] = {}
    for text in asked or ("wide",):
        if text in ("wide", "paper"):
            space |= wide_space(config) if text == "wide" else study_space(config)
        else:
            path, values = dimension(text, config)
            space[path] = values
    return space
