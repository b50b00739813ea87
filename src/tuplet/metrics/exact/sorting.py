"""Ranks and nearest items by sorting exact similarities: slow, but the definition, for any embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from tuplet.metrics.exact.positives import ClassOrder, rows_and_positions
from tuplet.metrics.exact.similarity import Similarity

BLOCK_BYTES = 2**24
"""Size of one block of similarities; a handful of temporaries of about that size live at once."""
MOST_EXTRA = 64
"""Candidates of a query beyond k; with more, all of its similarities are computed exactly."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of the positives of some queries, summed up as the metrics need them.

    Attributes:
        queries: which ones, `[n]`.
        num_before: gallery items before the nearest positive, `[n]`.
        r_precision: share of positives among the first R, `[n]`.
        average_precision: at R, `[n]`.
    """

    queries: Int64[Tensor, " n"]
    num_before: Int64[Tensor, " n"]
    r_precision: Float64[Tensor, " n"]
    average_precision: Float64[Tensor, " n"]

    def of(self, which: Tensor) -> Ranks:
        """Return the ranks of some of the queries, selected by a mask or by places."""
        return Ranks(*(getattr(self, field.name)[which] for field in fields(self)))


def join(parts: Sequence[Ranks]) -> Ranks:
    """Join the ranks of several parts, at least one."""
    return Ranks(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Ranks)))


def rank_by_sorting(similarity: Similarity, classes: ClassOrder, rows: Int64[Tensor, " n"]) -> Ranks:
    """Rank the positives of the queries at `rows` of `classes.queries` by a stable sort of everything."""
    # Queries of similar R share a block, since a block ranks as many results as its largest R.
    rows = rows[classes.num_positives[rows].argsort(stable=True)]
    parts = []
    for places in blocks(rows, len(classes.gallery)):
        queries, num_positives = classes.queries[places], classes.num_positives[places]
        table = exact_similarities(similarity, queries)
        # Self counts as a positive here, but its similarity is -inf: it is behind the first R results.
        positive = classes.query_labels[queries, None] == classes.gallery_labels
        relevant = positive.gather(1, first_results(table, int(num_positives.max())))
        precisions = _precisions_at_r(relevant, num_positives)
        parts.append(Ranks(queries, _rank_of_nearest(table, positive), *precisions))
    return join(parts)


def nearest_items(similarity: Similarity, k: int) -> tuple[Int64[Tensor, "N k"], Float64[Tensor, "N k"]]:
    """Find the k nearest gallery items of each query, nearest first, and their exact similarities.

    Float32 products choose the candidates, exact similarities put them in order.
    """
    num_queries, size = len(similarity.queries), len(similarity.gallery)
    device = similarity.queries.device
    items = torch.empty(num_queries, k, dtype=torch.int64, device=device)
    exact = torch.empty(num_queries, k, dtype=torch.float64, device=device)
    gallery = similarity.gallery_rows(torch.arange(size, device=device))
    step = max(1, BLOCK_BYTES // (4 * size))
    for rows in torch.split(torch.arange(num_queries, device=device), step):
        candidates = _candidates(similarity, rows, gallery, k)
        few = candidates.sum(1) <= k + MOST_EXTRA
        items[rows[few]], exact[rows[few]] = _first_of(similarity, rows[few], candidates[few], k)
        for row in torch.split(rows[~few], max(1, step // 4)):
            table = exact_similarities(similarity, row)
            items[row] = first_results(table, k)
            exact[row] = table.gather(1, items[row])
    return items, exact


def _candidates(
    similarity: Similarity, rows: Int64[Tensor, " b"], gallery: Tensor, k: int
) -> Bool[Tensor, "b M"]:
    """Mark the gallery items of some queries that may be among the first k, and maybe a few more."""
    products = similarity.products(similarity.query_rows(rows), gallery)
    if similarity.excludes_self:
        products.scatter_(1, rows[:, None], -torch.inf)
    kth = products.topk(k, dim=1).values[:, -1:].double()
    # Twice the bound: the exact similarity of the k-th may be lower than its product, and another's higher.
    margin = 2.0 * similarity.bound[rows, None]
    return products >= (kth - margin * (1.0 + 2.0**-20)).float()


def _first_of(
    similarity: Similarity, rows: Int64[Tensor, " b"], candidates: Bool[Tensor, "b M"], k: int
) -> tuple[Int64[Tensor, "b k"], Float64[Tensor, "b k"]]:
    """Return the first k of each query's candidates, with their exact similarities."""
    row, item = candidates.nonzero(as_tuple=True)
    counts = candidates.sum(1)
    width = int(counts.max()) if len(rows) else k
    place = rows_and_positions(counts)[1] - 1
    table = torch.full((len(rows), width), -torch.inf, dtype=torch.float64, device=row.device)
    items = torch.zeros(len(rows), width, dtype=torch.int64, device=row.device)
    items[row, place] = item
    if len(row) > 0:
        table[row, place] = similarity.exact_pairs(rows[row], item)
    # Candidates are in the order of the gallery; a stable sort keeps that order among equals.
    order = table.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return items.gather(1, order), table.gather(1, order)


