"""Reports: of one run as a self-contained HTML page, of several that differ in their seed as Markdown."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from tuplet.config import RunConfig
from tuplet.config.overrides import flattened, to_dict
from tuplet.errors import DataError, RunFolderError
from tuplet.evaluation.calibration import Calibration
from tuplet.evaluation.evaluate import EmbeddedSplit
from tuplet.metrics.intervals import interval_of_share, seed_mean
from tuplet.metrics.names import headline_metric, metric_title
from tuplet.report import plots
from tuplet.report.decisions import decision_section
from tuplet.report.mistakes import retrieval_findings
from tuplet.report.pages import page_template, write_page
from tuplet.training.environment import short_commit
from tuplet.training.experiment import select
from tuplet.training.run_folder import EpochReport, Run


@dataclass(frozen=True)
class ReportContent:
    """The content of a report.

    Attributes:
        config: the run's.
        epochs: in order; epoch 0 is the network before training.
        environment: versions, commit, hardware, hash of the weights; text and numbers, perhaps nested.
        train: training images, embedded by the trained model.
        evaluated: images of the split that was measured, embedded by the trained model.
        notes: on the data and on images left out, a line each.
        calibration: of the trained model, if there is one.
    """

    config: RunConfig
    epochs: Sequence[EpochReport]
    environment: Mapping[str, Any]
    train: EmbeddedSplit
    evaluated: EmbeddedSplit
    notes: Sequence[str]
    calibration: Calibration | None = None


def write_report(content: ReportContent, path: Path) -> dict[str, plots.EmbeddingMap]:
    """Write the report as one HTML file that needs no other file and no network.

    Equal content gives equal bytes. The file appears whole or not at all.

    Args:
        content: to show.
        path: of the file; its folder is taken for the run folder, and is made if need be.

    Returns: the maps of the page, by the name of their split.

    Raises:
        DataError: embeddings that are not finite.
    """
    for name, split in (("training", content.train), ("evaluated", content.evaluated)):
        bad = int((~np.isfinite(split.embeddings).all(axis=1)).sum())
        if bad:
            raise DataError(
                f"{bad} of {len(split.table)} {name} embeddings are not finite; want numbers."
                " The training has diverged: lower the learning rates",
                subject=name,
                given=bad,
            )
    template = page_template("report.html", {"shortened": _shortened, "title_of": metric_title})
    page = _page(content, path.parent / "config.yaml")
    write_page(path, template.render(page))
    return {name: one["drawn"] for name, one in page["maps"].items()}


def _page(content: ReportContent, config_path: Path) -> dict[str, Any]:
    evaluations = [(e.epoch, e.evaluation) for e in content.epochs if e.evaluation is not None]
    before = next((report for epoch, report in evaluations if epoch == 0), None)
    selected = select(content.config, content.epochs) if evaluations else None
    after = selected.evaluation if selected is not None and selected.epoch > 0 else None
    shown = after or before
    split = "Validation" if content.config.evaluation.split == "validation" else "Test"
    calibration, decisions = content.calibration, None
    if calibration is not None:
        decisions = decision_section(calibration, content.evaluated, f"{split} classes")
    draw = {
        "losses": plots.loss_curves(content.epochs),
        "recall": plots.recall_curve(content.epochs),
        "rates": plots.learning_rate_curve(content.epochs),
    }
    return {
        "config": content.config,
        "source": content.config.data.root.name if content.config.data.root else "generated glyphs",
        "train": content.train,
        "before": before,
        "after": after,
        "shown": shown,
        "after_epoch": selected.epoch if selected is not None else 0,
        "label": selected.label if selected is not None else "",
        "last_measured": max((epoch for epoch, _ in evaluations), default=0),
        "last_epoch": max((e.epoch for e in content.epochs), default=0),
        "headline": headline_metric(shown.retrieval) if shown else None,
        "metrics": list(shown.retrieval) if shown else [],
        "curves": {name: Markup(svg) for name, svg in draw.items()},
        "diagnosis": [Markup(svg) for svg in plots.diagnosis_curves(content.epochs)],
        "epochs": content.epochs,
        "maps": {
            "Training": _map(content.train),
            split: _map(content.evaluated),
        },
        "decisions": decisions,
        "evaluated": content.evaluated.table,
        "findings": retrieval_findings(content.evaluated),
        "config_yaml": yaml.safe_dump(to_dict(content.config), sort_keys=False, allow_unicode=True),
        "environment": {name: _words(value) for name, value in flattened(content.environment).items()},
        "timings": _timings(content.epochs),
        "command": f"tuplet train --config {shlex.quote(config_path.as_posix())}",
        "notes": content.notes,
    }


def _map(split: EmbeddedSplit) -> dict[str, Any]:
    drawn = plots.embedding_map(split.embeddings, split.labels, split.table.class_names)
    return {"svg": Markup(drawn.svg), "drawn": drawn, "split": split}


def _timings(epochs: Sequence[EpochReport]) -> dict[str, int | float]:
    trained = sum(e.train_seconds for e in epochs)
    images = sum(e.train_seconds * e.images_per_second for e in epochs)
    return {
        "train": trained,
        "rate": images / trained if trained > 0 else math.nan,
        "evaluation": sum(e.evaluation_seconds for e in epochs),
        "evaluations": sum(e.evaluation is not None for e in epochs),
    }


def _words(value: object) -> str:
    """Return a value, or the items of a list, as words."""
    items = value if isinstance(value, list | tuple) else [value]
    return ", ".join("–" if item is None else str(item) for item in items)


def _shortened(name: str, longest: int = 22) -> str:
    """Cut the middle out of a long class name: names of one data set mostly differ at their ends."""
    half = longest // 2
    return name if len(name) <= longest else f"{name[: half - 1]}…{name[-half:]}"


_ALIKE = ("commit", "processor", "cores", "device", "torch")


def summary_page(title: str, runs: Sequence[Run], *, command: str) -> str:
    """Write the mean, standard deviation and t interval over seeds of every metric as a page of Markdown.

    Args:
        title: of the page.
        runs: finished, alike but for their seed.
        command: that made them.

    Raises:
        RunFolderError: runs with other settings, or of several commits or machines.
    """
    _require_alike(runs)
    reports = [run.reports() for run in runs]
    selected = [select(run.config, epochs) for run, epochs in zip(runs, reports, strict=True)]
    after = [one.evaluation for one in selected]
    before = [epochs[0].evaluation for epochs in reports]
    clusters = [one.clustering for one in after if one.clustering is not None]
    rows = [
        _row(
            metric_title(metric),
            [one.retrieval[metric] for one in after],
            [one.retrieval[metric] for one in before if one is not None],
        )
        for metric in after[0].retrieval
    ]
    measured = len(clusters) == len(after)
    for name in ("nmi", "ami") if measured else ():
        rows.append(_row(name.upper(), [getattr(one, f"{name}_mean") for one in clusters]))
    environment = runs[0].read_json(runs[0].environment_file)
    return page_template("summary.md", {"percent": lambda value: f"{100 * value:.1f}"}).render(
        title=title,
        shown=after[0],
        labels=list(dict.fromkeys(one.label for one in selected)),
        seeds=[run.config.seed for run in runs],
        rows=rows,
        clustering=clusters[0].settings if measured else "",
        seconds=seed_mean([sum(epoch.train_seconds for epoch in epochs) for epochs in reports]),
        environment=environment,
        commit=short_commit(environment),
        command=command,
    )


def _row(title: str, after: Sequence[float], before: Sequence[float] = ()) -> dict[str, Any]:
    values = seed_mean(after)
    return {
        "title": title,
        "before": seed_mean(before).mean if before else None,
        "after": values,
        "ends": None if values.std is None else interval_of_share(values),
    }


def _require_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    environments = [run.read_json(run.environment_file) for run in runs]
    for run, environment in zip(runs, environments, strict=True):
        if replace(run.config, seed=0, schedule=first.config.schedule) != replace(first.config, seed=0):
            raise RunFolderError(
                f"{run.folder} has other settings than {first.folder}; want the same but for the seed",
                subject=run.folder,
            )
        if any(environment.get(key) != environments[0].get(key) for key in _ALIKE):
            raise RunFolderError(
                f"{run.folder} and {first.folder} are of two commits or machines; want one table of one: use"
                " a new folder",
                subject=run.folder,
            )
