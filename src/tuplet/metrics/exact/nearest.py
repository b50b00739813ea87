"""The first results of each query: candidates by float32 products, put in order by exact similarities."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tuplet.metrics.exact.counts import each
from tuplet.metrics.exact.ranking import BLOCK_BYTES, exact_similarities, first_results
from tuplet.metrics.exact.similarity import Similarity

MOST_EXTRA = 64
"""Candidates of a query beyond k; with more, all of its similarities are computed exactly."""


def nearest_items(similarity: Similarity, k: int) -> tuple[Int64[Tensor, "N k"], Float64[Tensor, "N k"]]:
    """The k nearest gallery items of each query, nearest first, and their exact similarities.

    Args:
        similarity: of N queries to M gallery items.
        k: in 1..M, or 1..N-1 where no query finds itself.
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
    """The gallery items of some queries that may be among the first k, and maybe a few more."""
    products = similarity.products(similarity.query_rows(rows), gallery)
    if similarity.excludes_self:
        products.scatter_(1, rows[:, None], -torch.inf)
    kth = products.topk(k, dim=1).values[:, -1:].double()
    # Twice the bound: the k-th may be less than it seems, and another more.
    margin = 2.0 * similarity.bound[rows, None]
    return products >= (kth - margin * (1.0 + 2.0**-20)).float()


def _first_of(
    similarity: Similarity, rows: Int64[Tensor, " b"], candidates: Bool[Tensor, "b M"], k: int
) -> tuple[Int64[Tensor, "b k"], Float64[Tensor, "b k"]]:
    """The first k of each query's candidates."""
    row, item = candidates.nonzero(as_tuple=True)
    counts = candidates.sum(1)
    width = int(counts.max()) if len(rows) else k
    place = each(counts)[1] - 1
    table = torch.full((len(rows), width), -torch.inf, dtype=torch.float64, device=row.device)
    items = torch.zeros(len(rows), width, dtype=torch.int64, device=row.device)
    items[row, place] = item
    if len(row) > 0:
        table[row, place] = similarity.exact_pairs(rows[row], item)
    # Candidates stand in the order of the gallery, which a stable sort leaves among equals.
    order = table.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return items.gather(1, order), table.gather(1, order)
