"""How good an index is at finding a label again, through its approximate index and exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuplet.errors import InputError
from tuplet.progress import track
from tuplet.search.approximate import share_found, timed_neighbours
from tuplet.search.index import ImageIndex, IndexedPicture, Neighbour


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
