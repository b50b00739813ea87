"""Re-ranking: improve the order of results from the first results alone, without labels or another network.

Two methods, both off unless asked for. Alpha query expansion adds to a query its nearest gallery vectors,
each weighted by a power of its cosine. K-reciprocal re-ranking compares whom two items count among their
nearest.

A query is never among its own neighbours, and no other query helps it. In a set that searches itself, query
and gallery together are the set, and each query is excluded from its own results by its row. No torch is
needed here: a search without PyTorch re-ranks too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
from jaxtyping import Float, Float32, Int64

from tuplet.config.checks import require
from tuplet.errors import unusable
from tuplet.metrics.ranked import BLOCK_VALUES, nearest_in, nearest_rows, top_columns
from tuplet.metrics.reciprocal import jaccard_blocks, reciprocal_codes
from tuplet.metrics.unit_length import at_unit_length


@final
@dataclass(frozen=True)
class AlphaQueryExpansion:
    """Settings of alpha query expansion.

    Attributes:
        k: neighbours that are added to a query, >= 1.
        alpha: power of their cosines, >= 0; 0 weighs all alike, negative cosines count as zero.
        database: expand every gallery vector by its own neighbours too (database-side augmentation).
    """

    k: int = 10
    alpha: float = 3.0
    database: bool = False

    def __post_init__(self) -> None:
        require(self.k >= 1, "k", self.k, "1 or more neighbours")
        require(0 <= self.alpha < np.inf, "alpha", self.alpha, "a finite number >= 0")


@final
@dataclass(frozen=True)
class KReciprocal:
    """Settings of k-reciprocal re-ranking.

    Attributes:
        k1: nearest items among which two must find each other, >= 1.
        k2: nearest items, itself included, whose codes are averaged, in 1..k1 + 1; 1: no averaging.
        lambda_value: weight of the original distance, in [0, 1]; the Jaccard distance has the rest.
        num_candidates: first results that are re-ranked where a query searches a gallery, >= k1.
    """

    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3
    num_candidates: int = 200

    def __post_init__(self) -> None:
        require(self.k1 >= 1, "k1", self.k1, "1 or more neighbours")
        require(1 <= self.k2 <= self.k1 + 1, "k2", self.k2, f"a number in 1..{self.k1 + 1}, k1 + 1")
        require(0 <= self.lambda_value <= 1, "lambda_value", self.lambda_value, "a weight in [0, 1]")
        least = f"{self.k1} or more, k1"
        require(self.num_candidates >= self.k1, "num_candidates", self.num_candidates, least)


Reranking: TypeAlias = AlphaQueryExpansion | KReciprocal
"""The settings of either method."""


def reranked(
    queries: Float[np.ndarray, "N D"],
    settings: Reranking,
    count: int,
    *,
    gallery: Float[np.ndarray, "M D"] | None = None,
) -> Int64[np.ndarray, "N count"]:
    """Rank the gallery anew for each query.

    Beside the embeddings and the lists of neighbours, memory is blocks of about 300 MB; no table of all pairs
    is made.

    Args:
        queries: any length.
        settings: of the method; k, k1 and k2 are cut off at the number of items there are.
        count: results a query, >= 1, at most M, or N - 1 without a gallery.
        gallery: what is searched; None: the queries themselves, each one excluded from its own results.
    Returns: rows of the gallery, best first; equally good ones by row.
    Raises:
        DataError: embeddings that are no [N, D], or a gallery of another width.
        SettingsError: `count` out of range.
    References: Radenovic, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation",
    TPAMI 2018;
        Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
    """
    asked = unit_vectors(queries, "queries")
    searched = asked if gallery is None else unit_vectors(gallery, "gallery")
    if searched.shape[1] != asked.shape[1]:
        wanted = "the same width: embed both with one model"
        problem = f"is {searched.shape[1]} wide and the queries {asked.shape[1]}"
        raise unusable("gallery", problem, wanted, fact=searched.shape[1])
    most = len(searched) - (gallery is None)
    require(1 <= count <= most, "count", count, f"a number in 1..{most}, the items that a query can find")
    if isinstance(settings, AlphaQueryExpansion):
        if gallery is None:
            return _AmongThemselves(asked, settings).ranking(count)
        return _expanded(asked, searched, settings, count)
    if gallery is None:
        return _reciprocal_among_themselves(asked, settings, count)
    return _reciprocal_one_by_one(asked, searched, settings, count)


def unit_vectors(vectors: Float[np.ndarray, "N D"], name: str) -> Float32[np.ndarray, "N D"]:
    """Return vectors at unit length, in float32; zeros stay zeros.

    Raises:
        DataError: no [N, D] of floats, or NaN or infinity.
    """
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise unusable(name, f"have shape {list(vectors.shape)}", "[N, D], at least one row and column")
    values = vectors.astype(np.float32)
    if not np.isfinite(values).all():
        raise unusable(name, "hold NaN, infinity or what float32 cannot hold", "finite numbers")
    return at_unit_length(values)


def expanded_sums(
    vectors: Float32[np.ndarray, "n D"], neighbours: Float32[np.ndarray, "n k D"], alpha: float
) -> Float32[np.ndarray, "n D"]:
    """Compute each vector plus its neighbours, each times its cosine to the power of alpha.

    The vector has weight 1, its own cosine. The sum is not of unit length.

    Args:
        vectors: of unit length.
        neighbours: of each, of unit length.
        alpha: >= 0.
    References: Radenovic et al., TPAMI 2018.
    """
    cosines = np.einsum("nkd,nd->nk", neighbours, vectors)
    sums: Float32[np.ndarray, "n D"] = vectors + np.einsum("nk,nkd->nd", _weights(cosines, alpha), neighbours)
    return sums


def reciprocal_order(
    query: Float32[np.ndarray, " D"], candidates: Float32[np.ndarray, "P D"], settings: KReciprocal
) -> Int64[np.ndarray, " P"]:
    """Rank candidates for one query by k-reciprocal re-ranking, best first, equally good ones as they come.

    The items among which neighbours are counted are the query and the candidates.

    Args:
        query: of unit length.
        candidates: of unit length, the nearest of a gallery, in order.
        settings: `num_candidates` is not read.
    """
    together = np.concatenate([query[None], candidates])
    nearest = nearest_rows(together, together, min(settings.k1, len(candidates)))
    codes = reciprocal_codes(together, nearest, settings.k2)
    rows = np.zeros(1, dtype=np.int64)
    _, jaccard = next(jaccard_blocks(codes, rows))
    distances = _final(jaccard, together[:1] @ together.T, settings.lambda_value)[0, 1:]
    return np.argsort(distances, kind="stable").astype(np.int64)


def _weights(cosines: Float32[np.ndarray, "n k"], alpha: float) -> Float32[np.ndarray, "n k"]:
    powers: Float32[np.ndarray, "n k"] = np.maximum(cosines, 0.0) ** np.float32(alpha)
    return powers


def _all_sums(
    vectors: Float32[np.ndarray, "N D"],
    gallery: Float32[np.ndarray, "M D"],
    nearest: Int64[np.ndarray, "N k"],
    alpha: float,
) -> Float32[np.ndarray, "N D"]:
    """Compute `expanded_sums` block by block."""
    step = max(1, BLOCK_VALUES // (nearest.shape[1] * gallery.shape[1]))
    parts = [
        expanded_sums(vectors[at : at + step], gallery[nearest[at : at + step]], alpha)
        for at in range(0, len(vectors), step)
    ]
    return np.concatenate(parts)


def _expanded(
    queries: Float32[np.ndarray, "N D"],
    gallery: Float32[np.ndarray, "M D"],
    settings: AlphaQueryExpansion,
    count: int,
) -> Int64[np.ndarray, "N count"]:
    """Rank a gallery for queries that are not in it."""
    nearest = nearest_in(queries, gallery, min(settings.k, len(gallery)))
    asked = at_unit_length(_all_sums(queries, gallery, nearest, settings.alpha))
    if settings.database and len(gallery) > 1:
        of_gallery = nearest_rows(gallery, gallery, min(settings.k, len(gallery) - 1))
        gallery = at_unit_length(_all_sums(gallery, gallery, of_gallery, settings.alpha))
    return nearest_in(asked, gallery, count)


@final
class _AmongThemselves:
    """Items that search each other, expanded; the gallery of a query is all but itself."""

    def __init__(self, vectors: Float32[np.ndarray, "N D"], settings: AlphaQueryExpansion) -> None:
        self.vectors, self.settings = vectors, settings
        others = len(vectors) - 1
        self.k = min(settings.k, others)
        # One more than k: the neighbour that takes the place of a query in the expansion of a gallery vector.
        self.nearest = nearest_rows(vectors, vectors, min(self.k + 1, others))
        self.sums = _all_sums(vectors, vectors, self.nearest[:, : self.k], settings.alpha)
        self.asked = at_unit_length(self.sums)

    def ranking(self, count: int) -> Int64[np.ndarray, "N count"]:
        """Rank all other items for each."""
        gallery = self.asked if self.settings.database else self.vectors
        # Who has a query among the neighbours, in order of queries.
        items, places = np.divmod(np.argsort(self.nearest[:, : self.k], axis=None, kind="stable"), self.k)
        queries = self.nearest[items, places]
        step = max(1, BLOCK_VALUES // len(gallery))
        parts = []
        for at in range(0, len(gallery), step):
            cosines = self.asked[at : at + step] @ gallery.T
            rows = np.arange(len(cosines))
            if self.settings.database:
                some = slice(*np.searchsorted(queries, [at, at + len(cosines)]))
                without = self._cosines_without_query(items[some], places[some])
                cosines[queries[some] - at, items[some]] = without
            cosines[rows, at + rows] = -np.inf
            parts.append(top_columns(cosines, count))
        return np.concatenate(parts)

    def _cosines_without_query(
        self, items: Int64[np.ndarray, " p"], places: Int64[np.ndarray, " p"]
    ) -> Float32[np.ndarray, " p"]:
        """Compute the cosines of expanded queries to items that were expanded by the query too.

        Such an item was drawn towards the query. The query is taken out of its sum, and the next neighbour
        takes its place, as if the gallery had been expanded without the query.

        Args:
            items: whose neighbours hold the query.
            places: of the query in their lists.
        """
        step = max(1, BLOCK_VALUES // (4 * self.vectors.shape[1]))
        parts = [np.empty(0, dtype=np.float32)]
        for at in range(0, len(items), step):
            item, place = items[at : at + step], places[at : at + step]
            query = self.nearest[item, place]
            left = self.sums[item] - self._weighted(item, query)
            if self.nearest.shape[1] > self.k:
                left += self._weighted(item, self.nearest[item, self.k])
            parts.append(np.einsum("pd,pd->p", self.asked[query], at_unit_length(left)))
        return np.concatenate(parts)

    def _weighted(
        self, items: Int64[np.ndarray, " p"], others: Int64[np.ndarray, " p"]
    ) -> Float32[np.ndarray, "p D"]:
        cosines = np.einsum("pd,pd->p", self.vectors[items], self.vectors[others])
        weights = _weights(cosines[:, None], self.settings.alpha)
        weighted: Float32[np.ndarray, "p D"] = weights * self.vectors[others]
        return weighted


def _reciprocal_among_themselves(
    vectors: Float32[np.ndarray, "N D"], settings: KReciprocal, count: int
) -> Int64[np.ndarray, "N count"]:
    """Rank items that search each other: a query and its gallery are the set, as in the paper."""
    nearest = nearest_rows(vectors, vectors, min(settings.k1, len(vectors) - 1))
    codes = reciprocal_codes(vectors, nearest, settings.k2)
    parts = []
    for rows, jaccard in jaccard_blocks(codes, np.arange(len(vectors))):
        distances = _final(jaccard, vectors[rows] @ vectors.T, settings.lambda_value)
        distances[np.arange(len(rows)), rows] = np.inf
        parts.append(top_columns(-distances, count))
    return np.concatenate(parts)


def _reciprocal_one_by_one(
    queries: Float32[np.ndarray, "N D"],
    gallery: Float32[np.ndarray, "M D"],
    settings: KReciprocal,
    count: int,
) -> Int64[np.ndarray, "N count"]:
    """Re-rank the first results of queries that each ask alone, as in a search."""
    num_candidates = min(settings.num_candidates, len(gallery))
    ranking = nearest_in(queries, gallery, max(count, num_candidates))
    for row, query in enumerate(queries):
        first = ranking[row, :num_candidates]
        ranking[row, :num_candidates] = first[reciprocal_order(query, gallery[first], settings)]
    return ranking[:, :count]


def _final(
    jaccard: Float[np.ndarray, "b N"], cosines: Float32[np.ndarray, "b N"], lambda_value: float
) -> Float[np.ndarray, "b N"]:
    # Half of the squared Euclidean distance of unit vectors, 1 - cosine. Zhong's code divides squared
    # distances by their largest, about the same for unit vectors; but then the farthest item of a gallery
    # would change how the nearest are weighed.
    return (1.0 - lambda_value) * jaccard + lambda_value * (1.0 - cosines.astype(np.float64))
