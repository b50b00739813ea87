"""The uncertainty of metrics: bootstrap intervals, t intervals over seeds, and paired tests of two models.

Queries of one class resemble each other, so a thousand queries of twenty classes say little more about a new
class than twenty numbers do. The interval over classes therefore draws whole classes with all their queries
(the cluster bootstrap). Use it if the test classes represent other classes of this kind. The interval over
queries takes the classes as given, and is far too narrow for other classes.

Either takes the gallery as given: what a drawn query found does not depend on what else is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float64, Int64

from tuplet.errors import SettingsError

Unit: TypeAlias = Literal["queries", "classes"]

EXACT_CLASSES = 12
"""Up to this number of classes that differ, all patterns of signs are enumerated: at most 4,096."""
BLOCK_BYTES = 2**24
"""Size of one block of weights or signs; at least one resample or pattern is in it."""


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval of a mean.

    Attributes:
        low, high: its ends, in the units of the mean, low <= high.
        over: what was resampled.
        level: share of such intervals that should contain the mean over all possible queries or classes.
        num_resamples: number of resamples.
        seed: of the draws.
    """

    low: float
    high: float
    over: Unit
    level: float
    num_resamples: int
    seed: int


def mean_intervals(
    values: Float64[np.ndarray, "n M"],
    labels: Int64[np.ndarray, " n"] | None,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[Interval | None]:
    """Compute the interval of the mean of each column, all from the same resamples.

    A resample draws as many queries, or classes, as there are, with replacement; its mean is the sum of the
    drawn scores over the number of drawn queries. The interval is the expanded percentile one: percentiles of
    the resampled means, further out where there are few units. Plain percentiles are too narrow by the factor
    sqrt((U - 1) / U) and take normal quantiles where Student's are due, which matters for twenty classes and
    not for a hundred. BCa was tried and left out: for skewed scores of 10 to 50 classes it covered within 2
    points of this one, on either side of it, and its correction for bias leaps where the resampled means
    take few values, as Recall's do. With 20 classes or fewer, most of them near perfect, each of them is too
    narrow (this one at 95 % covered 86 to 89 % of the time), for what a sample lacks cannot be drawn. Where
    all values are equal the interval is that point, for the same reason.

    Memory beyond the values is one block of `BLOCK_BYTES` (or one resample, U numbers, where that is more)
    and the resampled means, R x M numbers.

    Args:
        values: finite scores, one row per query.
        labels: class of each query, any integers, to draw classes; None draws queries.
        level: in (0, 1).
        num_resamples: >= 100.
        seed: >= 0; the same seed gives the same interval with the same version of NumPy.
    Returns: one a column; None for each where there is one query, or one class, for then nothing varies.
    Raises:
        SettingsError: a level, number or seed out of range.
    References: Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69,
    2015;
        Field and Welsh, "Bootstrapping clustered data", J. R. Statist. Soc. B 69, 2007.
    """
    check_settings(level=level, num_resamples=num_resamples, seed=seed)
    over: Unit = "queries" if labels is None else "classes"
    # About the first score, so that equal scores give exactly their own value.
    totals, counts = class_totals(values - values[:1], labels)
    num_units = len(counts)
    if num_units < 2:
        return [None] * values.shape[1]
    means = values[:1] + _resampled_means(totals, counts, num_resamples, seed)
    tail = expanded_tail(num_units, level)
    ends = np.quantile(means, [tail, 1 - tail], axis=0).T.tolist()
    return [Interval(low, high, over, level, num_resamples, seed) for low, high in ends]


def expanded_tail(num_units: int, level: float) -> float:
    """Return the share of resampled values beyond each end of an expanded percentile interval.

    Args:
        num_units: that were drawn, >= 2.
        level: of the interval, in (0, 1).
    """
    # Imported here, as reports are also read by commands that measure nothing and should start quickly.
    from scipy.special import ndtr, stdtrit

    return float(ndtr(math.sqrt(num_units / (num_units - 1)) * stdtrit(num_units - 1, (1 - level) / 2)))


def class_totals(
    values: Float64[np.ndarray, "n M"], labels: Int64[np.ndarray, " n"] | None
) -> tuple[Float64[np.ndarray, "U M"], Float64[np.ndarray, " U"]]:
    """Sum the values of each class, in ascending order of labels, and count its queries.

    Args:
        values: one row per query.
        labels: class of each query; None: each query for itself.
    """
    if labels is None:
        return values, np.ones(len(values))
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    columns = [np.bincount(classes, weights=column, minlength=len(counts)) for column in values.T]
    totals = np.stack(columns, axis=1) if columns else np.zeros((len(counts), 0))
    return totals, counts.astype(np.float64)


def check_settings(
    *, level: float = 0.95, num_resamples: int = 2000, num_flips: int = 10000, seed: int = 0
) -> None:
    """Raise an error if a setting of `mean_intervals` or `sign_flips` is out of range.

    Raises:
        SettingsError: names the first such setting.
    """
    for name, value, fits, wanted in (
        ("level", level, 0 < level < 1, "a share in (0, 1), such as 0.95"),
        ("num_resamples", num_resamples, num_resamples >= 100, "100 or more, for an interval has tails"),
        ("num_flips", num_flips, num_flips >= 100, "100 or more, for p cannot be under 1 / num_flips"),
        ("seed", seed, seed >= 0, "an integer >= 0"),
    ):
        if not fits:
            raise SettingsError(f"{name} is {value}; want {wanted}", subject=name, given=value, wanted=wanted)


def draws(num_units: int, num_resamples: int, seed: int) -> Iterator[Float64[np.ndarray, "r U"]]:
    """Yield how often each unit is drawn in each resample, a block of resamples at a time.

    How often each unit is drawn says all, so that a block of resamples is one matrix product. A block is
    overwritten by the next.
    """
    generator = np.random.default_rng(seed)
    block = min(num_resamples, max(1, BLOCK_BYTES // (8 * num_units)))
    weights = np.empty((block, num_units))
    for start in range(0, num_resamples, block):
        drawn = weights[: min(block, num_resamples - start)]
        for row in drawn:
            row[:] = np.bincount(generator.integers(0, num_units, num_units), minlength=num_units)
        yield drawn


def _resampled_means(
    totals: Float64[np.ndarray, "U M"], counts: Float64[np.ndarray, " U"], num_resamples: int, seed: int
) -> Float64[np.ndarray, "R M"]:
    """Draw U of the U units for each resample; return the sum of their totals over that of their counts."""
    columns = np.column_stack([totals, counts])
    sums = np.empty((num_resamples, columns.shape[1]))
    start = 0
    for drawn in draws(len(counts), num_resamples, seed):
        sums[start : start + len(drawn)] = drawn @ columns
        start += len(drawn)
    return np.asarray(sums[:, :-1] / sums[:, -1:])


@dataclass(frozen=True)
class SeedMean:
    """The mean of one number over seeds.

    Attributes:
        mean: over the values.
        std: standard deviation of one value (n - 1); None for a single one.
        low, high: t interval of the mean; None for a single value.
        p_value: two-sided, of the hypothesis that the true mean is zero; None for a single value.
        values: one per seed.
        level: share of such intervals that hold the true mean, if the values are normal.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    p_value: float | None
    values: tuple[float, ...]
    level: float


def seed_mean(values: Sequence[float], *, level: float = 0.95) -> SeedMean:
    """Compute mean, standard deviation, t interval and t test against zero of one number over seeds.

    Given differences of two methods seed by seed, interval and test are those of the paired t test.

    Args:
        values: one per seed, at least one.
        level: of the interval, in (0, 1).
    Returns: None where one value says nothing; values that are all the same have an interval of no width and
        p 0, or 1 where they are all zero.
    Raises:
        SettingsError: `level` out of range.
    """
    check_settings(level=level)
    # The mean of equal values such as 0.1 may be rounded, and deviations from it would not be zero.
    is_constant = len(values) > 0 and all(value == values[0] for value in values)
    count, mean = len(values), float(values[0] if is_constant else np.mean(values))
    if count < 2:
        return SeedMean(mean, None, None, None, None, tuple(values), level)
    from scipy.stats import t as student  # imported here because it takes half a second

    # Not scipy.stats.ttest_1samp: for equal values it warns and returns NaN.
    std = 0.0 if is_constant else float(np.std(values, ddof=1))
    error = std / math.sqrt(count)
    half = float(student.ppf(0.5 + level / 2, count - 1)) * error
    statistic = abs(mean) / error if error > 0 else math.inf if mean else 0.0
    p_value = float(2 * student.sf(statistic, count - 1))
    return SeedMean(mean, std, mean - half, mean + half, p_value, tuple(values), level)


def interval_of_share(mean: SeedMean, *, most: float = 1.0) -> tuple[float, float] | None:
    """Return the t interval of a share, cut off at 0 and `most` (infinity: no end); None for a single value.

    A t interval does not respect the ends of the scale: with few seeds it goes beyond them.
    """
    if mean.low is None or mean.high is None:
        return None
    return max(mean.low, 0.0), min(mean.high, most)


@dataclass(frozen=True)
class SignFlips:
    """A paired permutation test, one p-value a column.

    Attributes:
        p_values: two-sided, in (0, 1].
        num_flips: patterns of signs that were enumerated or drawn.
        exact: whether these are all possible patterns.
    """

    p_values: tuple[float, ...]
    num_flips: int
    exact: bool


def sign_flips(totals: Float64[np.ndarray, "C M"], *, num_flips: int = 10000, seed: int = 0) -> SignFlips:
    """Compute two-sided p-values of a paired permutation test that swaps the two models class by class.

    The null hypothesis: which of the two models is A and which is B makes no difference, in any class; the
    sum of what a class's queries gain is then as likely to have the other sign, whatever the others' signs.
    Whole classes are swapped, since queries of a class are not independent. p is the share of sign patterns
    whose sum over the classes is as far from zero as the observed one, or farther: among all patterns where
    at most `EXACT_CLASSES` classes differ, else (b + 1) / (num_flips + 1) for b of the patterns drawn. The
    smallest p that C classes can give is 2 / 2^C. All columns meet the same patterns.

    scipy.stats.permutation_test gives the same p. For 11,316 classes and 10,000 patterns it takes 11 s a
    metric, for it handles one column and permutes indices; here seven metrics are a matrix product.

    Args:
        totals: differences B - A summed over the queries of each class, one column per metric; finite.
        num_flips: number of patterns to draw if there are too many to enumerate, >= 100.
        seed: of the draws, >= 0.
    Raises:
        SettingsError: a number out of range.
    References: Phipson and Smyth, "Permutation P-values Should Never Be Zero", 2010, for the + 1.
    """
    check_settings(num_flips=num_flips, seed=seed)
    differing = totals[(totals != 0).any(axis=1)]  # a zero has no sign to flip
    num_classes = len(differing)
    # Sums of the same numbers in another order may differ in the last bits.
    least = np.abs(differing.sum(axis=0)) - 1e-12 * np.abs(differing).sum(axis=0)
    exact = num_classes <= EXACT_CLASSES
    patterns = _all_patterns(num_classes) if exact else _drawn_patterns(num_classes, num_flips, seed)
    count, reached = 0, np.zeros(totals.shape[1], dtype=np.int64)
    for signs in patterns:
        count += len(signs)
        reached += (np.abs(signs @ differing) >= least).sum(axis=0)
    p_values = reached / count if exact else (reached + 1) / (count + 1)
    return SignFlips(tuple(p_values.tolist()), count, exact)


def _all_patterns(num_classes: int) -> Iterable[Float64[np.ndarray, "F C"]]:
    numbers = np.arange(2**num_classes)[:, None]
    yield 2.0 * (numbers >> np.arange(num_classes) & 1) - 1.0


def _drawn_patterns(num_classes: int, num_flips: int, seed: int) -> Iterable[Float64[np.ndarray, "F C"]]:
    generator = np.random.default_rng((seed, 1))  # other draws than the bootstrap's
    block = max(1, BLOCK_BYTES // (8 * num_classes))
    for start in range(0, num_flips, block):
        shape = (min(block, num_flips - start), num_classes)
        yield 2.0 * generator.integers(0, 2, shape, dtype=np.int8) - 1.0


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values for their number, so that at most 5 % of such lists have a false one of 0.05 or less.

    Args:
        p_values: of any tests, however they depend on each other, each in [0, 1].
    References: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(p_values, kind="stable")
    remaining = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * remaining), 1.0)
    return tuple(adjusted.tolist())
