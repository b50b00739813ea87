"""The report of a run: one self-contained HTML page of numbers, curves, maps and the pictures behind them."""

from __future__ import annotations

import math
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Bool, Float32, Int64
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tuplet import plots
from tuplet.config import RunConfig
from tuplet.errors import InputError
from tuplet.evaluation import EmbeddedSplit
from tuplet.metrics.retrieval import nearest_neighbours
from tuplet.overrides import to_dict
from tuplet.runs import EpochReport

NUM_NEIGHBOURS, NUM_MISTAKES, NUM_SUCCESSES, MISTAKES_PER_CLASS, NUM_HARDEST = 8, 12, 4, 2, 10
_BLOCK_ROWS = 1024


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
    page = _environment().get_template("report.html").render(_page(content, path.parent / "config.yaml"))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A file name that is no UTF-8 reaches us as lone surrogates, which have no bytes.
        unfinished.write_text(page, encoding="utf-8", errors="replace")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _page(content: ReportContent, config_path: Path) -> dict[str, Any]:
    evaluations = [(e.epoch, e.evaluation) for e in content.epochs if e.evaluation is not None]
    before = next((report for epoch, report in evaluations if epoch == 0), None)
    after_epoch, after = next(((epoch, r) for epoch, r in reversed(evaluations) if epoch > 0), (0, None))
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
        "after_epoch": after_epoch,
        "last_epoch": max((e.epoch for e in content.epochs), default=0),
        "headline": plots.headline_metric(shown.retrieval) if shown else None,
        "metrics": list(shown.retrieval) if shown else [],
        "curves": {name: Markup(svg) for name, svg in draw.items()},
        "epochs": content.epochs,
        "maps": {
            "Training": _map(content.train),
            "Validation" if content.config.evaluation.split == "validation" else "Test": _map(
                content.evaluated
            ),
        },
        "findings": _findings(content.evaluated),
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


@dataclass(frozen=True)
class _Search:
    """Each image's nearest others; `asked` are the images that have another of their class to find."""

    split: EmbeddedSplit
    unit: Float32[np.ndarray, "N D"]
    nearest: Int64[np.ndarray, "N k"]
    similarities: Float32[np.ndarray, "N k"]
    asked: Bool[np.ndarray, " N"]

    @property
    def labels(self) -> Int64[np.ndarray, " N"]:
        return self.split.labels

    @property
    def found(self) -> Int64[np.ndarray, " N"]:
        """Class of the nearest image."""
        found: Int64[np.ndarray, " N"] = self.labels[self.nearest[:, 0]]
        return found

    def rows_of(self, label: int) -> Int64[np.ndarray, " M"]:
        return np.flatnonzero(self.labels == label)


def _findings(split: EmbeddedSplit) -> dict[str, Any] | None:
    counts = np.bincount(split.labels, minlength=split.table.num_classes)
    asked = counts[split.labels] > 1
    if not asked.any():
        return None
    k = min(NUM_NEIGHBOURS, len(split.table) - 1)
    nearest, similarities = nearest_neighbours(split.embeddings, k)
    unit = split.embeddings / np.maximum(np.linalg.norm(split.embeddings, axis=1, keepdims=True), 1e-12)
    search = _Search(split, unit, nearest.numpy(), similarities.numpy(), asked)
    wrong = np.flatnonzero(asked & (search.found != search.labels))
    right = np.flatnonzero(asked & (search.found == search.labels))
    return {
        "num_asked": int(asked.sum()),
        "num_wrong": wrong.size,
        "num_neighbours": k,
        "per_class": MISTAKES_PER_CLASS,
        "mistakes": [_shown(search, row, gap) for row, gap in _worst(search, wrong)],
        "successes": [_shown(search, row, None) for row in _some_of_each_class(search, right)],
        "hardest": _hardest(search),
        "pairs": _confused_pairs(search),
    }