def blocks(rows: Int64[Tensor, " n"], gallery_size: int) -> Iterator[Int64[Tensor, " b"]]:
    """Yield as many rows at a time as fit `BLOCK_BYTES` of exact similarities, at least one."""
    return iter(torch.split(rows, max(1, BLOCK_BYTES // (8 * gallery_size))))


def exact_similarities(similarity: Similarity, queries: Int64[Tensor, " b"]) -> Float64[Tensor, "b M"]:
    """Compute exact similarities of some queries to the whole gallery; -inf at an excluded self."""
    everything = torch.arange(len(similarity.gallery), device=queries.device)
    parts = torch.split(everything, max(1, BLOCK_BYTES // (8 * similarity.gallery.shape[1])))
    table = torch.cat([similarity.exact_tables(queries[None], part[None])[0] for part in parts], dim=1)
    return table.scatter_(1, queries[:, None], -torch.inf) if similarity.excludes_self else table


def first_results(similarity: Float[Tensor, "b M"], k: int) -> Int64[Tensor, "b k"]:
    """Return the k most similar gallery items of each query in order; ties by gallery index, no NaN."""
    # topk does not define which of several tied items it returns, so only its k-th value is used.
    threshold = similarity.topk(k, dim=1).values[:, -1:]
    chosen = similarity >= threshold
    if int(chosen.sum()) > len(similarity) * k:
        above = similarity > threshold
        tied = chosen & ~above
        chosen = above | (tied & (tied.cumsum(1) <= k - above.sum(1, keepdim=True)))
    ascending = chosen.nonzero()[:, 1].view(len(similarity), k)
    order = similarity.gather(1, ascending).sort(dim=1, descending=True, stable=True).indices
    return ascending.gather(1, order)


def _rank_of_nearest(similarity: Float[Tensor, "b M"], wanted: Bool[Tensor, "b M"]) -> Int64[Tensor, " b"]:
    """Count the gallery items before the first wanted one of each query; at least one is above -inf."""
    # Of equal maxima, torch.max gives the first.
    nearest, column = similarity.masked_fill(~wanted, -torch.inf).max(dim=1, keepdim=True)
    before = torch.arange(similarity.shape[1], device=similarity.device) < column
    return (similarity > nearest).sum(1) + ((similarity == nearest) & before).sum(1)


def _precisions_at_r(
    relevant: Bool[Tensor, "b K"], num_positives: Int64[Tensor, " b"]
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """Compute R-precision and average precision at R from whether each of the first K >= R is a positive."""
    position = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    relevant = relevant & (position <= num_positives[:, None])
    precision = relevant.cumsum(1).double() / position
    return relevant.sum(1) / num_positives.double(), (precision * relevant).sum(1) / num_positives
