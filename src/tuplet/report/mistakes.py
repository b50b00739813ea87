"""The mistakes of a model: images with wrong neighbours, the worst first, and classes that it confuses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from tuplet.evaluation.evaluate import EmbeddedSplit
from tuplet.metrics.retrieval import nearest_neighbours
from tuplet.metrics.unit_length import at_unit_length
from tuplet.report import plots

NUM_NEIGHBOURS, NUM_MISTAKES, NUM_SUCCESSES, MISTAKES_PER_CLASS, NUM_HARDEST = 8, 12, 4, 2, 10
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class _Search:
    """Each image's nearest others; `is_query` are the images that have another of their class to find."""

    split: EmbeddedSplit
    unit: Float32[np.ndarray, "N D"]
    nearest: Int64[np.ndarray, "N k"]
    similarities: Float32[np.ndarray, "N k"]
    is_query: Bool[np.ndarray, " N"]

    @property
    def labels(self) -> Int64[np.ndarray, " N"]:
        return self.split.labels

    @property
    def predicted(self) -> Int64[np.ndarray, " N"]:
        """Class of the nearest image."""
        labels: Int64[np.ndarray, " N"] = self.labels[self.nearest[:, 0]]
        return labels

    def rows_of(self, label: int) -> Int64[np.ndarray, " M"]:
        return np.flatnonzero(self.labels == label)


def retrieval_findings(split: EmbeddedSplit) -> dict[str, Any] | None:
    """Collect the worst mistakes, some successes, the hardest classes and the most confused pairs.

    Args:
        split: embedded images; any length of embeddings, compared by cosine.

    Returns: pictures, names and numbers for the template; None if no image has another of its class.
    """
    counts = np.bincount(split.labels, minlength=split.table.num_classes)
    is_query = counts[split.labels] > 1
    if not is_query.any():
        return None
    k = min(NUM_NEIGHBOURS, len(split.table) - 1)
    nearest, similarities = nearest_neighbours(split.embeddings, k)
    unit = at_unit_length(split.embeddings)
    search = _Search(split, unit, nearest.numpy(), similarities.numpy(), is_query)
    wrong = np.flatnonzero(is_query & (search.predicted != search.labels))
    right = np.flatnonzero(is_query & (search.predicted == search.labels))
    return {
        "num_asked": int(is_query.sum()),
        "num_wrong": wrong.size,
        "num_neighbours": k,
        "per_class": MISTAKES_PER_CLASS,
        "mistakes": [_shown(search, row, gap) for row, gap in _worst(search, wrong)],
        "successes": [_shown(search, row, None) for row in _some_of_each_class(search, right)],
        "hardest": _hardest(search),
        "pairs": _confused_pairs(search),
    }


def _gaps(search: _Search, wrong: Int64[np.ndarray, " M"]) -> Float32[np.ndarray, " M"]:
    """Compute how much more similar the nearest, wrong image is than the nearest right one, in [0, 2]."""
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
    for label in np.unique(search.labels[search.is_query]).tolist():
        predicted = search.predicted[search.rows_of(label)]
        taken_for = Counter(predicted[predicted != label].tolist())
        if taken_for:
            other = min(taken_for, key=lambda key: (-taken_for[key], key))
            rows.append(
                {"label": label, "recall": float((predicted == label).mean()), "num_images": predicted.size}
                | {"other": search.split.table.class_names[other], "times": taken_for[other]}
            )
    rows = sorted(rows, key=lambda row: (row["recall"], row["label"]))[:NUM_HARDEST]
    return [row | _picture(search, int(search.rows_of(row["label"])[0]), 48) for row in rows]


def _confused_pairs(search: _Search) -> list[dict[str, Any]]:
    wrong = np.flatnonzero(search.is_query & (search.predicted != search.labels))
    times = Counter(zip(search.labels[wrong].tolist(), search.predicted[wrong].tolist(), strict=True))
    total: Counter[tuple[int, int]] = Counter()
    for (label, other), number in times.items():
        total[min(label, other), max(label, other)] += number
    return [
        {
            "classes": [_picture(search, int(search.rows_of(label)[0]), 48) for label in (a, b)],
            "times": [times[a, b], times[b, a]],
            "total": total[a, b],
        }
        for a, b in sorted(total, key=lambda pair: (-total[pair], pair))[:NUM_HARDEST]
    ]
