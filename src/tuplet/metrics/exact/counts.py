"""What is counted of some queries: the negatives before each of their positives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, final

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from tuplet.metrics.exact.positives import Positives
from tuplet.metrics.exact.ranking import Ranks

ExactPairs: TypeAlias = Callable[[Tensor, Tensor], Tensor]

MOST_DOUBTS = 256
"""Pairs of one query that are computed exactly; with more, the query is hard."""
PENDING_BLOCKS, PENDING_PAIRS = 8, 2**14
"""Blocks that are settled together, unless one of them has more pairs to look at than this."""


@final
class Counts:
    """What is known so far of n queries.

    Attributes:
        positives: of each query.
    """

    def __init__(self, positives: Positives, bound: Float64[Tensor, " n"], *, most_before: int) -> None:
        self.positives, self._bound, self._most_before = positives, bound, most_before
        count = positives.count
        # hits[start + j]: negatives after j positives and before the next.
        self._hits = torch.zeros(len(positives.item), dtype=torch.int64, device=count.device)
        self._doubts = torch.zeros_like(count)
        # The nearest `alive` positives may still be among the first R.
        self._alive = count.clone()
        self._lowest = torch.full(count.shape, torch.inf, device=count.device)
        self._surely = self._lowest.clone()
        self._pending: list[tuple[Tensor, ...]] = []
        self._refresh((count > 0).nonzero()[:, 0])

    def give_up(self, products: Float32[Tensor, "b S"], rows: slice) -> None:
        """Give up positives that a sample of the gallery alone puts behind the first R; nothing is counted.

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
        self._hits[self.positives.start[places]] += above.sum(1)
        row, column = ((products >= self._lowest[places, None]) ^ above).nonzero(as_tuple=True)
        found = places[row], there[column], items[column], products[row, column].double()
        self._pending.append((places, *found))
        if len(self._pending) == PENDING_BLOCKS or len(row) > PENDING_PAIRS:
            self.settle(exact)

    def settle(self, exact: ExactPairs) -> None:
        """Finish what was put off: a few blocks are settled together, for each costs many small steps.

        Args:
            exact: as given to `count` since this was called last.
        """
        if self._pending:
            places, rows, there, items, similarity = (
                torch.cat(parts) for parts in zip(*self._pending, strict=True)
            )
            self._pending.clear()
            self._place(rows, there, items, similarity, exact)
            self._refresh(torch.unique(places))

    def hard(self) -> Int64[Tensor, " k"]:
        """The queries of which too much stayed open: what was counted of them is worth nothing."""
        return (self._doubts > MOST_DOUBTS).nonzero()[:, 0]

    def begin_again(self, rows: Int64[Tensor, " k"]) -> None:
        """Forget what was counted of some queries, to `count_exactly`."""
        row, position = each(self.positives.count[rows] + 1)
        self._hits[self.positives.start[rows][row] + position - 1] = 0
        self._alive[rows] = self.positives.count[rows]

    def count_exactly(
        self,
        rows: Int64[Tensor, " p"],
        items: Int64[Tensor, " p"],
        similarity: Float64[Tensor, " p"],
    ) -> None:
        """Count negatives whose exact similarities are known."""
        before = self.positives.before(rows, similarity, items)
        self._hits.index_add_(0, self.positives.start[rows] + before, torch.ones_like(rows))

    def ranks(self, queries: Int64[Tensor, " n"]) -> Ranks:
        """The ranks of the positives of all queries, once all is counted; NaN where a query has none.

        Args:
            queries: what to call them.
        """
        count = self.positives.count
        r_precision = torch.zeros(len(count), dtype=torch.float64, device=count.device)
        average_precision = torch.zeros_like(r_precision)
        rows, position, before = self._negatives(torch.arange(len(count), device=count.device))
        found = before + position <= count[rows]
        rows, position, before = rows[found], position[found], before[found]
        r_precision.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float64))
        average_precision.index_add_(0, rows, position / (before + position).double())
        num_before = self._hits[self.positives.start]
        return Ranks(queries, num_before, r_precision / count, average_precision / count)

    def _place(
        self,
        rows: Int64[Tensor, " p"],
        there: Int64[Tensor, " p"],
        items: Int64[Tensor, " p"],
        similarity: Float64[Tensor, " p"],
        exact: ExactPairs,
    ) -> None:
        """Count negatives before the positives that they precede, by approximate similarities."""
        positives, bound = self.positives, self._bound[rows]
        after = positives.before(rows, similarity + bound)
        doubtful = positives.similarity[positives.start[rows] + after] >= similarity - bound
        self._doubts.index_add_(0, rows, doubtful.long())
        doubtful = (doubtful & (self._doubts[rows] <= MOST_DOUBTS)).nonzero()[:, 0]
        if len(doubtful) > 0:
            some = rows[doubtful]
            after[doubtful] = positives.before(some, exact(some, there[doubtful]), items[doubtful])
        self._hits.index_add_(0, positives.start[rows] + after, torch.ones_like(rows))

    def _refresh(self, rows: Int64[Tensor, " k"]) -> None:
        """Give up positives of some queries, and say what of the gallery still matters to them."""
        start, similarity = self.positives.start[rows], self.positives.similarity
        which, position, before = self._negatives(rows)
        alive = torch.zeros_like(rows)
        alive.index_add_(0, which, (before + position <= self.positives.count[rows][which]).long())
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
        row, position = each(self._alive[rows])
        hits = self._hits[self.positives.start[rows][row] + position - 1]
        before = hits.cumsum(0)
        begins = (position == 1).nonzero()[:, 0]
        earlier = before[begins] - hits[begins]
        return row, position, before - earlier.repeat_interleave(self._alive[rows][row[begins]])


def each(counts: Int64[Tensor, " k"]) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " p"]]:
    """For each of so many things: whose it is, and its number from 1 on."""
    row = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return row, torch.arange(1, len(row) + 1, device=counts.device) - first[row]
