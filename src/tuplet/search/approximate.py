"""The approximate index over the vectors, for many pictures, and how much of the exact answer it finds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float32
from lancedb.index import BTree, HnswSq, IvfPq, IvfRq, IvfSq

from tuplet.errors import InputError
from tuplet.search.index import VECTOR_INDEX, ImageIndex, Neighbour
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
