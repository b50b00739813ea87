"""The result of a search: the best settings as a recipe, their scores on the test classes, an HTML page."""

from __future__ import annotations

import json
import shlex
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from lightning_fabric import Fabric
from markupsafe import Markup
from optuna import visualization
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.data.files import write_atomically
from tuplet.data.splits import Split
from tuplet.evaluation.evaluate import evaluate
from tuplet.metrics.names import metric_title
from tuplet.report.pages import page_template, write_page
from tuplet.research.queue import first_number
from tuplet.research.tuning.search import Search, ended_early, finished_trials, no_value_error
from tuplet.research.tuning.space import Value
from tuplet.training.experiment import embed_images
from tuplet.training.run_folder import Run, write_config

NUM_TESTED = 5


@dataclass(frozen=True)
class TestedTrial:
    """A trial, and what its network measures on the test classes; never used to select.

    Attributes:
        trial: with its value.
        test: the metric on the test classes at the last epoch, the mean over folds; None where the run is on
            another machine.
    """

    __test__ = False  # no test, whatever pytest makes of its name

    trial: FrozenTrial
    test: float | None


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        trials: all that ended, in the order of their numbers.
        best: the best few, the best first.
        recipe: the recipe's own settings, where they were tried.
        config: the search's config with the best trial's settings; of an oracle under a name that says so.
    """

    trials: tuple[FrozenTrial, ...]
    best: tuple[TestedTrial, ...]
    recipe: TestedTrial | None
    config: RunConfig

    @property
    def tested(self) -> list[TestedTrial]:
        """The best few, then the recipe's own settings where they are none of those."""
        numbers = [tested.trial.number for tested in self.best]
        more = [self.recipe] if self.recipe and self.recipe.trial.number not in numbers else []
        return [*self.best, *more]


def result_of(search: Search, study: optuna.Study, *, fabric: Fabric, images: Split) -> SearchResult:
    """Collect the result of a search; test images are embedded here for the first time.

    Args:
        search: its trials have ended.
        study: theirs.
        fabric: launched; one rank.
        images: all images of the config.
    Raises: SettingsError: no trial has a value.
    """
    finished = finished_trials(study)
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    if not finished:
        raise no_value_error(study, "the search", subject="--space")
    best = finished[:NUM_TESTED]
    recipe = next((trial for trial in finished if "recipe" in trial.user_attrs), None)
    wanted = {trial.number: trial for trial in [*best, *([recipe] if recipe else [])]}
    tested = {
        number: TestedTrial(trial, _test_score(search, trial, fabric, images))
        for number, trial in wanted.items()
    }
    # Whatever is trained with settings of an oracle carries its name.
    name = {"name": f"{search.config.name}-oracle"} if search.objective == "oracle" else {}
    return SearchResult(
        tuple(ended),
        tuple(tested[trial.number] for trial in best),
        tested[recipe.number] if recipe else None,
        override(search.config, {**best[0].params, **name}),
    )


def write_result(search: Search, result: SearchResult) -> Path:
    """Write best.yaml, the recipe of the best settings, and trials.json into the search's folder."""
    test = {tested.trial.number: tested.test for tested in result.tested}
    rows = [
        {
            "number": trial.number,
            "objective": search.objective,
            "value": trial.value,
            "test": test.get(trial.number),
            "settings": trial.params,
            **{key: value for key, value in trial.user_attrs.items() if key not in ("folder", "host")},
        }
        for trial in result.trials
    ]
    file = search.folder / "best.yaml"
    best = result.best[0].trial
    where = "the test classes themselves: an oracle" if search.objective == "oracle" else "validation classes"
    head = f"# Trial {best.number}, the best of {len(result.trials)} by {search.metric} on {where}.\n"
    write_atomically(search.folder / "trials.json", (json.dumps(rows, indent=1) + "\n").encode())
    write_atomically(file, (head + write_config(result.config)).encode())
    return file


def _test_score(search: Search, trial: FrozenTrial, fabric: Fabric, images: Split) -> float | None:
    """Return the mean over folds of what the trial's last networks measure on the test images."""
    scores = []
    for fold in range(search.num_folds):
        folder = search.trial_folder(first_number(trial), fold)
        if not folder.exists():
            return None
        run = Run(folder)
        last = run.reports()[-1].evaluation
        if search.objective == "oracle" and last is not None:
            scores.append(last.retrieval[search.metric])
            continue
        queries, gallery = embed_images(run, images, fabric)
        measured = evaluate(queries, search.config.evaluation, clustering=False, gallery=gallery)
        scores.append(measured.retrieval[search.metric])
    return statistics.fmean(scores)


