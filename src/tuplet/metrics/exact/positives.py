"""The positives of each query, nearest first, with their exact similarities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from tuplet.metrics.exact.similarity import CHUNK_BYTES, Similarity


@final
class ClassOrder:
    """Queries and gallery in the order of their classes, each class's items in the order of their indices.

    In this order the positives of a query are one range of the gallery, so two numbers per query replace an
    N x M mask.

    Attributes:
        queries: indices of the queries that have a positive, or of all where the gallery is the queries, so
            that both are in the same order; `[n]`.
        gallery: indices of the gallery's items, `[M]`.
        first, last: where in `gallery` the class of each of `queries` begins and ends, `[n]` each.
        num_positives: R of each of `queries`, `[n]`.
        query_labels, gallery_labels: as given.
    """

    def __init__(self, query_labels: Int64[Tensor, " N"], gallery_labels: Int64[Tensor, " M"] | None) -> None:
        self.query_labels = query_labels
        self.gallery_labels = query_labels if gallery_labels is None else gallery_labels
        sorted_gallery, self.gallery = self.gallery_labels.sort(stable=True)
        sorted_queries, self.queries = query_labels.sort(stable=True)
        self.first = torch.searchsorted(sorted_gallery, sorted_queries)
        self.last = torch.searchsorted(sorted_gallery, sorted_queries, right=True)
        self.num_positives = self.last - self.first - int(gallery_labels is None)
        if gallery_labels is not None:
            has_positive = self.num_positives > 0
            self.queries, self.num_positives = self.queries[has_positive], self.num_positives[has_positive]
            self.first, self.last = self.first[has_positive], self.last[has_positive]


@dataclass(frozen=True)
class Positives:
    """Positives of some queries, nearest first, those of each query after those of the one before.

    Attributes:
        start: where each query's positives begin, `[n]`; one unused place follows those of each query.
        count: how many it has, R, `[n]`.
        similarity: exact, `[T + n]`; -inf in the unused places.
        item: index into the gallery, `[T + n]`.
    """

    start: Int64[Tensor, " n"]
    count: Int64[Tensor, " n"]
    similarity: Float64[Tensor, " T"]
    item: Int64[Tensor, " T"]

    def before(
        self,
        rows: Int64[Tensor, " p"],
        similarity: Float64[Tensor, " p"],
        item: Int64[Tensor, " p"] | None = None,
    ) -> Int64[Tensor, " p"]:
        """Count the positives of a query that come before a gallery item of a given similarity and index.

        Args:
            rows: place of the query in `start`, one per item.
            similarity: of each query to its item, on the scale of the exact similarities.
            item: its index into the gallery, which decides between equals; None: no equal comes before it.
        Returns: per item, in 0..R.
        """
        # A binary search for all p at once: torch.searchsorted takes neither ranges nor a second key.
        low = self.start[rows]
        high = low + self.count[rows]
        while bool((low < high).any()):
            middle = (low + high) >> 1
            there = self.similarity[middle]
            earlier = there > similarity
            if item is not None:
                earlier |= (there == similarity) & (self.item[middle] < item)
            # An empty range stays: what is at its place does not come before, and -inf never does.
            low, high = torch.where(earlier, middle + 1, low), torch.where(earlier, high, middle)
        return low - self.start[rows]


def find_positives(similarity: Similarity, classes: ClassOrder, rows: Int64[Tensor, " n"]) -> Positives:
    """Find the positives of the queries at `rows` of `classes.queries`, which ascend."""
    counts = classes.num_positives[rows]
    start = _starts(counts)
    size = int(counts.sum()) + len(rows)
    sorted_similarity = torch.full((size,), -torch.inf, dtype=torch.float64, device=counts.device)
    items = torch.zeros(size, dtype=torch.int64, device=counts.device)
    for places, queries, gallery in _tables(similarity, classes, rows):
        table = similarity.exact_tables(queries, gallery)
        if similarity.excludes_self:
            table.masked_fill_(queries[:, :, None] == gallery[:, None, :], -torch.inf)
        table, order = table.sort(dim=2, descending=True, stable=True)
        num_positives = table.shape[2] - int(similarity.excludes_self)
        into = start[places][:, :, None] + torch.arange(num_positives, device=start.device)
        sorted_similarity[into] = table[:, :, :num_positives]
        sorted_gallery = gallery[:, None, :].expand(table.shape).gather(2, order)
        items[into] = sorted_gallery[:, :, :num_positives]
    return Positives(start, counts, sorted_similarity, items)


def positives_of_pairs(
    num_queries: int, rows: Int64[Tensor, " p"], similarity: Float64[Tensor, " p"], item: Int64[Tensor, " p"]
) -> Positives:
    """Return the `Positives` of pairs that are given in any order.

    Args:
        num_queries: n.
        rows: the query of each positive, in 0..n-1.
        similarity: of each positive to its query.
        item: its place in the gallery.
    """
    # Stable sorts from the last key to the first: by index, by similarity, by query.
    order = item.argsort()
    order = order[similarity[order].argsort(descending=True, stable=True)]
    order = order[rows[order].argsort(stable=True)]
    counts = torch.bincount(rows, minlength=num_queries)
    into = torch.arange(len(rows), device=rows.device) + rows[order]
    places = len(rows) + num_queries
    return Positives(
        _starts(counts),
        counts,
        similarity.new_full((places,), -torch.inf).index_copy_(0, into, similarity[order]),
        item.new_zeros(places).index_copy_(0, into, item[order]),
    )


def rows_and_positions(counts: Int64[Tensor, " k"]) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " p"]]:
    """Return the row of each entry of ragged rows, and its position in the row from 1 on.

    >>> rows_and_positions(torch.tensor([2, 0, 1]))
    (tensor([0, 0, 2]), tensor([1, 2, 1]))

    Args:
        counts: entries in each row, >= 0.
    """
    row = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return row, torch.arange(1, len(row) + 1, device=counts.device) - first[row]


def _starts(counts: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    return (counts + 1).cumsum(0) - counts - 1


def _tables(
    similarity: Similarity, classes: ClassOrder, rows: Int64[Tensor, " n"]
) -> Iterator[tuple[Int64[Tensor, "k b"], Int64[Tensor, "k b"], Int64[Tensor, "k m"]]]:
    """Yield classes of one size at a time: places in `rows`, the queries there, the items of each class."""
    # Classes of equal size stack into one batched product: thousands of classes of five images are one call.
    _, num_queries = torch.unique_consecutive(classes.first[rows], return_counts=True)
    begin = num_queries.cumsum(0) - num_queries
    num_items = (classes.last - classes.first)[rows[begin]]
    shapes = torch.stack([num_queries, num_items], dim=1)
    sizes, size_of_class = torch.unique(shapes, dim=0, return_inverse=True)
    width = similarity.queries.shape[1]
    for index, (b, m) in enumerate(sizes.tolist()):
        begins = begin[size_of_class == index]
        most_rows = max(1, CHUNK_BYTES // (8 * (m + width)) - m)
        step = max(1, CHUNK_BYTES // (8 * (b * m + (b + m) * width)))
        for some in torch.split(begins, step):
            gallery_places = classes.first[rows[some]][:, None] + torch.arange(m, device=rows.device)
            for columns in torch.split(torch.arange(b, device=rows.device), most_rows):
                places = some[:, None] + columns
                yield places, classes.queries[rows[places]], classes.gallery[gallery_places]
