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

from tuplet.metrics.exact.counts import Counts, ExactPairs
from tuplet.metrics.exact.positives import Classes, find_positives
from tuplet.metrics.exact.ranking import Ranks, join, rank_by_sorting
from tuplet.metrics.exact.similarity import Similarity

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


def rank_by_counting(similarity: Similarity, classes: Classes, *, most_before: int) -> Ranks:
    """The ranks of the positives of each query that has any, as `rank_by_sorting` gives them.

    Args:
        similarity: of the queries to the gallery.
        classes: of both.
        most_before: items before the nearest positive are counted up to this number, >= 1.
    """
    held = classes.num_positives + 1
    if similarity.excludes_self and int(held.sum()) <= MOST_POSITIVES:
        return _ranks(similarity, classes, slice(0, len(held)), most_before, itself=True)
    parts = []
    start, bounds = 0, held.cumsum(0)
    while start < len(held):
        held_before = int(bounds[start] - held[start])
        fitting = int(torch.searchsorted(bounds, held_before + MOST_POSITIVES, right=True))
        stop = min(max(fitting, start + 1), start + block_sizes(held.device)[0])
        parts.append(_ranks(similarity, classes, slice(start, stop), most_before, itself=False))
        start = stop
    return join(parts)


def _ranks(similarity: Similarity, classes: Classes, some: slice, most_before: int, *, itself: bool) -> Ranks:
    queries = classes.queries[some]
    positives = find_positives(
        similarity, classes, torch.arange(some.start, some.stop, device=queries.device)
    )
    counts = Counts(positives, similarity.bound[queries], most_before=most_before)
    _give_up(similarity, classes, counts, some)
    if itself:
        _count_pairs(similarity, classes, counts)
    else:
        _count_all(similarity, classes, counts, some)
    ranks, hard = counts.ranks(queries), counts.hard()
    easy = positives.count > 0
    easy[hard] = False
    ranks = ranks.of(easy)
    if len(hard) == 0:
        return ranks
    return join([ranks, rank_by_sorting(similarity, classes, hard + some.start)])


def _give_up(similarity: Similarity, classes: Classes, counts: Counts, some: slice) -> None:
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


def _count_pairs(similarity: Similarity, classes: Classes, counts: Counts) -> None:
    """Count all queries among themselves, each product serving both sides."""
    items = classes.gallery
    mask, exact = _Mask(classes, slice(0, len(items))), _exact(similarity, items)
    strip_rows, block_rows, block_columns = block_sizes(items.device)
    for strip in ranges(0, len(items), strip_rows):
        vectors = similarity.query_rows(items[strip])
        for columns in ranges(strip.start, len(items), block_columns):
            others = similarity.gallery_rows(items[columns])
            for rows in ranges(strip.start, strip.stop, block_rows):
                if rows.start >= columns.stop:
                    break
                own = vectors[rows.start - strip.start : rows.stop - strip.start]
                products = mask.without_positives(similarity.products(own, others), rows, columns)
                counts.count(products, rows, items[columns], items[columns], exact)
                # Blocks across the diagonal hold both directions already.
                if columns.start >= rows.stop:
                    counts.count(products.T, columns, items[rows], items[rows], exact)
    counts.settle(exact)


def _count_all(similarity: Similarity, classes: Classes, counts: Counts, some: slice) -> None:
    """Count a few queries in the whole gallery."""
    queries, mask = classes.queries[some], _Mask(classes, some)
    exact = _exact(similarity, queries)
    _, block_rows, block_columns = block_sizes(queries.device)
    vectors = similarity.query_rows(queries)
    for columns in ranges(0, len(classes.gallery), block_columns):
        items = classes.gallery[columns]
        others = similarity.gallery_rows(items)
        for rows in ranges(0, len(vectors), block_rows):
            products = mask.without_positives(similarity.products(vectors[rows], others), rows, columns)
            counts.count(products, rows, items, items, exact)
    counts.settle(exact)


def _exact(similarity: Similarity, queries: Int64[Tensor, " n"]) -> ExactPairs:
    return lambda rows, items: similarity.exact_pairs(queries[rows], items)


@final
class _Mask:
    """Where the positives of some queries are in the gallery, class by class."""

    def __init__(self, classes: Classes, some: slice) -> None:
        self._first, self._last = classes.first[some], classes.last[some]
        self._bounds = self._first.cpu(), self._last.cpu()

    def without_positives(
        self, products: Float32[Tensor, "b m"], rows: slice, columns: slice
    ) -> Float32[Tensor, "b m"]:
        """The products, with -inf in place of positives and self."""
        first, last = self._bounds
        if first[rows.start] < columns.stop and last[rows.stop - 1] > columns.start:
            place = torch.arange(columns.start, columns.stop, device=products.device)
            positive = (place >= self._first[rows, None]) & (place < self._last[rows, None])
            products.masked_fill_(positive, -torch.inf)
        return products


def block_sizes(device: torch.device) -> tuple[int, int, int]:
    """Rows of a strip, rows and columns of a block."""
    on_gpu = device.type == "cuda"
    return (GPU_BLOCK,) * 3 if on_gpu else (STRIP_ROWS, BLOCK_ROWS, BLOCK_COLUMNS)


def ranges(start: int, stop: int, step: int) -> Iterator[slice]:
    """Slices of so many that follow each other."""
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))
