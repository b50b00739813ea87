"""What several seeds say together: mean, spread, t interval, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student


@dataclass(frozen=True)
class SeedMean:
    """The mean of one number over seeds.

    Attributes:
        mean: over the values.
        std: standard deviation of one value (n - 1); None for a single one.
        low, high: t interval of the mean; None for a single value.
        p_value: two-sided, of the hypothesis that the true mean is zero; None for a single value.
        values: one a seed.
        level: share of such intervals that hold the true mean, if the values are normal.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    p_value: float | None
    values: tuple[float, ...]
    level: float


def interval_of_share(mean: SeedMean, *, most: float = 1.0) -> tuple[float, float] | None:
    """The ends of the t interval of a share, as far as the scale goes; None for a single value.

    A t interval knows nothing of the ends of the scale: of few seeds it passes them.

    Args:
        mean: of shares in [0, most].
        most: the upper end of the scale; infinity for what has none.
    """
    if mean.low is None or mean.high is None:
        return None
    return max(mean.low, 0.0), min(mean.high, most)


def seed_mean(values: Sequence[float], *, level: float = 0.95) -> SeedMean:
    """Mean, standard deviation, t interval and t test against zero of one number over seeds.

    Given differences of two methods seed by seed, interval and test are those of the paired t test.

    Args:
        values: one a seed, at least one.
        level: of the interval, in (0, 1).

    Returns: None where one value says nothing; values that are all the same have an interval of no width and
        p 0, or 1 where they are all zero.
    """
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return SeedMean(mean, None, None, None, None, tuple(values), level)
    std = float(np.std(values, ddof=1))
    error = std / math.sqrt(count)
    half = float(student.ppf(0.5 + level / 2, count - 1)) * error
    statistic = abs(mean) / error if error > 0 else math.inf if mean else 0.0
    p_value = float(2 * student.sf(statistic, count - 1))
    return SeedMean(mean, std, mean - half, mean + half, p_value, tuple(values), level)
