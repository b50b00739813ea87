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
from tuplet.config.overrides import to_dict
from tuplet.data.files import write_atomically
from tuplet.errors import InputError
from tuplet.evaluation.evaluate import EmbeddedSplit, EvalReport
from tuplet.metrics.intervals import SeedMean, interval_of_share, seed_mean
from tuplet.metrics.names import headline_metric, metric_title
from tuplet.report import plots
from tuplet.report.mistakes import retrieval_findings
from tuplet.report.pages import page_template
from tuplet.training.environment import short_commit
from tuplet.training.experiment import Selected, select
from tuplet.training.run_folder import EpochReport, Run


@dataclass(frozen=True)
class ReportContent:
    """What a report shows.

    Attributes:
        config: the run's.
        epochs: in order; epoch 0 is the network before training.
        environment: versions, commit, hardware, hash of the weights; text and numbers, nested if need be.
        train: training images, embedded by the trained model.
        evaluated: images of the split that was measured, embedded by the trained model.
        notes: remarks on the data and images left out, a line each; may be long.
    """

    config: RunConfig
    epochs: Sequence[EpochReport]
    environment: Mapping[str, Any]
    train: EmbeddedSplit
    evaluated: EmbeddedSplit
    notes: Sequence[str]


def write_report(content: ReportContent, path: Path) -> None:
    """Nothing; `path` then holds the report, one HTML file that needs no other and no network.

    Equal content gives equal bytes. The file appears whole or not at all.

    Args:
        content: what to show.
        path: the file; its folder is taken for the run folder, and is made if need be.
    Raises:
        InputError: embeddings that are not finite.
    """
    for name, split in (("training", content.train), ("evaluated", content.evaluated)):
        bad = int((~np.isfinite(split.embeddings).all(axis=1)).sum())
        if bad:
            raise InputError(
                f"{bad} of {len(split.table)} {name} embeddings are not finite; want numbers."
                " The training has diverged: lower the learning rates"
            )
    page = page_template("report.html", _FILTERS).render(_page(content, path.parent / "config.yaml"))
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file name that is no UTF-8 reaches us as lone surrogates, which have no bytes.
    write_atomically(path, page.encode("utf-8", errors="replace"))


def _page(content: ReportContent, config_path: Path) -> dict[str, Any]:
    evaluations = [(e.epoch, e.evaluation) for e in content.epochs if e.evaluation is not None]
    before = next((report for epoch, report in evaluations if epoch == 0), None)
    chosen = select(content.config, content.epochs) if evaluations else None
    after = chosen.evaluation if chosen is not None and chosen.epoch > 0 else None
    shown = after or before
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
        "after_epoch": chosen.epoch if chosen is not None else 0,
        "label": chosen.label if chosen is not None else "",
        "last_measured": max((epoch for epoch, _ in evaluations), default=0),
        "last_epoch": max((e.epoch for e in content.epochs), default=0),
        "headline": headline_metric(shown.retrieval) if shown else None,
        "metrics": list(shown.retrieval) if shown else [],
        "curves": {name: Markup(svg) for name, svg in draw.items()},
        "epochs": content.epochs,
        "maps": {
            "Training": _map(content.train),
            "Validation" if content.config.evaluation.split == "validation" else "Test": _map(
                content.evaluated
            ),
        },
        "findings": retrieval_findings(content.evaluated),
        "config_yaml": yaml.safe_dump(to_dict(content.config), sort_keys=False, allow_unicode=True),
        "environment": dict(_flat(content.environment)),
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


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            items = value if isinstance(value, list | tuple) else [value]
            rows.append((f"{prefix}{key}", ", ".join("–" if item is None else str(item) for item in items)))
    return rows


def _shortened(name: str, longest: int = 22) -> str:
    """A long class name without its middle: names of one data set mostly differ at their ends."""
    half = longest // 2
    return name if len(name) <= longest else f"{name[: half - 1]}…{name[-half:]}"


_FILTERS = {"shortened": _shortened, "title_of": metric_title}


_ALIKE = ("commit", "processor", "cores", "device", "torch")


def summary_page(title: str, runs: Sequence[Run], *, command: str) -> str:
    """Mean, standard deviation and t interval over the seeds of every metric, and what they ran on.

    Args:
        title: of the page.
        runs: finished, alike but for their seed.
        command: that made them.

    Raises:
        InputError: (a ValueError) runs with other settings, or of several commits or machines.
    """
    _require_alike(runs)
    reports = [run.reports() for run in runs]
    selected = [select(run.config, epochs) for run, epochs in zip(runs, reports, strict=True)]
    before = [epochs[0].evaluation for epochs in reports]
    shown = selected[0].evaluation
    seconds = seed_mean([sum(epoch.train_seconds for epoch in epochs) for epochs in reports])
    lines = [
        f"# {title}",
        "",
        f"{shown.num_images:,} {shown.split} images of {shown.num_classes:,} classes never trained on,"
        f" {shown.num_queries:,} queries. Selection: {_selection(selected)}.",
        f"Seeds {', '.join(str(run.config.seed) for run in runs)}: mean, standard deviation and 95 % t"
        " interval over them.",
        "",
        "| metric (%) | before training | after | std | 95 % interval |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for metric in shown.retrieval:
        first = [one.retrieval[metric] for one in before if one is not None]
        values = seed_mean([one.evaluation.retrieval[metric] for one in selected])
        lines.append(f"| {metric_title(metric)} | {_percent(seed_mean(first).mean)} | {_spread(values)} |")
    lines += _clustering([one.evaluation for one in selected])
    environment = runs[0].read_json(runs[0].environment_file)
    lines += [
        "",
        f"Training took {seconds.mean:.0f} s a seed (the longest {max(seconds.values):.0f} s), evaluation"
        f" apart. {environment['processor']}, {environment['cores']} cores, device {environment['device']};"
        f" torch {environment['torch']}; commit {short_commit(environment)}.",
        "",
        f"    {command}",
        "",
    ]
    return "\n".join(lines)


def _require_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    environments = [run.read_json(run.environment_file) for run in runs]
    for run, environment in zip(runs, environments, strict=True):
        if replace(run.config, seed=0, schedule=first.config.schedule) != replace(first.config, seed=0):
            raise InputError(
                f"{run.folder} has other settings than {first.folder}; want one but for the seed"
            )
        if any(environment.get(key) != environments[0].get(key) for key in _ALIKE):
            raise InputError(
                f"{run.folder} and {first.folder} are of two commits or machines; want one table of one: use"
                " a new folder"
            )


def _selection(selected: Sequence[Selected]) -> str:
    labels = list(dict.fromkeys(one.label for one in selected))
    return "; ".join(labels)


def _clustering(evaluations: Sequence[EvalReport]) -> list[str]:
    clusters = [one.clustering for one in evaluations if one.clustering is not None]
    if len(clusters) < len(evaluations):
        return []
    return [
        f"| NMI | | {_spread(seed_mean([one.nmi_mean for one in clusters]))} |",
        f"| AMI | | {_spread(seed_mean([one.ami_mean for one in clusters]))} |",
        "",
        f"NMI and AMI: {clusters[0].settings}.",
    ]


def _spread(value: SeedMean) -> str:
    ends = interval_of_share(value)
    if value.std is None or ends is None:
        return f"{_percent(value.mean)} | | "
    return f"{_percent(value.mean)} | {_percent(value.std)} | {' to '.join(map(_percent, ends))}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
