"""The report of a run: one self-contained HTML page of numbers, curves, maps and the pictures behind them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from tuplet.config import RunConfig
from tuplet.config.overrides import to_dict
from tuplet.errors import InputError
from tuplet.evaluation.evaluate import EmbeddedSplit
from tuplet.metrics.names import headline_metric, metric_title
from tuplet.report import plots
from tuplet.report.mistakes import retrieval_findings
from tuplet.report.pages import page_template
from tuplet.training.experiment import select
from tuplet.training.run_folder import EpochReport, write_atomically


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
