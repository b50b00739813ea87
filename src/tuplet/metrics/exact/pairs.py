"""Count the similarities of all pairs: of one class (genuine) and of two classes (impostor), block by block.

What exact means here: the cosine of a pair is that of `metrics/exact/similarity`, computed in float64 and the
same for every block and thread, rounded once more to a multiple of 2^-22 (2.4e-7). That is as fine as the
error of a float32 product of a few hundred terms. Every value of this grid has a counter of its own, so that
the counts are exact, and equal similarities tie by definition. No list of pairs is kept: 500,000 embeddings
have 125 billion.

For intervals over classes, the counts of each class are kept too, in some hundred bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from tuplet.errors import DataError
from tuplet.metrics.exact.counting import ranges
from tuplet.metrics.exact.shares import ALONE, Shares
from tuplet.metrics.exact.similarity import Similarity
from tuplet.progress import track

STEPS = 2**22
"""Grid points per unit of cosine; point p stands for the cosine p / STEPS - 1."""
NUM_POINTS = 2 * STEPS + 1
BLOCK_ROWS, BLOCK_COLUMNS = 1024, 2048
MOST_UNITS = 1000
"""Classes whose counts are kept apart; of more classes, so many groups of classes, drawn at random."""
SAMPLED_PAIRS = 2**18
"""Pairs of each kind that decide the bins of the counts by class."""


@dataclass(frozen=True)
class UnitCounts:
    """The pairs of each class (or group of classes), in bins.

    Attributes:
        starts: first grid point of each bin, ascending; the first is 0.
        genuine: weight of the genuine pairs of each class, `[U, K]`.
        impostor: weight of the impostor pairs with an item of the class; a pair counts for both classes.
    """

    starts: Int64[np.ndarray, " K"]
    genuine: Float64[np.ndarray, "U K"]
    impostor: Float64[np.ndarray, "U K"]


@dataclass(frozen=True)
class PairCounts:
    """How many pairs have each similarity.

    Attributes:
        genuine: weight of the pairs of one class at each grid point, `[NUM_POINTS]`; without weights, counts.
        impostor: the same of two classes.
        num_genuine, num_impostor: pairs.
        num_classes: of all items.
        units: the counts by class; None where they were not asked for.
    """

    genuine: Float64[np.ndarray, " P"] | Int64[np.ndarray, " P"]
    impostor: Float64[np.ndarray, " P"] | Int64[np.ndarray, " P"]
    num_genuine: int
    num_impostor: int
    num_classes: int
    units: UnitCounts | None


def count_pairs(
    similarity: Similarity,
    labels: Int64[Tensor, " N"],
    gallery_labels: Int64[Tensor, " M"] | None,
    *,
    balanced: bool = False,
    by_class: bool = True,
    starts: Sequence[int] = (),
    seed: int = 0,
    shares: Shares = ALONE,
) -> PairCounts:
    """Count all pairs of items, each once, or all pairs of a query and a gallery item.

    Args:
        similarity: cosines.
        labels: of the queries.
        gallery_labels: None: the queries are paired among themselves.
        balanced: each class with a genuine pair weighs the same, and so does each pair of classes.
        by_class: fill `units`.
        starts: grid points at which a bin of `units` has to start.
        seed: of the pairs that decide the other bins, and of the groups of classes.
        shares: ranks that hold the same items and count a part of the pairs each; call it on all of them.
    Raises:
        DataError: no pair of one class, or none of two.
    """
    sides = _Sides(labels, gallery_labels, seed)
    num_genuine, num_impostor = sides.numbers()
    classes = int(sides.num_classes)
    if num_genuine == 0:
        raise DataError(
            f"no two of {len(labels)} items are of one class; want at least one such pair", subject="labels"
        )
    if num_impostor == 0:
        raise DataError(f"all {len(labels)} items are of one class; want two classes", subject="labels")
    weights = sides.weights() if balanced else None
    counter = _Counter(similarity, sides, weights)
    if by_class:
        counter.keep_units(_bins(similarity, sides, starts, seed))
    for rows, columns in track(shares.own(sides.blocks()), "comparing pairs"):
        counter.count(rows, columns)
    counter.add_up(shares)
    return PairCounts(
        counter.points[NUM_POINTS:].numpy(force=True),
        counter.points[:NUM_POINTS].numpy(force=True),
        num_genuine,
        num_impostor,
        classes,
        counter.units(),
    )


def point_of(cosine: float) -> int:
    """Return the first grid point at or above a cosine, in 0..NUM_POINTS."""
    return int(np.clip(np.ceil((cosine + 1) * STEPS - 1e-6), 0, NUM_POINTS))


def cosine_of(point: int) -> float:
    """Return the cosine of a grid point; of NUM_POINTS, one that no pair reaches."""
    return point / STEPS - 1


def points_of(cosines: Float64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """Return the nearest grid point of each cosine."""
    return cosines.mul(STEPS).round_().long().add_(STEPS).clamp_(0, NUM_POINTS - 1)


@final
class _Sides:
    """The labels of both sides of the pairs, as classes 0..C-1."""

    def __init__(self, labels: Tensor, gallery_labels: Tensor | None, seed: int) -> None:
        self.among_themselves = gallery_labels is None
        both = labels if gallery_labels is None else torch.cat([labels, gallery_labels])
        _, classes, counts = torch.unique(both, return_inverse=True, return_counts=True)
        self.num_classes = len(counts)
        self.rows = classes[: len(labels)]
        self.columns = self.rows if gallery_labels is None else classes[len(labels) :]
        self.row_counts = torch.bincount(self.rows, minlength=self.num_classes)
        self.column_counts = torch.bincount(self.columns, minlength=self.num_classes)
        groups = np.random.default_rng(seed).permutation(self.num_classes) % MOST_UNITS
        grouped = self.num_classes > MOST_UNITS
        unit = torch.from_numpy(groups if grouped else np.arange(self.num_classes)).to(both.device)
        self.num_units = min(self.num_classes, MOST_UNITS)
        self.row_units, self.column_units = unit[self.rows], unit[self.columns]

    def genuine_of_class(self) -> Int64[Tensor, " C"]:
        own = self.row_counts
        return own * (own - 1) // 2 if self.among_themselves else own * self.column_counts

    def numbers(self) -> tuple[int, int]:
        """Return the numbers of genuine and of impostor pairs."""
        genuine = int(self.genuine_of_class().sum())
        size, others = len(self.rows), len(self.columns)
        return genuine, (size * (size - 1) // 2 if self.among_themselves else size * others) - genuine

    def weights(self) -> tuple[Float64[Tensor, " C"], Float64[Tensor, " N"], Float64[Tensor, " M"]]:
        """Return the weight of a genuine pair by class, and the factors of an impostor pair's by item."""
        pairs = self.genuine_of_class().double()
        of_class = torch.where(pairs > 0, 1 / pairs.clamp(min=1), 0.0)
        rows, columns = self.row_counts.double(), self.column_counts.double()
        return of_class, 1 / rows[self.rows], 1 / columns[self.columns]

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield the blocks of rows and columns; among themselves, those that have a column after a row."""
        for rows in ranges(0, len(self.rows), BLOCK_ROWS):
            for columns in ranges(0, len(self.columns), BLOCK_COLUMNS):
                if not self.among_themselves or columns.stop > rows.start + 1:
                    yield rows, columns


@final
class _Counter:
    """Counts blocks of pairs: impostor pairs at `points[:NUM_POINTS]`, genuine ones behind them."""

    def __init__(
        self, similarity: Similarity, sides: _Sides, weights: tuple[Tensor, Tensor, Tensor] | None
    ) -> None:
        self._similarity, self._sides, self._weights = similarity, sides, weights
        kind = torch.int64 if weights is None else torch.float64
        self._device = sides.rows.device
        self.points = torch.zeros(2 * NUM_POINTS, dtype=kind, device=self._device)
        self._one = torch.ones(1, dtype=kind, device=self._device)
        self._starts: Int64[np.ndarray, " K"] | None = None

    def keep_units(self, starts: Int64[np.ndarray, " K"]) -> None:
        """Count by class too, in these bins."""
        self._starts = starts
        sizes = np.diff(np.append(starts, NUM_POINTS))
        self._bin = torch.from_numpy(np.repeat(np.arange(len(starts), dtype=np.int16), sizes))
        self._bin = self._bin.to(self._device)
        size = 2 * self._sides.num_units * len(starts)
        self._units = torch.zeros(size, dtype=self.points.dtype, device=self._device)

    def count(self, rows: slice, columns: slice) -> None:
        sides, device = self._sides, self._device
        row = torch.arange(rows.start, rows.stop, device=device)
        column = torch.arange(columns.start, columns.stop, device=device)
        points = points_of(self._similarity.exact_tables(row[None], column[None])[0])
        genuine = sides.rows[rows, None] == sides.columns[columns]
        weight = self._one.expand(points.shape)
        if self._weights is not None:
            of_class, of_row, of_column = self._weights
            weight = of_row[rows, None] * of_column[columns]
            weight = torch.where(genuine, of_class[sides.rows[rows], None], weight)
        unit = sides.row_units[rows, None].expand(points.shape)
        other = sides.column_units[columns].expand(points.shape)
        if sides.among_themselves and columns.start <= rows.stop:
            later = column > row[:, None]
            points, genuine, weight = points[later], genuine[later], weight[later]
            unit, other = unit[later], other[later]
        if self._starts is not None:
            self._count_units(points, genuine, weight, unit, other)
        place = points.add_(genuine, alpha=NUM_POINTS).flatten()
        self.points.index_add_(0, place, weight.reshape(-1))

    def _count_units(
        self, points: Tensor, genuine: Tensor, weight: Tensor, unit: Tensor, other: Tensor
    ) -> None:
        """Add the pairs to their classes; an impostor pair to both of its own."""
        assert self._starts is not None
        num_bins, half = len(self._starts), self._sides.num_units * len(self._starts)
        place = self._bin[points].long().add_(unit, alpha=num_bins)
        second = place + (other - unit).mul_(num_bins)
        weight = weight.reshape(-1)
        self._units.index_add_(0, place.add_(genuine, alpha=half).flatten(), weight)
        self._units.index_add_(0, second.flatten(), (weight * ~genuine.flatten()).to(weight.dtype))

    def add_up(self, shares: Shares) -> None:
        """Add the counts of all ranks."""
        self.points = shares.add_up(self.points)
        if self._starts is not None:
            self._units = shares.add_up(self._units)

    def units(self) -> UnitCounts | None:
        if self._starts is None:
            return None
        shape = (2, self._sides.num_units, len(self._starts))
        impostor, genuine = self._units.double().numpy(force=True).reshape(shape)
        return UnitCounts(self._starts, genuine, impostor)


def _bins(similarity: Similarity, sides: _Sides, starts: Sequence[int], seed: int) -> Int64[np.ndarray, " K"]:
    """Return bins with equal shares of the pairs, finer among the most similar impostor pairs."""
    genuine, impostor = _sampled(similarity, sides, seed)
    even = np.linspace(0, 1, 257)
    tail = 1 - np.geomspace(1 / len(impostor), 0.1, 256)
    top = max(int(impostor.max()), 0)
    parts = [
        np.quantile(genuine, even, method="lower"),
        np.quantile(impostor, even, method="lower"),
        np.quantile(impostor, tail, method="lower"),
        np.linspace(top, NUM_POINTS - 1, 64),
        np.array([0, *(one for one in starts if 0 <= one < NUM_POINTS)]),
    ]
    return np.unique(np.concatenate(parts).astype(np.int64))


def _sampled(
    similarity: Similarity, sides: _Sides, seed: int
) -> tuple[Int64[np.ndarray, " g"], Int64[np.ndarray, " i"]]:
    """Return the grid points of random genuine pairs and of random impostor pairs."""
    random = np.random.default_rng(seed)
    rows, columns = sides.rows.numpy(force=True), sides.columns.numpy(force=True)
    a = random.integers(0, len(rows), SAMPLED_PAIRS)
    b = random.integers(0, len(columns), SAMPLED_PAIRS)
    # The partner of one class: any place among the items of the class, which lie together by class.
    order = np.argsort(columns, kind="stable")
    counts = sides.column_counts.numpy(force=True)
    first = np.cumsum(counts) - counts
    c = random.integers(0, len(rows), SAMPLED_PAIRS)
    c = c[counts[rows[c]] > 0]
    d = order[first[rows[c]] + (random.random(len(c)) * counts[rows[c]]).astype(np.int64)]
    apart = rows[a] != columns[b]
    alike = c != d if sides.among_themselves else np.ones(len(c), dtype=bool)
    found = []
    for x, y, kept in ((c, d, alike), (a, b, apart)):
        pairs = (torch.from_numpy(side[kept]).to(sides.rows.device) for side in (x, y))
        points = points_of(similarity.exact_pairs(*pairs)).numpy(force=True)
        # By chance there may be none, and then the bins are even in the similarity.
        found.append(points if len(points) else np.arange(0, NUM_POINTS, NUM_POINTS // 256))
    return found[0], found[1]
