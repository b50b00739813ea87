"""Two models on the same queries: how far apart their metrics are, and whether chance explains it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from tuplet.errors import InputError
from tuplet.evaluation.embedding_files import LabelledEmbeddings
from tuplet.metrics.inputs import Array
from tuplet.metrics.intervals import Interval, class_totals, mean_intervals, query_classes, score_columns
from tuplet.metrics.retrieval import QueryScores

EXACT_CLASSES = 12
"""Up to so many classes that differ, every pattern of signs is gone through: 4,096 of them."""

BLOCK_BYTES = 2**24
"""Size of one block of signs; at least one pattern, a number a class, is in it."""


@dataclass(frozen=True)
class MetricDifference:
    """One metric of two models, A and B.

    Attributes:
        metric: its name, such as "recall_at_1".
        a, b: its value for each, in [0, 1].
        difference: b - a.
        over_queries, over_classes: intervals of the difference; None where there is but one to draw.
        p_value: of `sign_flips`, in (0, 1].
        p_holm: the same, adjusted for all the metrics that are compared.
    """

    metric: str
    a: float
    b: float
    difference: float
    over_queries: Interval | None
    over_classes: Interval | None
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Every metric of two models on the same queries, and how the differences were judged.

    Attributes:
        differences: one a metric.
        num_queries, num_classes: compared.
        level: of the intervals.
        num_resamples: behind the intervals.
        num_flips: patterns of signs behind the p-values.
        exact: whether these are all the patterns there are.
        seed: of resamples and signs.
    """

    differences: tuple[MetricDifference, ...]
    num_queries: int
    num_classes: int
    level: float
    num_resamples: int
    num_flips: int
    exact: bool
    seed: int


@dataclass(frozen=True)
class SignFlips:
    """A paired permutation test, one p-value a column.

    Attributes:
        p_values: two-sided, in (0, 1].
        num_flips: patterns of signs gone through or drawn.
        exact: whether these are all the patterns there are.
    """

    p_values: tuple[float, ...]
    num_flips: int
    exact: bool


def compare_scores(
    a: QueryScores,
    b: QueryScores,
    labels: Int[Array, " n"],
    metrics: Sequence[str],
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    num_flips: int = 10000,
    seed: int = 0,
) -> Comparison:
    """The differences b - a of two models' metrics, with intervals and paired tests.

    Each resample of the bootstrap takes the same queries, or classes, for both models: it resamples what
    each query gained.

    Args:
        a: scores of one model, n queries.
        b: scores of the other, on the same queries.
        labels: class of each of these queries: all labels at `a.queries`.
        metrics: names that both scores know.
        level: of the intervals, in (0, 1).
        num_resamples: behind the intervals, >= 100.
        num_flips: see `sign_flips`.
        seed: of resamples and signs, >= 0.
    Raises: InputError: (a ValueError) other queries for b than for a, another number of labels, an unknown
        metric, or a number out of range.
    """
    if a.queries.tolist() != b.queries.tolist():
        raise InputError(
            f"got scores of {len(a.queries)} and of {len(b.queries)} queries, not the same ones; wanted both"
            " models on the same images, with the same classes"
        )
    classes = query_classes(a, labels)
    first, second = score_columns(a, metrics), score_columns(b, metrics)
    gains = second - first
    over_queries, over_classes = (
        mean_intervals(gains, units, level=level, num_resamples=num_resamples, seed=seed)
        for units in (None, classes)
    )
    totals, _ = class_totals(gains, classes)
    test = sign_flips(totals, num_flips=num_flips, seed=seed)
    means = (columns.mean(axis=0).tolist() for columns in (first, second, gains))
    judged = (over_queries, over_classes, test.p_values, holm(test.p_values))
    rows = zip(metrics, *means, *judged, strict=True)
    differences = tuple(MetricDifference(*row) for row in rows)
    sizes = (len(classes), len(totals))
    return Comparison(differences, *sizes, level, num_resamples, test.num_flips, test.exact, seed)