def write_search_report(
    search: Search, study: optuna.Study, result: SearchResult, *, storage: str, command: str
) -> None:
    """Write report.html into the search's folder; it needs no other file and no network.

    Args:
        search: whose trials have ended.
        study: theirs.
        result: of the search.
        storage: its name, without a password.
        command: that wrote the page.
    """
    trials = result.trials
    oracle = search.objective == "oracle"
    seconds = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)
    folds = f"{search.num_folds} {'folds' if search.num_folds > 1 else 'fold'} of validation classes"
    page = page_template("tuning.html").render(
        name=search.config.name,
        search=search,
        study=study.study_name,
        oracle=oracle,
        objective="best epoch on the test classes" if oracle else f"{folds}, last epoch",
        metric=metric_title(search.metric),
        trials=len(trials),
        complete=sum(not ended_early(trial) for trial in trials),
        pruned=sum(map(ended_early, trials)),
        diverged=[trial.number for trial in trials if "diverged" in trial.user_attrs],
        impossible=[trial.number for trial in trials if "impossible" in trial.user_attrs],
        failed={trial.number: trial.user_attrs["failed"] for trial in trials if "failed" in trial.user_attrs},
        hours=f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min",
        best=result.best,
        recipe=result.recipe,
        rows=result.tested,
        paths=list(search.space),
        percent=lambda value: f"{100 * value:.1f} %",
        text=value_text,
        train=f"tuplet train --config {shlex.quote(str(search.folder / 'best.yaml'))} --seeds 5",
        figures=_figures(search, trials),
        plotly=Markup(get_plotlyjs()),
        storage=storage,
        command=command,
    )
    write_page(search.folder / "report.html", page)


def setting(path: str, value: Value) -> str:
    """Return a setting in a few characters: the last part of its path and its value."""
    return f"{path.rsplit('.', 1)[-1]} {value_text(value)}"


def value_text(value: Value) -> str:
    """Return a value with as many digits as a person reads."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def trial_outcome(trial: FrozenTrial) -> str:
    """Return the value of a trial in percent, or a word for what happened to it."""
    for word in ("diverged", "impossible", "failed"):
        if word in trial.user_attrs:
            return word
    if ended_early(trial):
        return "ended early"
    return "failed" if trial.value is None else f"{100 * trial.value:.2f} %"


_BLUE = "#2a8ac4"

# Grey words on a clear ground can be read by day and by night; Optuna's own colours are for one of them.
_LAYOUT: dict[str, Any] = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(128,128,128,0.08)",
    "font": {"color": "#7d858e", "family": "system-ui, sans-serif", "size": 13},
    "colorway": [_BLUE, "#d9642b"],
    "title": {"text": ""},
    "margin": {"l": 60, "r": 30, "t": 30, "b": 50},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    "autosize": True,
    "width": None,
}


@dataclass(frozen=True)
class _Plot:
    """A figure of Optuna's: over the width of the page if it is wide, with a colour for each trial."""

    title: str
    remark: str
    draw: Callable[[optuna.Study], Any]
    wide: bool = False


def _figures(search: Search, trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """Return title, remark and figure of each plot, without those for which there are too few trials."""
    measured = f"{metric_title(search.metric)}, %{' (oracle)' * (search.objective == 'oracle')}"
    study = _study_of_report(search, trials)
    plots = [
        _Plot(
            "History",
            "A point a trial; the line is the best so far.",
            partial(visualization.plot_optimization_history, target_name=measured),
        ),
        _Plot(
            "Importance",
            "How much of the difference between trials each setting explains over the whole space (fANOVA). A"
            " setting of no importance here may matter near the best.",
            partial(visualization.plot_param_importances, evaluator=FanovaImportanceEvaluator(seed=0)),
        ),
        _Plot(
            "Slices",
            "A point a trial; darker ones came later.",
            partial(visualization.plot_slice, target_name=measured),
            wide=True,
        ),
        _Plot(
            "Parallel coordinates",
            "A line a trial. Draw along an axis to keep the lines that pass there.",
            partial(visualization.plot_parallel_coordinate, target_name=measured),
            wide=True,
        ),
    ]
    figures = []
    for plot in plots:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            try:
                figure = plot.draw(study)
            except (ValueError, RuntimeError):  # too few trials, or all with one value
                continue
        if not figure.data:
            continue
        figure.update_layout(**_LAYOUT)
        if not plot.wide:
            figure.update_traces(marker_color=_BLUE)
        options = {"responsive": True, "displayModeBar": False}
        html = figure.to_html(full_html=False, include_plotlyjs=False, config=options)
        figures.append({"title": plot.title, "remark": plot.remark, "html": Markup(html), "wide": plot.wide})
    return figures


def _study_of_report(search: Search, trials: Sequence[FrozenTrial]) -> optuna.Study:
    """Return the trials with values in percent, and settings by the last part of their path where unique."""
    lasts = [path.rsplit(".", 1)[-1] for path in search.space]
    names = {
        path: last if lasts.count(last) == 1 else path for path, last in zip(search.space, lasts, strict=True)
    }
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        if trial.value is None or not trial.params:
            continue
        copy = optuna.trial.create_trial(
            value=100 * trial.value,
            params={names[path]: value for path, value in trial.params.items()},
            distributions={names[path]: distribution for path, distribution in trial.distributions.items()},
        )
        study.add_trial(copy)
    return study
