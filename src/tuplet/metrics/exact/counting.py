"""Count how each query's positives rank: how many negatives come before each of them.

Why ranks are counted, not sorted: Recall@K, R-precision and MAP@R need the ranks of a query's R positives and
nothing else of its M results. With the exact similarities of the positives at hand, a rank is the number of
negatives before it, and counting is one comparison a pair, on products that the cache still holds. There is
no N x M matrix, no sort of M numbers and no list of results.

How ties are exact: a float32 product that differs from a positive's exact similarity by more than the bound
lies surely before or surely after that positive. A pair in between is in doubt and is computed exactly; of
equals the lower index comes first. Random embeddings leave fewer than one doubt a query. Copies and collapsed
embeddings leave thousands: beyond `MOST_DOUBTS` a query is hard, and its exact similarities are sorted after
all.

Why blocks: they bound the memory, and they let a query stop early. A positive whose rank is beyond R
counts neither for R-precision nor for MAP@R and is given up. The similarity that a negative must reach to
matter rises with every positive given up, until most blocks are dismissed by their largest product alone.

Sizes: n queries, M gallery items, T positives of all queries, p pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias, final

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from tuplet.metrics.exact.positives import ClassOrder, Positives, each, find_positives
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
"""Gallery items that are looked at first, to give up hopeless positives before they cost anything."""
MOST_DOUBTS = 256
"""Pairs of one query that are computed exactly; with more, the query is hard."""
PENDING_BLOCKS, PENDING_PAIRS = 8, 2**14
"""Blocks that are settled together, unless one of them has more pairs to look at than this."""

ExactPairs: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def rank_by_counting(similarity: Similarity, classes: ClassOrder, *, most_before: int) -> Ranks:
    """Rank the positives of each query that has any, as `rank_by_sorting` does.

    Items before the nearest positive are counted up to `most_before`, >= 1.
    """
    held = classes.num_positives + 1
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
    """Give up positives by a sample of the gallery."""
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

    Among themselves, the product of a pair serves both sides: half of the blocks are multiplied and each of
    them is counted along its rows and along its columns.
    """
    queries, items = classes.queries[some], classes.gallery
    first, last = classes.first[some, None], classes.last[some, None]
    # Lists, since reading a number off a GPU waits for all that it was given to do.
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
                # Blocks across the diagonal hold both directions already.
                if among_themselves and columns.start >= rows.stop:
                    counts.count(products.T, columns, items[rows], items[rows], exact)
    counts.settle(exact)


@final
class Counts:
    """The negatives before each positive of n queries, as far as they are counted.

    A negative between two thresholds is placed among the positives: above `_surely` it comes before all of
    them, below `_lowest` it cannot change a metric. Both are the similarity of a positive, moved by the
    bound.

    Attributes:
        positives: of each query.
    """

    def __init__(self, positives: Positives, bound: Float64[Tensor, " n"], *, most_before: int) -> None:
        self.positives, self._bound, self._most_before = positives, bound, most_before
        count = positives.count
        # hits[start + j]: negatives after j positives and before the next.
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
        row, position = each(count)
        # So many negatives before it put the positive at this position behind the first R.
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
            there: what `exact` calls the items.
            exact: from places among the queries, and items there, to exact similarities.
        """
        chosen = (products.amax(1) >= self._lowest[rows]).nonzero()[:, 0]
        if len(chosen) == 0:
            return
        products, places = products[chosen], chosen + rows.start
        above = products > self._surely[places, None]
        self._num_between[self.positives.start[places]] += above.sum(1)
        row, column = ((products >= self._lowest[places, None]) ^ above).nonzero(as_tuple=True)
        found = places[row], there[column], items[column], products[row, column].double()
        self._pending.append((places, *found))
        if len(self._pending) == PENDING_BLOCKS or len(row) > PENDING_PAIRS:
            self.settle(exact)

    def settle(self, exact: ExactPairs) -> None:
        """Place the pairs that were put off: a few blocks together, for each takes many small steps."""
        if self._pending:
            places, rows, there, items, similarity = map(torch.cat, zip(*self._pending, strict=True))
            self._pending.clear()
            self._place(rows, there, items, similarity, exact)
            self._refresh(torch.unique(places))

    def hard(self) -> Int64[Tensor, " k"]:
        """Return the queries with too many doubts: what was counted of them is incomplete."""
        return (self._doubts > MOST_DOUBTS).nonzero()[:, 0]

    def begin_again(self, rows: Int64[Tensor, " k"]) -> None:
        """Forget what was counted of some queries, to `count_exactly`."""
        row, position = each(self.positives.count[rows] + 1)
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
        found = before + position <= count[rows]
        rows, position, before = rows[found], position[found], before[found]
        r_precision.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float64))
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
        """Count negatives before the positives they precede, exactly where the product leaves a doubt."""
        positives, bound = self.positives, self._bound[rows]
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
        """Return, of the positives still alive: whose, position from 1 on, negatives before it so far."""
        row, position = each(self._alive[rows])
        hits = self._num_between[self.positives.start[rows][row] + position - 1]
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
