"""Re-rank what an index finds for one vector, with the vectors of the first results."""

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
    """Return the pictures that re-ranking puts first, with their distances to the vector itself.

    Alpha query expansion searches a second time, by the sum of the vector and its neighbours. K-reciprocal
    re-ranking orders the first `num_candidates` anew, by whom they count among their neighbours within these;
    what follows stays as it is. Both read the vectors of these pictures only.

    Args:
        index: what is searched.
        find: searches it.
        vector: of unit length.
        top: how many, >= 1.
        settings: of the method.
    Raises:
        RequestError: settings that expand every vector of the index.
    """
    small = index.model.small
    # An index in few bytes knows a query by the directions that it keeps.
    asked = vector if small is None else small.lift(small.project(vector[None]))[0]
    if not isinstance(settings, AlphaQueryExpansion):
        found = find(vector, max(top, settings.num_candidates))
        first, rest = found[: settings.num_candidates], found[settings.num_candidates :]
        if not first:
            return []
        order = reciprocal_order(asked, _vectors_of(index, first), settings)
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
    sums = expanded_sums(asked[None], _vectors_of(index, first)[None], settings.alpha)
    found = find(unit_vectors(sums, "queries")[0], top)
    distances = np.clip(1.0 - _vectors_of(index, found).astype(np.float64) @ asked, 0.0, None)
    return [replace(one, distance=distance) for one, distance in zip(found, distances.tolist(), strict=True)]


def _vectors_of(index: ImageIndex, found: Sequence[Neighbour]) -> Float32[np.ndarray, "n D"]:
    """Return the vectors of pictures that were found, in their order."""
    ids = {one.picture.id for one in found}
    known = {
        picture.id: vector
        for batch in index.vectors(where=any_of("id", ids))
        for picture, vector in zip(batch.pictures, batch.vectors, strict=True)
    }
    return np.stack([known[one.picture.id] for one in found])