def _gaps(search: _Search, wrong: Int64[np.ndarray, " M"]) -> Float32[np.ndarray, " M"]:
    """How much more similar the nearest image, a wrong one, is than the nearest right one, in [0, 2]."""
    best = np.empty(wrong.size, dtype=np.float32)
    for label in np.unique(search.labels[wrong]):
        rows = search.rows_of(int(label))
        places = np.flatnonzero(search.labels[wrong] == label)
        for start in range(0, places.size, _BLOCK_ROWS):
            block = places[start : start + _BLOCK_ROWS]
            similar = search.unit[wrong[block]] @ search.unit[rows].T
            similar[wrong[block][:, None] == rows] = -np.inf
            best[block] = similar.max(axis=1)
    gaps: Float32[np.ndarray, " M"] = np.maximum(search.similarities[wrong, 0] - best, 0)
    return gaps


def _worst(search: _Search, wrong: Int64[np.ndarray, " M"]) -> list[tuple[int, float]]:
    gaps = _gaps(search, wrong)
    per_class: Counter[int] = Counter()
    worst: list[tuple[int, float]] = []
    for place in np.argsort(-gaps, kind="stable"):
        label = int(search.labels[wrong[place]])
        if per_class[label] < MISTAKES_PER_CLASS and len(worst) < NUM_MISTAKES:
            per_class[label] += 1
            worst.append((int(wrong[place]), float(gaps[place])))
    return worst


def _some_of_each_class(search: _Search, right: Int64[np.ndarray, " M"]) -> list[int]:
    drawn: dict[int, int] = {}
    for row in np.random.default_rng(0).permutation(right):
        drawn.setdefault(int(search.labels[row]), int(row))
    return list(drawn.values())[:NUM_SUCCESSES]


def _picture(search: _Search, row: int, size: int = 96) -> dict[str, str]:
    table = search.split.table
    return {
        "src": plots.thumbnail(table.image(row), size),
        "class_name": table.class_names[search.labels[row]],
        "name": table.name(row),
    }


def _shown(search: _Search, row: int, gap: float | None) -> dict[str, Any]:
    nearest = search.nearest[row]
    same = search.labels[nearest] == search.labels[row]
    if same.any():
        rank = int(same.argmax()) + 1
    else:
        similar = search.unit @ search.unit[row]
        others = search.rows_of(int(search.labels[row]))
        rank = max(int((similar > similar[others[others != row]].max()).sum()), nearest.size + 1)
    neighbours = [
        _picture(search, int(other)) | {"similarity": float(similarity), "right": bool(hit)}
        for other, similarity, hit in zip(nearest, search.similarities[row], same, strict=True)
    ]
    return {"query": _picture(search, row), "gap": gap, "rank": rank, "neighbours": neighbours}


def _hardest(search: _Search) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for label in np.unique(search.labels[search.asked]).tolist():
        found = search.found[search.rows_of(label)]
        taken_for = Counter(found[found != label].tolist())
        if taken_for:
            other = min(taken_for, key=lambda key: (-taken_for[key], key))
            rows.append(
                {"label": label, "recall": float((found == label).mean()), "num_images": found.size}
                | {"other": search.split.table.class_names[other], "times": taken_for[other]}
            )
    rows = sorted(rows, key=lambda row: (row["recall"], row["label"]))[:NUM_HARDEST]
    return [row | _picture(search, int(search.rows_of(row["label"])[0]), 48) for row in rows]


def _confused_pairs(search: _Search) -> list[dict[str, Any]]:
    asked = np.flatnonzero(search.asked & (search.found != search.labels))
    times = Counter(zip(search.labels[asked].tolist(), search.found[asked].tolist(), strict=True))
    total: Counter[tuple[int, int]] = Counter()
    for (label, found), number in times.items():
        total[min(label, found), max(label, found)] += number
    return [
        {
            "classes": [_picture(search, int(search.rows_of(label)[0]), 48) for label in (a, b)],
            "times": [times[a, b], times[b, a]],
            "total": total[a, b],
        }
        for a, b in sorted(total, key=lambda pair: (-total[pair], pair))[:NUM_HARDEST]
    ]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tuplet"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["title_of"] = plots.metric_title
    return environment
