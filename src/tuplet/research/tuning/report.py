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
from tuplet.errors import InputError
from tuplet.evaluation.evaluate import embed_split, evaluate
from tuplet.metrics.names import metric_title
from tuplet.report.pages import page_template
from tuplet.research.tuning.search import Search, ended_early, finished_trials
from tuplet.research.tuning.space import Value
from tuplet.training.experiment import fold_folder
from tuplet.training.run_folder import Run, write_config

NUM_TESTED = 5


@dataclass(frozen=True)
class TestedTrial:
    """A trial, and what its network measures on the test classes; never used to choose.

    Attributes:
        trial: with its value.
        test: the metric on the test classes at the last epoch, the mean over folds; None where the run is on
            another machine.
    """

    trial: FrozenTrial
    test: float | None


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

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


def result_of(search: Search, study: optuna.Study, *, fabric: Fabric, images: Split) -> SearchResult:
    """What a search found; test images are embedded here for the first time.

    Args:
        search: its trials have ended.
        study: theirs.
        fabric: launched; one rank.
        images: all of the config's.

    Raises:
        InputError: (a ValueError) no trial has a value.
    """
    finished = finished_trials(study)
    if not finished:
        raise InputError("no trial of the search has a value; want a space whose trainings come through")
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
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


def write_result(search: Search, outcome: SearchResult) -> Path:
    """The recipe of the best settings, written with all trials beside it.

    Args:
        search: in whose folder best.yaml and trials.json are written.
        outcome: what it found.
    """
    tested = {
        one.trial.number: one.test for one in [*outcome.best, *([outcome.recipe] if outcome.recipe else [])]
    }
    rows = [
        {
            "number": trial.number,
            "objective": search.objective,
            "value": trial.value,
            "test": tested.get(trial.number),
            "settings": trial.params,
            **{key: value for key, value in trial.user_attrs.items() if key not in ("folder", "host")},
        }
        for trial in outcome.trials
    ]
    file = search.folder / "best.yaml"
    best = outcome.best[0].trial
    where = "the test classes themselves: an oracle" if search.objective == "oracle" else "validation classes"
    head = f"# Trial {best.number}, the best of {len(outcome.trials)} by {search.metric} on {where}.\n"
    write_atomically(search.folder / "trials.json", (json.dumps(rows, indent=1) + "\n").encode())
    write_atomically(file, (head + write_config(outcome.config)).encode())
    return file


def best_so_far(trials: Sequence[FrozenTrial]) -> list[float]:
    """The best value after each trial, in the order of their numbers; one that ended early adds nothing."""
    best, curve = 0.0, []
    for trial in trials:
        if not ended_early(trial) and trial.value is not None:
            best = max(best, trial.value)
        curve.append(best)
    return curve


def _test_score(search: Search, trial: FrozenTrial, fabric: Fabric, images: Split) -> float | None:
    """The mean over folds of what the trial's last networks measure on the test images."""
    number = int(trial.user_attrs["first_number"])
    first = search.trial_folder(number)
    scores = []
    for fold in range(search.num_folds):
        folder = first if fold == 0 else fold_folder(first, fold)
        if not folder.exists():
            return None
        run = Run(folder)
        last = run.reports()[-1].evaluation
        if search.objective == "oracle" and last is not None:
            scores.append(last.retrieval[search.metric])
            continue
        network = fabric.setup_module(run.embedder()).eval()
        workers = run.config.compute.num_workers
        queries, gallery = embed_split(network, images, run.config.data, fabric=fabric, num_workers=workers)
        measured = evaluate(queries, search.config.evaluation, clustering=False, gallery=gallery)
        scores.append(measured.retrieval[search.metric])
    return statistics.fmean(scores)


# Optuna's figures come in one set of colours; grey words on no ground can be read by day and by night.
_LAYOUT: dict[str, Any] = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(128,128,128,0.08)",
    "font": {"color": "#7d858e", "family": "system-ui, sans-serif", "size": 13},
    "colorway": ["#2a8ac4", "#d9642b"],
    "title": {"text": ""},
    "margin": {"l": 60, "r": 30, "t": 30, "b": 50},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    "autosize": True,
    "width": None,
}


def write_search_report(
    search: Search, study: optuna.Study, outcome: SearchResult, *, storage: str, command: str
) -> None:
    """Nothing; report.html in the search's folder then needs no other file and no network.

    Args:
        search: whose trials have ended.
        study: theirs.
        outcome: what it found.
        storage: its name, without a password.
        command: that wrote the page.
    """
    content = _content(search, study, outcome)
    page = page_template("tuning.html").render(**content, storage=storage, command=command)
    write_atomically(search.folder / "report.html", page.encode("utf-8", errors="replace"))


