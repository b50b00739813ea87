"""How each query's positives rank, by counting what comes before them: no sort, no list of results.

A similarity that is computed in float32 is compared with the exact ones of the positives. Where the bound
on its error leaves the comparison open, the pair is computed exactly. A positive that cannot be among the
first R any more is given up; soon a whole block asks one question only: is anything here worth a look?

Sizes: n queries, M gallery items, T positives of all queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from tuplet.metrics._positives import Classes, find_positives
from tuplet.metrics._ranking import Ranks, join, rank_by_sorting
from tuplet.metrics._similarity import Similarity

BLOCK_ROWS, BLOCK_COLUMNS = 1024, 512
"""A block of similarities on a CPU, which stays in its cache."""
STRIP_ROWS = 4096
"""Queries whose vectors are prepared together; a multiple of BLOCK_ROWS, as that is of BLOCK_COLUMNS."""
GPU_BLOCK = 8192
"""Each of the three on a GPU."""
MOST_POSITIVES = 2**22
"""Positives that are held at a time, of some 40 bytes each, unless a single query has more."""
SAMPLE = 128
"""Gallery items that are looked at first, to give up hopeless positives before they cost anything."""
MOST_DOUBTS = 256
"""Pairs of one query that are computed exactly; a query with more is ranked by sorting."""


def rank_by_counting(similarity: Similarity, classes: Classes, *, most_before: int) -> Ranks:
    """The ranks of the positives of each query that has any, as `rank_by_sorting` gives them.

    Args:
        similarity: of the queries to the gallery.
        classes: of both.
        most_before: items before the nearest positive are counted up to this number, >= 1.
    """
    held = classes.num_positives + 1
    if similarity.excludes_self and int(held.sum()) <= MOST_POSITIVES:
        counts = _Counts(similarity, classes, slice(0, len(classes.queries)), most_before)
        _count_pairs(similarity, classes, counts)
        return counts.ranks()
    parts = []
    start, bounds = 0, held.cumsum(0)
    while start < len(held):
        held_before = int(bounds[start] - held[start])
        fitting = int(torch.searchsorted(bounds, held_before + MOST_POSITIVES, right=True))
        stop = min(max(fitting, start + 1), start + _sizes(held.device)[0])
        counts = _Counts(similarity, classes, slice(start, stop), most_before)
        _count_all(similarity, classes, counts)
        parts.append(counts.ranks())
        start = stop
    return join(parts)


def _count_pairs(similarity: Similarity, classes: Classes, counts: _Counts) -> None:
    """Count all queries among themselves, each product serving both sides."""
    items = classes.gallery
    strip_rows, block_rows, block_columns = _sizes(items.device)
    for strip in _ranges(0, len(items), strip_rows):
        vectors = similarity.query_rows(items[strip])
        for columns in _ranges(strip.start, len(items), block_columns):
            others = similarity.gallery_rows(items[columns])
            for rows in _ranges(strip.start, strip.stop, block_rows):
                if rows.start >= columns.stop:
                    break
                own = vectors[rows.start - strip.start : rows.stop - strip.start]
                products = counts.without_positives(similarity.products(own, others), rows, columns)
                counts.count(products, rows, items[columns])
                # Blocks across the diagonal hold both directions already.
                if columns.start >= rows.stop:
                    counts.count(products.T, columns, items[rows])


def _count_all(similarity: Similarity, classes: Classes, counts: _Counts) -> None:
    """Count a few queries in the whole gallery."""
    _, block_rows, block_columns = _sizes(classes.gallery.device)
    vectors = similarity.query_rows(counts.queries)
    for columns in _ranges(0, len(classes.gallery), block_columns):
        items = classes.gallery[columns]
        others = similarity.gallery_rows(items)
        for rows in _ranges(0, len(vectors), block_rows):
            products = counts.without_positives(similarity.products(vectors[rows], others), rows, columns)
            counts.count(products, rows, items)


@final
class _Counts:
    """What is known so far of some queries.

    Attributes:
        queries: their indices, `[n]`.
    """

    def __init__(self, similarity: Similarity, classes: Classes, rows: slice, most_before: int) -> None:
        self._similarity, self._classes, self._most_before = similarity, classes, most_before
        self.queries = classes.queries[rows]
        self._first_row = rows.start
        self._first, self._last = classes.first[rows], classes.last[rows]
        self._bounds = self._first.cpu(), self._last.cpu()
        self._positives = find_positives(
            similarity, classes, torch.arange(rows.start, rows.stop, device=self.queries.device)
        )
        count = self._positives.count
        self._bound = similarity.bound[self.queries]
        # hits[start + j]: negatives after j positives and before the next.
        self._hits = torch.zeros(len(self._positives.item), dtype=torch.int64, device=count.device)
        self._doubts = torch.zeros_like(count)
        # The nearest `alive` positives may still be among the first R.
        self._alive = count - self._hopeless()
        self._lowest = torch.full(count.shape, torch.inf, device=count.device)
        self._surely = self._lowest.clone()
        self._refresh((count > 0).nonzero()[:, 0])

    def without_positives(
        self, products: Float32[Tensor, "b m"], rows: slice, columns: slice
    ) -> Float32[Tensor, "b m"]:
        """The products, with -inf in place of positives and self."""
        first, last = self._bounds
        if first[rows.start] < columns.stop and last[rows.stop - 1] > columns.start:
            place = torch.arange(columns.start, columns.stop, device=products.device)
            products.masked_fill_(
                (place >= self._first[rows, None]) & (place < self._last[rows, None]), -torch.inf
            )
        return products

    def count(self, products: Float32[Tensor, "b m"], rows: slice, items: Int64[Tensor, " m"]) -> None:
        """Count the negatives of a block that come before positives of some queries.

        Args:
            products: approximate similarities, -inf at positives.
            rows: which of these queries.
            items: indices into the gallery.
        """
        chosen = (products.amax(1) >= self._lowest[rows]).nonzero()[:, 0]
        if len(chosen) == 0:
            return
        products, places = products[chosen], chosen + rows.start
        above = products > self._surely[places, None]
        self._hits[self._positives.start[places]] += above.sum(1)
        row, column = ((products >= self._lowest[places, None]) ^ above).nonzero(as_tuple=True)
        self._place(places[row], items[column], products[row, column])
        self._refresh(places)

    def ranks(self) -> Ranks:
        """The ranks of the positives of those of the queries that have any, once all is counted."""
        start, count = self._positives.start, self._positives.count
        r_precision = torch.zeros(len(count), dtype=torch.float64, device=count.device)
        average_precision = torch.zeros_like(r_precision)
        rows, position, before = self._negatives(torch.arange(len(count), device=count.device))
        found = before + position <= count[rows]
        rows, position, before = rows[found], position[found], before[found]
        r_precision.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float64))
        average_precision.index_add_(0, rows, position / (before + position).double())
        ranks = [self.queries, self._hits[start], r_precision / count, average_precision / count]
        hard = self._doubts > MOST_DOUBTS
        easy = (count > 0) & ~hard
        parts = [Ranks(*(values[easy] for values in ranks))]
        if bool(hard.any()):
            places = hard.nonzero()[:, 0] + self._first_row
            parts.append(rank_by_sorting(self._similarity, self._classes, places))
        return join(parts)

    def _hopeless(self) -> Int64[Tensor, " n"]:
        """How many positives of each query cannot be among the first R, by a sample of the gallery."""
        start, count = self._positives.start, self._positives.count
        hopeless = torch.zeros_like(count)
        size = len(self._classes.gallery)
        if size < 4 * SAMPLE:
            return hopeless
        places = torch.arange(SAMPLE, device=count.device) * (size // SAMPLE)
        others = self._similarity.gallery_rows(self._classes.gallery[places])
        for rows in torch.split(torch.arange(len(count), device=count.device), STRIP_ROWS):
            products = self._similarity.products(self._similarity.query_rows(self.queries[rows]), others)
            positive = (places >= self._first[rows, None]) & (places < self._last[rows, None])
            nearest = products.masked_fill_(positive, -torch.inf).sort(dim=1, descending=True).values
            row, position = _each(count[rows])
            # So many negatives before it put the positive at this position behind the first R.
            enough = count[rows][row] - position
            surely = nearest[row, enough.clamp(max=SAMPLE - 1)].double() - self._bound[rows][row]
            gone = (enough < SAMPLE) & (surely > self._positives.similarity[start[rows][row] + position - 1])
            hopeless[rows] = torch.zeros_like(rows).index_add_(0, row, gone.long())
        return hopeless

    def _place(
        self, rows: Int64[Tensor, " p"], items: Int64[Tensor, " p"], products: Float32[Tensor, " p"]
    ) -> None:
        """Count negatives before the positives that they precede."""
        positives, bound = self._positives, self._bound[rows]
        similarity = products.double()
        after = positives.before(rows, similarity + bound, torch.full_like(items, -1))
        at_most = positives.before(rows, similarity - bound, torch.full_like(items, len(self._hits) + 2**62))
        doubtful = after < at_most
        self._doubts.index_add_(0, rows, doubtful.long())
        doubtful = (doubtful & (self._doubts[rows] <= MOST_DOUBTS)).nonzero()[:, 0]
        if len(doubtful) > 0:
            some, there = rows[doubtful], items[doubtful]
            exact = self._similarity.exact_pairs(self.queries[some], there)
            after[doubtful] = positives.before(some, exact, there)
        self._hits.index_add_(0, positives.start[rows] + after, torch.ones_like(rows))

    def _refresh(self, rows: Int64[Tensor, " k"]) -> None:
        """Give up positives of some queries, and say what of the gallery still matters to them."""
        start, similarity = self._positives.start[rows], self._positives.similarity
        which, position, before = self._negatives(rows)
        alive = torch.zeros_like(rows)
        alive.index_add_(0, which, (before + position <= self._positives.count[rows][which]).long())
        self._alive[rows] = alive
        wanted = (alive > 0) | (self._hits[start] < self._most_before)
        wanted &= self._doubts[rows] <= MOST_DOUBTS
        lowest = similarity[start + (alive - 1).clamp(min=0)] - self._bound[rows]
        surely = similarity[start] + self._bound[rows]
        self._lowest[rows] = torch.where(wanted, lowest, torch.inf).float()
        self._surely[rows] = torch.where(wanted, surely, torch.inf).float()

    def _negatives(
        self, rows: Int64[Tensor, " k"]
    ) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " p"], Int64[Tensor, " p"]]:
        """The positives that may be among the first R: whose, position from 1 on, negatives before so far."""
        row, position = _each(self._alive[rows])
        hits = self._hits[self._positives.start[rows][row] + position - 1]
        before = hits.cumsum(0)
        begins = (position == 1).nonzero()[:, 0]
        earlier = before[begins] - hits[begins]
        return row, position, before - earlier.repeat_interleave(self._alive[rows][row[begins]])


def _each(counts: Int64[Tensor, " k"]) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " p"]]:
    """For each of so many things: whose it is, and its number from 1 on."""
    row = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return row, torch.arange(1, len(row) + 1, device=counts.device) - first[row]


def _sizes(device: torch.device) -> tuple[int, int, int]:
    """Rows of a strip, rows and columns of a block."""
    on_gpu = device.type == "cuda"
    return (GPU_BLOCK,) * 3 if on_gpu else (STRIP_ROWS, BLOCK_ROWS, BLOCK_COLUMNS)


def _ranges(start: int, stop: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))