def sign_flips(totals: Float64[np.ndarray, "C M"], *, num_flips: int = 10000, seed: int = 0) -> SignFlips:
    """Two-sided p-values of a paired permutation test that swaps the two models class by class.

    The null hypothesis: which of the two models is A and which is B makes no difference, in any class; the
    sum of what a class's queries gain is then as likely to have the other sign, whatever the others' signs.
    Whole classes are swapped, since queries of a class are not independent. p is the share of sign patterns
    whose sum over the classes is as far from zero as the observed one, or farther: among all patterns where
    at most `EXACT_CLASSES` classes differ, else (b + 1) / (num_flips + 1) for b of the patterns drawn. The
    smallest p that C classes can give is 2 / 2^C. All columns meet the same patterns.

    (scipy.stats.permutation_test gives the same p. For 11,316 classes and 10,000 patterns it takes 11 s a
    metric, for it handles one column and permutes indices; here seven metrics are a matrix product.)

    Args:
        totals: sum over the queries of each class of what they gain, B - A, one column a metric; finite.
        num_flips: patterns drawn where there are too many to go through, >= 100.
        seed: of the draws, >= 0.
    Raises: InputError: (a ValueError) a number out of range.
    Source: Phipson and Smyth, "Permutation P-values Should Never Be Zero", 2010, for the + 1.
    """
    check_flips(num_flips, seed)
    differing = totals[(totals != 0).any(axis=1)]  # a zero has no sign to flip
    num_classes = len(differing)
    # Sums of the same numbers in another order may differ in the last bits.
    least = np.abs(differing.sum(axis=0)) - 1e-12 * np.abs(differing).sum(axis=0)
    exact = num_classes <= EXACT_CLASSES
    patterns = (
        _all_patterns(num_classes) if exact else _drawn_patterns(num_classes, num_flips=num_flips, seed=seed)
    )
    count, reached = 0, np.zeros(totals.shape[1], dtype=np.int64)
    for signs in patterns:
        count += len(signs)
        reached += (np.abs(signs @ differing) >= least).sum(axis=0)
    p_values = reached / count if exact else (reached + 1) / (count + 1)
    return SignFlips(tuple(p_values.tolist()), count, exact)


def check_flips(num_flips: int, seed: int) -> None:
    """Nothing; `sign_flips` takes these settings.

    Raises:
        InputError: (a ValueError) one is out of range.
    """
    if num_flips < 100:
        raise InputError(f"num_flips is {num_flips}; wanted 100 or more, for p cannot be under 1 / num_flips")
    if seed < 0:
        raise InputError(f"seed is {seed}; wanted an integer >= 0")


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """The p-values adjusted for their number, so that one at most 0.05 is wrong in 5 % of all such lists.

    Args:
        p_values: of any tests, however they depend on each other, each in [0, 1].
    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(p_values, kind="stable")
    remaining = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * remaining), 1.0)
    return tuple(adjusted.tolist())


def require_same_items(a: LabelledEmbeddings, b: LabelledEmbeddings) -> tuple[str, ...]:
    """What could not be checked, one line each; otherwise the items of both are the same, in order and class.

    Items are the same where their names are, below the folder that all names of their side share. Classes
    are the same where their names are, or, where they are numbers, where they put the same items together.

    Raises:
        InputError: (a ValueError) the first item that differs, or another number of them.
    """
    counts = f"A has {len(a.labels):,} items and B {len(b.labels):,}"
    unchecked = []
    if a.names is not None and b.names is not None:
        names = zip(_below_common_folder(a.names), _below_common_folder(b.names), strict=False)
        row = _first(left != right for left, right in names)
        if row is not None:
            raise InputError(
                f"{counts}; item {row} is {a.names[row]} in A and {b.names[row]} in B; {_WANTED}"
            )
    else:
        unchecked.append(
            "the items have no names on both sides: that they are the same, in the same order, is taken on"
            " trust but for their classes"
        )
    if len(a.labels) != len(b.labels):
        raise InputError(f"{counts}; {_WANTED}")
    if a.class_names is not None and b.class_names is not None:
        pairs = [(a.class_names[i], b.class_names[j]) for i, j in zip(a.labels, b.labels, strict=True)]
        row, unlike = _first(left != right for left, right in pairs), ""
    else:
        pairs = list(zip(a.labels.tolist(), b.labels.tolist(), strict=True))
        forth, back = dict(reversed(pairs)), {right: left for left, right in reversed(pairs)}
        row = _first(forth[left] != right or back[right] != left for left, right in pairs)
        unlike = ", unlike items before it"
    if row is not None:
        title = f"item {row}" if a.names is None else f"item {row}, {a.names[row]},"
        left, right = pairs[row]
        raise InputError(f"{title} is of class {left} in A and {right} in B{unlike}; {_WANTED}")
    return tuple(unchecked)


_WANTED = "want both models on the same images, in the same order, with the same classes"


def _first(conditions: Iterable[bool]) -> int | None:
    return next((row for row, holds in enumerate(conditions) if holds), None)


def _below_common_folder(names: Sequence[str]) -> list[str]:
    try:
        common = os.path.commonpath([os.path.dirname(name) for name in names])  # noqa: PTH120
    except ValueError:  # some absolute, some not
        return list(names)
    start = len(common) + (common not in ("", os.sep))
    return [name[start:] for name in names]


def _all_patterns(num_classes: int) -> Iterable[Float64[np.ndarray, "F C"]]:
    numbers = np.arange(2**num_classes)[:, None]
    yield 2.0 * (numbers >> np.arange(num_classes) & 1) - 1.0


def _drawn_patterns(num_classes: int, *, num_flips: int, seed: int) -> Iterable[Float64[np.ndarray, "F C"]]:
    generator = np.random.default_rng((seed, 1))  # other draws than the bootstrap's
    block = max(1, BLOCK_BYTES // (8 * num_classes))
    for start in range(0, num_flips, block):
        shape = (min(block, num_flips - start), num_classes)
        yield 2.0 * generator.integers(0, 2, shape, dtype=np.int8) - 1.0