def _content(search: Search, study: optuna.Study, outcome: SearchResult) -> dict[str, Any]:
    trials = outcome.trials
    seconds = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)
    rows = list(outcome.best)
    if outcome.recipe and outcome.recipe.trial.number not in [one.trial.number for one in rows]:
        rows.append(outcome.recipe)
    folds = (
        f"{search.num_folds} {'folds' if search.num_folds > 1 else 'fold'} of validation classes, last epoch"
    )
    return {
        "name": search.config.name,
        "search": search,
        "study": study.study_name,
        "oracle": search.objective == "oracle",
        "objective": "best epoch on the test classes" if search.objective == "oracle" else folds,
        "metric": metric_title(search.metric),
        "trials": len(trials),
        "complete": sum(not ended_early(trial) for trial in trials),
        "pruned": sum(map(ended_early, trials)),
        "diverged": [trial.number for trial in trials if "diverged" in trial.user_attrs],
        "impossible": [trial.number for trial in trials if "impossible" in trial.user_attrs],
        "hours": f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min",
        "best": outcome.best,
        "recipe": outcome.recipe,
        "rows": rows,
        "paths": list(search.space),
        "percent": percent,
        "text": value_text,
        "train": f"tuplet train --config {shlex.quote(str(search.folder / 'best.yaml'))} --seeds 5",
        "figures": _figures(search, trials),
        "plotly": Markup(get_plotlyjs()),
    }


def _figures(search: Search, trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """Title, how to read it, and the figure; those that so few trials cannot give are left out."""
    measured = f"{metric_title(search.metric)}, %{' (oracle)' * (search.objective == 'oracle')}"
    study = _short_study(search, trials)
    wanted: list[tuple[str, str, Callable[..., Any]]] = [
        (
            "History",
            "A point a trial; the line is the best so far.",
            partial(visualization.plot_optimization_history, target_name=measured),
        ),
        (
            "Importance",
            "How much of the difference between trials each setting explains over the whole space (fANOVA). A"
            " setting of no importance here may matter near the best.",
            partial(visualization.plot_param_importances, evaluator=FanovaImportanceEvaluator(seed=0)),
        ),
        (
            "Slices",
            "A point a trial; darker ones came later.",
            partial(visualization.plot_slice, target_name=measured),
        ),
        (
            "Parallel coordinates",
            "A line a trial. Draw along an axis to keep the lines that pass there.",
            partial(visualization.plot_parallel_coordinate, target_name=measured),
        ),
    ]
    figures = []
    for title, remark, draw in wanted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            try:
                figure = draw(study)
            except (ValueError, RuntimeError):  # Too few trials, or all with one value.
                continue
        if not figure.data:
            continue
        figure.update_layout(**_LAYOUT)
        if title in ("History", "Importance"):
            figure.update_traces(marker_color="#2a8ac4")
        options = {"responsive": True, "displayModeBar": False}
        html = figure.to_html(full_html=False, include_plotlyjs=False, config=options)
        wide = title in ("Slices", "Parallel coordinates")
        figures.append({"title": title, "remark": remark, "html": Markup(html), "wide": wide})
    return figures


def _short_study(search: Search, trials: Sequence[FrozenTrial]) -> optuna.Study:
    """The trials with values in percent, and settings by the last part of their path where that is enough."""
    lasts = [path.rsplit(".", 1)[-1] for path in search.space]
    short = {
        path: last if lasts.count(last) == 1 else path for path, last in zip(search.space, lasts, strict=True)
    }
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        if trial.value is None or not trial.params:
            continue
        copy = optuna.trial.create_trial(
            value=100 * trial.value,
            params={short[path]: value for path, value in trial.params.items()},
            distributions={short[path]: one for path, one in trial.distributions.items()},
        )
        study.add_trial(copy)
    return study


def setting(path: str, value: Value) -> str:
    """A setting in a few characters: the last part of its path and its value."""
    return f"{path.rsplit('.', 1)[-1]} {value_text(value)}"


def value_text(value: Value) -> str:
    """A value with as many digits as a person reads."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def trial_outcome(trial: FrozenTrial) -> str:
    """What became of a trial: its value in percent, or a word."""
    if "diverged" in trial.user_attrs:
        return "diverged"
    if "impossible" in trial.user_attrs:
        return "impossible"
    if ended_early(trial):
        return "ended early"
    if trial.value is None:
        return "failed"
    return f"{100 * trial.value:.2f} %"


def percent(value: float) -> str:
    """A score in [0, 1] as a percentage."""
    return f"{100 * value:.1f} %"
