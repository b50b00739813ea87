"""The approximate index over the vectors, for many pictures, and how much of the exact answer it finds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float32
from lancedb.index import BTree, HnswSq, IvfPq, IvfRq, IvfSq

from tuplet.errors import SearchIndexError, SettingsError
from tuplet.progress import track
from tuplet.search.index import VECTOR_INDEX, ImageIndex, IndexedPicture, Neighbour
from tuplet.search.storage import lance_errors

Kind: TypeAlias = Literal["ivf-rq", "ivf-sq", "ivf-pq", "hnsw-sq"]
"""How vectors are kept in the approximate index: a bit, a byte or a sixteenth of a byte per dimension."""

APPROXIMATE_FROM = 100_000
"""Number of pictures at which the approximate index is built; below it, every vector is compared."""
BIT_FROM = 512
"""Least width at which one bit per dimension separates neighbours; below it, a byte each is as fast."""
_SAME = 1e-6
_MOST_PIECES = 16
"""LanceDB adds a piece with every run, merges them only when it splits a part, and searches each."""


@dataclass(frozen=True)
class MeasuredRecall:
    """The share in [0, 1] of the exact neighbours that an approximate index finds, and median seconds."""

    recall: float
    num_queries: int
    top: int
    seconds: float
    exact_seconds: float


def keep_approximate_index(index: ImageIndex, approximate_from: int = APPROXIMATE_FROM) -> None:
    """Build the approximate index once there are `approximate_from` pictures; rebuild one in too many pieces.

    An existing one stays even if the pictures become fewer; `tidy` adds new rows to it. The caller holds the
    lock of the index. Vectors in few bytes have none: every one of them is compared.
    """
    if index.model.small is not None:
        return
    if not index.is_approximate:
        due = index.count() >= approximate_from
    else:
        due = _stats(index).num_indices > _MOST_PIECES
    if due:
        build_approximate_index(index)


def misses_rows(index: ImageIndex) -> bool:
    """Return whether the approximate index lacks some rows, as after a run that was killed."""
    return index.is_approximate and _stats(index).num_unindexed_rows > 0


def _stats(index: ImageIndex) -> Any:
    with lance_errors(f"cannot read the index {index.uri}", subject=index.uri):
        return index.table.index_stats(VECTOR_INDEX)


def build_approximate_index(
    index: ImageIndex, kind: Kind | None = None, *, part_size: int | None = None
) -> None:
    """Build the approximate index in place of the one that exists, and an index on the ids.

    Args:
        index: locked by this process.
        kind: None: ivf-rq from `BIT_FROM` dimensions on, a multiple of 8, else ivf-sq.
        part_size: vectors per part, of which a search looks into `LEAST_PROBES`; None: LanceDB's own.

    Raises:
        SearchIndexError: too few pictures, or it cannot be written.
    """
    if kind is None:
        dim = index.model.dim
        kind = "ivf-rq" if dim >= BIT_FROM and dim % 8 == 0 else "ivf-sq"
    makers = {"ivf-rq": IvfRq, "ivf-sq": IvfSq, "ivf-pq": IvfPq, "hnsw-sq": HnswSq}
    with lance_errors(f"cannot build the approximate index of {index.uri}", subject=index.uri):
        config = makers[kind](distance_type="cosine", target_partition_size=part_size)
        index.table.create_index("vector", config=config, replace=True, name=VECTOR_INDEX)
        index.table.create_index("id", config=BTree(), replace=True)


def measure_recall(
    index: ImageIndex, *, top: int = 10, num_queries: int = 200, seed: int = 0
) -> MeasuredRecall:
    """Measure the share of exact neighbours that the approximate index finds, of pictures of the index.

    A picture is not its own neighbour; one as near as the last exact neighbour counts as found.

    Args:
        index: with an approximate index, or SearchIndexError is raised.
        top: neighbours of each picture, >= 1.
        num_queries: pictures that are looked up, drawn at random, >= 1.
        seed: of the draw, >= 0.
    """
    if not index.is_approximate:
        raise SearchIndexError(
            f"{index.uri} has no approximate index: every search is exact; want more pictures, or"
            " --approximate-from",
            subject=index.uri,
        )
    drawn = index.sample(num_queries, seed)
    queries = zip(drawn.pictures, drawn.vectors, strict=True)
    exact, approximate = _search(index, queries, top, copies=True)
    share, seconds = _mean_share(approximate, exact), _median_seconds(approximate)
    return MeasuredRecall(share, len(exact), top, seconds, _median_seconds(exact))


_Timed: TypeAlias = tuple[list[Neighbour], float]
"""The result of a search, and its seconds."""


def _search(
    index: ImageIndex,
    queries: Iterable[tuple[IndexedPicture, Float32[np.ndarray, " D"]]],
    top: int,
    *,
    copies: bool,
) -> tuple[list[_Timed], list[_Timed]]:
    """Look up pictures of the index exactly and, where there is an approximate index, through it.

    Args:
        index: that holds the queries.
        queries: none of which is among its own results.
        top: neighbours of each.
        copies: whether exact copies of a query may be among its results.
    """
    exact, approximate = [], []
    is_approximate = index.is_approximate
    for picture, vector in queries:
        exact.append(_timed_neighbours(index, vector, top, picture, copies=copies, exact=True))
        if is_approximate:
            approximate.append(_timed_neighbours(index, vector, top, picture, copies=copies, exact=False))
    return exact, approximate


def _timed_neighbours(
    index: ImageIndex,
    vector: Float32[np.ndarray, " D"],
    top: int,
    query: IndexedPicture,
    *,
    copies: bool,
    exact: bool,
) -> _Timed:
    began = time.perf_counter()
    # Ask for one more: that is as fast as any search, and a condition on ids is not.
    neighbours = index.nearest(vector, top + 1, exact=exact)
    seconds = time.perf_counter() - began
    others = [one for one in neighbours if one.picture.id != query.id]
    if not copies:
        others = [one for one in others if one.picture.content != query.content]
        if len(others) < top < len(neighbours):
            # Copies took the places of pictures that count. Only the first search is timed.
            excluded = {one.id for one in index.copies(query.content)}
            others = index.nearest(vector, top, exclude=excluded, exact=exact)
    return others[:top], seconds


def _mean_share(searches: Sequence[_Timed], exact: Sequence[_Timed]) -> float:
    """Return the mean share of exact neighbours that searches found; an equally near one counts as found."""
    shares = [
        sum(neighbour.distance <= best[-1].distance + _SAME for neighbour in neighbours) / len(best)
        if best
        else 1.0
        for (neighbours, _), (best, _) in zip(searches, exact, strict=True)
    ]
    return float(np.mean(shares))


def _median_seconds(searches: Sequence[_Timed]) -> float:
    return float(np.median([seconds for _, seconds in searches]))


@dataclass(frozen=True)
class SearchAccuracy:
    """How much one way of searching finds.

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
    """How good an index is at finding pictures of the same label.

    Attributes:
        exact: where every vector is compared.
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
    """Measure Recall@K by labels, of pictures that are looked up in their own index.

    Each is left out of its own results, with its exact copies: to find those says nothing about the model.

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
            raise SettingsError(f"{name} is {value}; want 1 or more", subject=name, given=value)
    labels = {label: count for label, count in index.labels().items() if count > 1}
    if not labels:
        raise SearchIndexError(
            f"no two pictures in {index.uri} have the same label; want folders by class, PHOTOS/<class>/*,"
            " indexed with --labels first or last",
            subject=index.uri,
        )
    queries = index.sample(num_queries, seed, labels=labels)
    top = max(10, *recall_at)
    rows = list(zip(queries.pictures, queries.vectors, strict=True))
    exact, approximate = _search(index, track(rows, "searching"), top, copies=False)
    return IndexAccuracy(
        exact=_accuracy(exact, exact, queries.pictures, recall_at),
        approximate=_accuracy(approximate, exact, queries.pictures, recall_at) if approximate else None,
        num_queries=len(exact),
        num_labelled=sum(labels.values()),
        num_pictures=index.count(),
        num_labels=len(labels),
        top=top,
    )


def _accuracy(
    searches: Sequence[_Timed],
    exact: Sequence[_Timed],
    queries: Sequence[IndexedPicture],
    recall_at: Sequence[int],
) -> SearchAccuracy:
    labels = [[one.picture.label for one in neighbours] for neighbours, _ in searches]
    recalls = {
        k: float(np.mean([query.label in own[:k] for own, query in zip(labels, queries, strict=True)]))
        for k in recall_at
    }
    return SearchAccuracy(recalls, _mean_share(searches, exact), _median_seconds(searches))
