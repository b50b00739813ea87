"""Recall@1 and MAP@R from ranked neighbours, for rankings that are not by cosine alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from tuplet.errors import DataError
from tuplet.metrics.intervals import Interval, mean_intervals

BLOCK_VALUES = 1 << 24
"""Similarities that are held at once."""


@dataclass(frozen=True)
class RankedScores:
    """Scores of the queries that have a result of their class to find.

    Attributes:
        queries: their rows.
        labels: their classes.
        values: columns Recall@1 and average precision at R.
    """

    queries: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    values: Float64[np.ndarray, "n 2"]

    @property
    def recall_at_1(self) -> float:
        """Return the share of queries whose first result is of their class."""
        return float(self.values[:, 0].mean())

    @property
    def map_at_r(self) -> float:
        """Return the mean average precision at R."""
        return float(self.values[:, 1].mean())

    def intervals(self) -> list[Interval | None]:
        """Return the intervals of both, by whole classes."""
        return mean_intervals(self.values, self.labels)


def num_relevant(
    labels: Int64[np.ndarray, " N"], gallery_labels: Int64[np.ndarray, " M"] | None = None
) -> Int64[np.ndarray, " N"]:
    """Count, for each query, the items of its class in a gallery; None: the other queries of its class."""
    if gallery_labels is not None:
        known, sizes = np.unique(gallery_labels, return_counts=True)
        places = np.searchsorted(known, labels).clip(max=len(known) - 1)
        found: Int64[np.ndarray, " N"] = np.where(known[places] == labels, sizes[places], 0)
        return found
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    relevant: Int64[np.ndarray, " N"] = counts[classes] - 1
    return relevant


def nearest_rows(
    queries: Float32[np.ndarray, "N D"], stored: Float32[np.ndarray, "N D"], count: int
) -> Int64[np.ndarray, "N count"]:
    """Return the rows of largest product with each query, largest first, without its own row.

    Equal products are ordered by row.

    Args:
        queries: one a stored vector, in the same order.
        stored: what is ranked.
        count: in 1..N - 1.
    """
    parts = [np.empty((0, count), dtype=np.int64)]
    for start, products in _products(queries, stored):
        rows = np.arange(len(products))
        products[rows, start + rows] = -np.inf
        parts.append(top_columns(products, count))
    return np.concatenate(parts)


def top_columns(values: Float[np.ndarray, "n M"], count: int) -> Int64[np.ndarray, "n count"]:
    """Return the columns of the largest values of each row, largest first, equal ones by column."""
    if count >= values.shape[1]:
        return np.argsort(-values, axis=1, kind="stable")[:, :count].astype(np.int64)
    # Take every value that equals the k-th as a candidate, so that the column decides between equal values.
    least = -np.partition(-values, count - 1, axis=1)[:, count - 1]
    best = np.empty((len(values), count), dtype=np.int64)
    for row, bound in enumerate(least):
        places = np.flatnonzero(values[row] >= bound)
        best[row] = places[np.argsort(-values[row, places], kind="stable")[:count]]
    return best


def nearest_in(
    queries: Float32[np.ndarray, "N D"], gallery: Float32[np.ndarray, "M D"], count: int
) -> Int64[np.ndarray, "N count"]:
    """Return the rows of a gallery of largest product with each query, largest first, equal ones by row.

    Args:
        queries: not in the gallery.
        gallery: what is ranked.
        count: in 1..M.
    """
    return np.concatenate([top_columns(products, count) for _, products in _products(queries, gallery)])


def _products(
    queries: Float32[np.ndarray, "N D"], stored: Float32[np.ndarray, "M D"]
) -> Iterator[tuple[int, Float32[np.ndarray, "n M"]]]:
    size = max(1, BLOCK_VALUES // max(len(stored), 1))
    for start in range(0, len(queries), size):
        yield start, queries[start : start + size] @ stored.T


def ranked_scores(
    ranking: Int64[np.ndarray, "N K"],
    labels: Int64[np.ndarray, " N"],
    gallery_labels: Int64[np.ndarray, " M"] | None = None,
) -> RankedScores:
    """Compute Recall@1 and MAP@R of rankings.

    Args:
        ranking: rows of the items that were found for each query, nearest first, without itself; K is at
            least `num_relevant` of every query, or all items that can be found.
        labels: class of each query.
        gallery_labels: class of each item that is searched; None: the queries search each other.

    Raises:
        DataError: no class has two items.
    References: Musgrave et al., "A Metric Learning Reality Check", ECCV 2020, for MAP@R.
    """
    relevant = num_relevant(labels, gallery_labels)
    queries = np.flatnonzero(relevant > 0)
    if len(queries) == 0:
        raise DataError("no query has an item of its class to find; want at least one", subject="labels")
    searched = labels if gallery_labels is None else gallery_labels
    hits = searched[ranking[queries]] == labels[queries, None]
    ranks = np.arange(1, ranking.shape[1] + 1)
    counted = hits & (ranks <= relevant[queries, None])
    precision = (np.cumsum(counted, axis=1) / ranks * counted).sum(axis=1) / relevant[queries]
    values = np.stack([hits[:, 0].astype(np.float64), precision], axis=1)
    return RankedScores(queries, labels[queries], values)
