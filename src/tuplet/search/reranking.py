"""Re-rank the results of an index for one query vector, with the vectors of the first results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Float32

from tuplet.errors import RequestError
from tuplet.metrics.reranking import (
    AlphaQueryExpansion,
    Reranking,
    expanded_sums,
    reciprocal_order,
    unit_vectors,
)
from tuplet.search.storage import any_of

if TYPE_CHECKING:
    from tuplet.search.index import ImageIndex, Neighbour


class Find(Protocol):
    """Find the pictures nearest to a vector, under the conditions of a search."""

    def __call__(self, vector: Float32[np.ndarray, " D"], top: int) -> list[Neighbour]:
        """Return at most `top`, nearest first."""


def nearest_reranked(
    index: ImageIndex, find: Find, vector: Float32[np.ndarray, " D"], top: int, settings: Reranking
) -> list[Neighbour]:
    """Return the nearest pictures in the order of re-ranking, with their distances to the vector itself.

    Alpha query expansion searches a second time, with the weighted sum of the vector and its neighbours.
    K-reciprocal re-ranking reorders the first `num_candidates` results by their mutual neighbours among
    these, and keeps the order of the rest. Both read the vectors of these pictures only.

    Args:
        index: the index to search.
        find: searches it under the conditions of the request.
        vector: of unit length.
        top: number of results, >= 1.
        settings: of the method.
    Raises:
        RequestError: settings that expand every vector of the index.
    """
    small = index.model.small
    # An index in few bytes stores only some directions: compare the query in those as well.
    query = vector if small is None else small.lift(small.project(vector[None]))[0]
    if not isinstance(settings, AlphaQueryExpansion):
        results = find(vector, max(top, settings.num_candidates))
        first, rest = results[: settings.num_candidates], results[settings.num_candidates :]
        if not first:
            return []
        order = reciprocal_order(query, _vectors_of(index, first), settings)
        return [*(first[place] for place in order.tolist()), *rest][:top]
    if settings.database:
        raise RequestError(
            "database=True expands every vector of an index; want database=False for a search",
            subject="rerank",
            given=settings,
        )
    first = find(vector, settings.k)
    if not first:
        return []
    sums = expanded_sums(query[None], _vectors_of(index, first)[None], settings.alpha)
    results = find(unit_vectors(sums, "queries")[0], top)
    distances = np.clip(1.0 - _vectors_of(index, results).astype(np.float64) @ query, 0.0, None)
    return [
        replace(neighbour, distance=distance)
        for neighbour, distance in zip(results, distances.tolist(), strict=True)
    ]


def _vectors_of(index: ImageIndex, neighbours: Sequence[Neighbour]) -> Float32[np.ndarray, "n D"]:
    """Return the vectors of the pictures in the results of a search, in their order."""
    ids = {neighbour.picture.id for neighbour in neighbours}
    known = {
        picture.id: vector
        for batch in index.vectors(where=any_of("id", ids))
        for picture, vector in zip(batch.pictures, batch.vectors, strict=True)
    }
    return np.stack([known[neighbour.picture.id] for neighbour in neighbours])
