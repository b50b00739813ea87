"""Count how each query's positives rank: how many negatives come before each of them.

Why ranks are counted, not sorted: Recall@K, R-precision and MAP@R need the ranks of a query's R positives and
nothing else of its M results. Once the exact similarities of the positives are known, the rank of one is the
number of negatives before it plus its position among the positives. Counting takes one comparison per pair,
on products that are still in the cache, and needs no N x M matrix, no sort of M numbers, no list of results.

How ties are exact: a negative whose float32 product differs from a positive's exact similarity by more than
the bound comes certainly before or certainly after that positive. Every other pair is in doubt and is
computed exactly; of equal similarities the lower index comes first. Random embeddings leave fewer than one
doubt per query. Copies and collapsed embeddings leave thousands: with more than `MOST_DOUBTS` a query is
hard, and all its exact similarities are sorted instead.

Why blocks: they bound the memory, and they let a query stop early. A positive with a rank above R counts
neither for R-precision nor for MAP@R and is given up. With every positive that is given up, a negative has to
be more similar to matter. In the end most blocks are skipped because their largest product is too small.

Sizes: n queries, M gallery items, T positives of all queries, p pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias, final

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from tuplet.metrics.exact.positives import ClassOrder, Positives, find_positives, rows_and_positions
from tuplet.metrics.exact.similarity import Similarity
from tuplet.metrics.exact.sorting import Ranks, join, rank_by_sorting

BLOCK_ROWS, BLOCK_COLUMNS = 1024, 1024
"""A block of similarities on a CPU, which stays in its cache."""
STRIP_ROWS = 8192
"""Queries whose vectors are prepared together; a multiple of BLOCK_ROWS, as that is of BLOCK_COLUMNS."""
GPU_BLOCK = 8192
"""Each of the three on a GPU."""
MOST_POSITIVES = 2**22
"""Positives that are held at a time, of some 40 bytes each, unless a single query has more."""
SAMPLE = 256
"""Gallery items that are compared first, to give up positives with a rank above R before the full count."""
MOST_DOUBTS = 256
"""Largest number of pairs of one query that are computed exactly; with more, the query is hard."""
PENDING_BLOCKS, PENDING_PAIRS = 8, 2**14
"""Blocks whose pairs are placed together, unless a block has more pairs to place than `PENDING_PAIRS`."""

ExactPairs: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def rank_by_counting(similarity: Similarity, classes: ClassOrder, *, most_before: int) -> Ranks:
    """Rank the positives of each query that has any, with the results of `rank_by_sorting`.

    Args:
        similarity: of queries and gallery.
        classes: of both.
        most_before: items before the nearest positive are counted up to this, >= 1.
    """
    held = classes.num_positives + 1  # `Positives` has one unused place per query
    if similarity.excludes_self and int(held.sum()) <= MOST_POSITIVES:
        return _ranks(similarity, classes, slice(0, len(held)), most_before, among_themselves=True)
    parts = []
    start, bounds = 0, held.cumsum(0)
    while start < len(held):
        held_before = int(bounds[start] - held[start])
        fitting = int(torch.searchsorted(bounds, held_before + MOST_POSITIVES, right=True))
        stop = min(max(fitting, start + 1), start + block_sizes(held.device)[0])
        parts.append(_ranks(similarity, classes, slice(start, stop), most_before, among_themselves=False))
        start = stop
    return join(parts)


def _ranks(
    similarity: Similarity, classes: ClassOrder, some: slice, most_before: int, *, among_themselves: bool
) -> Ranks:
    queries = classes.queries[some]
    rows = torch.arange(some.start, some.stop, device=queries.device)
    positives = find_positives(similarity, classes, rows)
    counts = Counts(positives, similarity.bound[queries], most_before=most_before)
    _give_up(similarity, classes, counts, some)
    _count(similarity, classes, counts, some, among_themselves=among_themselves)
    ranks, hard = counts.ranks(queries), counts.hard()
    easy = positives.count > 0
    easy[hard] = False
    ranks = ranks.of(easy)
    if len(hard) == 0:
        return ranks
    return join([ranks, rank_by_sorting(similarity, classes, hard + some.start)])


def _give_up(similarity: Similarity, classes: ClassOrder, counts: Counts, some: slice) -> None:
    """Give up the positives that have more than R items before them in a small sample of the gallery."""
    size = len(classes.gallery)
    if size < 4 * SAMPLE:
        return
    places = torch.arange(SAMPLE, device=classes.gallery.device) * (size // SAMPLE)
    others = similarity.gallery_rows(classes.gallery[places])
    for rows in ranges(some.start, some.stop, block_sizes(places.device)[0]):
        products = similarity.products(similarity.query_rows(classes.queries[rows]), others)
        positive = (places >= classes.first[rows, None]) & (places < classes.last[rows, None])
        of_these = slice(rows.start - some.start, rows.stop - some.start)
        counts.give_up(products.masked_fill_(positive, -torch.inf), of_these)


def _count(
    similarity: Similarity, classes: ClassOrder, counts: Counts, some: slice, *, among_themselves: bool
) -> None:
    """Count some queries in the whole gallery, or all queries among themselves.

    Among themselves, similarity is symmetric: only half of the blocks are multiplied, and each is counted for
    the queries of its rows and for those of its columns.
    """
    queries, items = classes.queries[some], classes.gallery
    first, last = classes.first[some, None], classes.last[some, None]
    # As lists: reading a single number from a GPU would wait, in every block, for all work queued on it.
    firsts, lasts = classes.first[some].tolist(), classes.last[some].tolist()
    strip_rows, block_rows, block_columns = block_sizes(items.device)

    def exact(rows: Tensor, columns: Tensor) -> Tensor:
        return similarity.exact_pairs(queries[rows], columns)

    for strip in ranges(0, len(queries), strip_rows):
        vectors = similarity.query_rows(queries[strip])
        for columns in ranges(strip.start if among_themselves else 0, len(items), block_columns):
            others = similarity.gallery_rows(items[columns])
            for rows in ranges(strip.start, strip.stop, block_rows):
                if among_themselves and rows.start >= columns.stop:
                    break
                own = vectors[rows.start - strip.start : rows.stop - strip.start]
                products = similarity.products(own, others)
                if firsts[rows.start] < columns.stop and lasts[rows.stop - 1] > columns.start:
                    place = torch.arange(columns.start, columns.stop, device=items.device)
                    products.masked_fill_((place >= first[rows]) & (place < last[rows]), -torch.inf)
                counts.count(products, rows, items[columns], items[columns], exact)
                # A block that crosses the diagonal contains both directions of its pairs already.
                if among_themselves and columns.start >= rows.stop:
                    counts.count(products.T, columns, items[rows], items[rows], exact)
    counts.settle(exact)


@final
class Counts:
    """The negatives before each positive of n queries, counted so far.

    Each query has two thresholds on the product of a negative. Above `_surely`, the similarity of the nearest
    positive plus the bound, it comes before all positives. Below `_lowest`, that of the last positive that
    still counts minus the bound, it cannot change a metric. In between its place is searched for.

    Attributes:
        positives: of each query.
    """

    def __init__(self, positives: Positives, bound: Float64[Tensor, " n"], *, most_before: int) -> None:
        self.positives, self._bound, self._most_before = positives, bound, most_before
        count = positives.count
        # Entry start + j: negatives that come after j positives of the query and before the next one. Adding
        # one negative changes one entry; the number before a positive is a cumulative sum (`_negatives`).
        self._num_between = torch.zeros(len(positives.item), dtype=torch.int64, device=count.device)
        self._doubts = torch.zeros_like(count)
        # The nearest `alive` positives may still be among the first R.
        self._alive = count.clone()
        self._lowest = torch.full(count.shape, torch.inf, device=count.device)
        self._surely = self._lowest.clone()
        self._pending: list[tuple[Tensor, ...]] = []
        self._refresh((count > 0).nonzero()[:, 0])

    def give_up(self, products: Float32[Tensor, "b S"], rows: slice) -> None:
        """Give up positives that a sample of the gallery alone puts behind the first R; count nothing.

        Args:
            products: approximate similarities to the sample, -inf at positives.
            rows: of which queries.
        """
        start, count = self.positives.start[rows], self.positives.count[rows]
        nearest = products.sort(dim=1, descending=True).values
        row, position = rows_and_positions(count)
        # The rank is position + negatives before, so more than R - position negatives give a positive up.
        # The sample has them if its value number R - position, from 0 on, is surely more similar.
        enough = count[row] - position
        surely = nearest[row, enough.clamp(max=nearest.shape[1] - 1)].double() - self._bound[rows][row]
        gone = (enough < nearest.shape[1]) & (surely > self.positives.similarity[start[row] + position - 1])
        self._alive[rows].index_add_(0, row, gone.long(), alpha=-1)
        self._refresh((count > 0).nonzero()[:, 0] + rows.start)

    def count(
        self,
        products: Float32[Tensor, "b m"],
        rows: slice,
        items: Int64[Tensor, " m"],
        there: Int64[Tensor, " m"],
        exact: ExactPairs,
    ) -> None:
        """Count the negatives of a block that come before positives of some queries.

        Args:
            products: approximate similarities, -inf at positives.
            rows: of which queries.
            items: indices into the gallery, which decide between equals.
            there: the same items as `exact` numbers them.
            exact: computes exact similarities from places among the queries and items numbered as in `there`.
        """
        # Most blocks stop here: none of their products can change a metric.
        selected = (products.amax(1) >= self._lowest[rows]).nonzero()[:, 0]
        if len(selected) == 0:
            return
        products, places = products[selected], selected + rows.start
        above = products > self._surely[places, None]
        self._num_between[self.positives.start[places]] += above.sum(1)
        # What is above `_surely` is above `_lowest` too: exclusive or leaves what is between the two.
        row, column = ((products >= self._lowest[places, None]) ^ above).nonzero(as_tuple=True)
        between = places[row], there[column], items[column], products[row, column].double()
        self._pending.append((places, *between))
        if len(self._pending) == PENDING_BLOCKS or len(row) > PENDING_PAIRS:
            self.settle(exact)

    def settle(self, exact: ExactPairs) -> None:
        """Place the pending pairs; a few blocks at a time, as placing takes many small operations."""
        if self._pending:
            places, rows, there, items, similarity = map(torch.cat, zip(*self._pending, strict=True))
            self._pending.clear()
            self._place(rows, there, items, similarity, exact)
            self._refresh(torch.unique(places))

    def hard(self) -> Int64[Tensor, " k"]:
        """Return the queries with too many doubts; their counts are incomplete."""
        return (self._doubts > MOST_DOUBTS).nonzero()[:, 0]

    def begin_again(self, rows: Int64[Tensor, " k"]) -> None:
        """Reset the counts of some queries before `count_exactly`."""
        row, position = rows_and_positions(self.positives.count[rows] + 1)
        self._num_between[self.positives.start[rows][row] + position - 1] = 0
        self._alive[rows] = self.positives.count[rows]

    def count_exactly(
        self, rows: Int64[Tensor, " p"], items: Int64[Tensor, " p"], similarity: Float64[Tensor, " p"]
    ) -> None:
        """Count negatives whose exact similarities are known."""
        before = self.positives.before(rows, similarity, items)
        self._num_between.index_add_(0, self.positives.start[rows] + before, torch.ones_like(rows))

    def ranks(self, queries: Int64[Tensor, " n"]) -> Ranks:
        """Return the ranks of these queries, once all is counted; NaN where one has no positive."""
        count = self.positives.count
        r_precision = torch.zeros(len(count), dtype=torch.float64, device=count.device)
        average_precision = torch.zeros_like(r_precision)
        rows, position, before = self._negatives(torch.arange(len(count), device=count.device))
        within_r = before + position <= count[rows]
        rows, position, before = rows[within_r], position[within_r], before[within_r]
        r_precision.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float64))
        # The positive number `position` has rank before + position: the quotient is the precision there.
        average_precision.index_add_(0, rows, position / (before + position).double())
        num_before = self._num_between[self.positives.start]
        return Ranks(queries, num_before, r_precision / count, average_precision / count)

    def _place(
        self,
        rows: Int64[Tensor, " p"],
        there: Int64[Tensor, " p"],
        items: Int64[Tensor, " p"],
        similarity: Float64[Tensor, " p"],
        exact: ExactPairs,
    ) -> None:
        """Add pairs to the counts; compute the exact similarity where the product does not decide."""
        positives, bound = self.positives, self._bound[rows]
        # With the bound added, the negative comes after these positives in any case. It is in doubt if, with
        # the bound subtracted, it might come after the next positive too.
        after = positives.before(rows, similarity + bound)
        doubtful = positives.similarity[positives.start[rows] + after] >= similarity - bound
        self._doubts.index_add_(0, rows, doubtful.long())
        doubtful = (doubtful & (self._doubts[rows] <= MOST_DOUBTS)).nonzero()[:, 0]
        if len(doubtful) > 0:
            some = rows[doubtful]
            after[doubtful] = positives.before(some, exact(some, there[doubtful]), items[doubtful])
        self._num_between.index_add_(0, positives.start[rows] + after, torch.ones_like(rows))

    def _refresh(self, rows: Int64[Tensor, " k"]) -> None:
        """Give up positives of some queries, and reset their thresholds."""
        start, similarity = self.positives.start[rows], self.positives.similarity
        which, position, before = self._negatives(rows)
        alive = torch.zeros_like(rows)
        alive.index_add_(0, which, (before + position <= self.positives.count[rows][which]).long())
        self._alive[rows] = alive
        # Recall@K still needs the nearest positive, until K negatives are before it.
        wanted = (alive > 0) | (self._num_between[start] < self._most_before)
        wanted &= self._doubts[rows] <= MOST_DOUBTS
        lowest = similarity[start + (alive - 1).clamp(min=0)] - self._bound[rows]
        surely = similarity[start] + self._bound[rows]
        self._lowest[rows] = torch.where(wanted, lowest, torch.inf).float()
        self._surely[rows] = torch.where(wanted, surely, torch.inf).float()

    def _negatives(
        self, rows: Int64[Tensor, " k"]
    ) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " p"], Int64[Tensor, " p"]]:
        """Return, for each positive not given up, its query, its position from 1 on, and negatives before it.

        Positions are among the positives of the query, nearest first; negatives are those counted so far.
        """
        row, position = rows_and_positions(self._alive[rows])
        hits = self._num_between[self.positives.start[rows][row] + position - 1]
        # One cumulative sum over all queries, less its value where the positives of each query begin.
        before = hits.cumsum(0)
        begins = (position == 1).nonzero()[:, 0]
        earlier = before[begins] - hits[begins]
        return row, position, before - earlier.repeat_interleave(self._alive[rows][row[begins]])


def block_sizes(device: torch.device) -> tuple[int, int, int]:
    """Return the rows of a strip, and the rows and columns of a block."""
    on_gpu = device.type == "cuda"
    return (GPU_BLOCK,) * 3 if on_gpu else (STRIP_ROWS, BLOCK_ROWS, BLOCK_COLUMNS)


def ranges(start: int, stop: int, step: int) -> Iterator[slice]:
    """Yield slices of `step` that follow each other; the last may be shorter."""
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))
