"""The report of a search: one self-contained HTML page of its best trials, and what its settings matter."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import optuna
from markupsafe import Markup
from optuna import visualization
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial
from plotly.offline import get_plotlyjs

from tuplet.data.files import write_atomically
from tuplet.metrics.names import metric_title
from tuplet.report.pages import page_template
from tuplet.research.tuning.outcome import Outcome
from tuplet.research.tuning.search import Search, ended_early
from tuplet.research.tuning.space import Value

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
    search: Search, study: optuna.Study, outcome: Outcome, *, storage: str, command: str
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


def _content(search: Search, study: optuna.Study, outcome: Outcome) -> dict[str, Any]:
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


def outcome(trial: FrozenTrial) -> str:
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
