"""The approximate index over the vectors, for many pictures, and how much of the exact answer it finds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float32
from lancedb.index import BTree, HnswSq, IvfPq, IvfRq, IvfSq

from tuplet.errors import InputError
from tuplet.progress import track
from tuplet.search.index import VECTOR_INDEX, ImageIndex, IndexedPicture, Neighbour
from tuplet.search.storage import errors_in_a_line

Kind: TypeAlias = Literal["ivf-rq", "ivf-sq", "ivf-pq", "hnsw-sq"]
"""How vectors are kept in the approximate index: a bit, a byte or a sixteenth of a byte a dimension."""

APPROXIMATE_FROM = 100_000
"""Pictures from which on a search is approximate; every vector is looked at below."""
BIT_FROM = 512
"""Dimensions from which on a bit of each tells neighbours apart; with fewer, a byte does in the same time."""
_SAME = 1e-6
_MOST_PIECES = 16
"""LanceDB adds a piece with every run, puts them together only when it divides a part, and searches each."""


@dataclass(frozen=True)
class MeasuredRecall:
    """How an approximate index compares with the exact search.

    Attributes:
        recall: share of the exact neighbours that it finds, in [0, 1].
        num_queries: pictures that were looked up.
        top: neighbours of each.
        seconds: median time of a search.
        exact_seconds: of an exact one.
    """

    recall: float
    num_queries: int
    top: int
    seconds: float
    exact_seconds: float


def keep_approximate_index(index: ImageIndex, approximate_from: int = APPROXIMATE_FROM) -> None:
    """Nothing; an index of so many pictures then has an approximate index, of not too many pieces.

    Args:
        index: held by this process.
        approximate_from: pictures from which on it is built, >= 1; one that is there stays and takes new rows
            in when `tidy` is called.
    """
    if not index.is_approximate:
        due = index.count() >= approximate_from
    else:
        with errors_in_a_line(f"cannot read the index {index.uri}"):
            due = index.table.index_stats(VECTOR_INDEX).num_indices > _MOST_PIECES
    if due:
        build_approximate_index(index)


def misses_rows(index: ImageIndex) -> bool:
    """Whether there are rows that the approximate index does not hold, as after a run that was killed."""
    with errors_in_a_line(f"cannot read the index {index.uri}"):
        return index.is_approximate and index.table.index_stats(VECTOR_INDEX).num_unindexed_rows > 0


def build_approximate_index(
    index: ImageIndex, kind: Kind | None = None, *, part_size: int | None = None
) -> None:
    """Nothing; the index then has a new approximate index, and one on the ids.

    Args:
        index: held by this process.
        kind: None: ivf-rq from `BIT_FROM` dimensions on, a multiple of 8, else ivf-sq.
        part_size: vectors a part, of which a search looks into `LEAST_PROBES`; None: LanceDB's own.

    Raises:
        InputError: too few pictures, or it cannot be written.
    """
    if kind is None:
        dim = index.model.dim
        kind = "ivf-rq" if dim >= BIT_FROM and dim % 8 == 0 else "ivf-sq"
    makers = {"ivf-rq": IvfRq, "ivf-sq": IvfSq, "ivf-pq": IvfPq, "hnsw-sq": HnswSq}
    with errors_in_a_line(f"cannot build the approximate index of {index.uri}"):
        config = makers[kind](distance_type="cosine", target_partition_size=part_size)
        index.table.create_index("vector", config=config, replace=True, name=VECTOR_INDEX)
        index.table.create_index("id", config=BTree(), replace=True)


def measure_recall(
    index: ImageIndex, *, top: int = 10, num_queries: int = 200, seed: int = 0
) -> MeasuredRecall:
    """The share of exact neighbours that the approximate index finds, of pictures of the index.

    A picture is not counted among its own neighbours; one as near as the last exact neighbour counts as
    found.

    Args:
        index: with an approximate index.
        top: neighbours of each picture, >= 1.
        num_queries: pictures that are looked up, drawn at random, >= 1.
        seed: of the draw, >= 0.

    Raises:
        InputError: no approximate index.
    """
    if not index.is_approximate:
        raise InputError(
            f"{index.uri} has no approximate index: every search is exact; want more pictures, or"
            " --approximate-from"
        )
    drawn = index.sample(num_queries, seed)
    shares, times, exact_times = [], [], []
    for picture, vector in zip(drawn.pictures, drawn.vectors, strict=True):
        exact, took = timed_neighbours(index, vector, top, picture.id, exact=True)
        exact_times.append(took)
        found, took = timed_neighbours(index, vector, top, picture.id, exact=False)
        times.append(took)
        shares.append(share_found(found, exact))
    return MeasuredRecall(
        float(np.mean(shares)), len(shares), top, float(np.median(times)), float(np.median(exact_times))
    )


def share_found(found: list[Neighbour], exact: list[Neighbour]) -> float:
    """The share of exact neighbours that another search found; one that is as near stands for another."""
    if not exact:
        return 1.0
    return sum(one.distance <= exact[-1].distance + _SAME for one in found) / len(exact)


def timed_neighbours(
    index: ImageIndex, vector: Float32[np.ndarray, " D"], top: int, itself: str, *, exact: bool
) -> tuple[list[Neighbour], float]:
    """The neighbours of a picture of the index but for itself, and the seconds that the search took.

    Args:
        index: which.
        vector: the picture's.
        top: how many, >= 1.
        itself: the picture's id.
        exact: see `ImageIndex.nearest`.
    """
    began = time.perf_counter()
    # One more is asked for: that is as fast as any search, and a condition on ids is not.
    found = index.nearest(vector, top + 1, exact=exact)
    took = time.perf_counter() - began
    return [one for one in found if one.picture.id != itself][:top], took


@dataclass(frozen=True)
class SearchAccuracy:
    """What one way of searching finds.

    Attributes:
        recall_at: share of the queries with a picture of their label among the first K others, by K.
        neighbours: share of the exact neighbours that it finds, in [0, 1].
        seconds: median time of a search.
    """

    recall_at: dict[int, float]
    neighbours: float
    seconds: float


@dataclass(frozen=True)
class IndexAccuracy:
    """How good an index is at finding a label again.

    Attributes:
        exact: where every vector is looked at.
        approximate: through the approximate index; None where there is none.
        num_queries: pictures that were looked up.
        num_labelled: pictures that have another one with their label to find.
        num_pictures: pictures that were searched.
        num_labels: labels that two pictures or more have.
        top: neighbours that were asked for.
    """

    exact: SearchAccuracy
    approximate: SearchAccuracy | None
    num_queries: int
    num_labelled: int
    num_pictures: int
    num_labels: int
    top: int


def measure_index(
    index: ImageIndex, *, recall_at: Sequence[int] = (1, 2, 4, 8), num_queries: int = 1000, seed: int = 0
) -> IndexAccuracy:
    """Recall@K by labels of pictures that are looked up in their own index.

    Each is left out of its own results, with its exact copies: to find those tells nothing of the model.

    Args:
        index: with labels.
        recall_at: the K of Recall@K, each >= 1.
        num_queries: pictures that are looked up, drawn at random among those that have another of their
            label, >= 1; all of them where there are fewer.
        seed: of the draw, >= 0.

    Raises:
        InputError: no label that two pictures have, or a number out of range.
    """
    for name, value in (("recall-at", min(recall_at, default=0)), ("queries", num_queries)):
        if value < 1:
            raise InputError(f"{name} is {value}; want 1 or more")
    labels = {label: count for label, count in index.labels().items() if count > 1}
    if not labels:
        raise InputError(
            f"no label in {index.uri} is that of two pictures; want folders by class, PHOTOS/<class>/*,"
            " indexed with --labels first or last"
        )
    queries = index.sample(num_queries, seed, labels=labels)
    top = max(10, *recall_at)
    rows = list(zip(queries.pictures, queries.vectors, strict=True))
    approximate = index.is_approximate
    exact, found = [], []
    for picture, vector in track(rows, "searching"):
        exact.append(timed_neighbours(index, vector, top, picture.id, exact=True))
        if approximate:
            found.append(timed_neighbours(index, vector, top, picture.id, exact=False))
    truth = [neighbours for neighbours, _ in exact]
    return IndexAccuracy(
        _accuracy(exact, truth, queries.pictures, recall_at),
        _accuracy(found, truth, queries.pictures, recall_at) if approximate else None,
        len(rows),
        sum(labels.values()),
        index.count(),
        len(labels),
        top,
    )


def _accuracy(
    results: Sequence[tuple[list[Neighbour], float]],
    truth: Sequence[list[Neighbour]],
    queries: Sequence[IndexedPicture],
    recall_at: Sequence[int],
) -> SearchAccuracy:
    def found(k: int) -> float:
        hits = [
            any(one.picture.label == query.label for one in _without_copies(neighbours, query)[:k])
            for (neighbours, _), query in zip(results, queries, strict=True)
        ]
        return float(np.mean(hits))

    shares = [share_found(one, exact) for (one, _), exact in zip(results, truth, strict=True)]
    seconds = float(np.median([took for _, took in results]))
    return SearchAccuracy({k: found(k) for k in recall_at}, float(np.mean(shares)), seconds)


def _without_copies(neighbours: Sequence[Neighbour], query: IndexedPicture) -> list[Neighbour]:
    return [one for one in neighbours if one.picture.content != query.content]
