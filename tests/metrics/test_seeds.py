from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tuplet.metrics.intervals import interval_of_share, seed_mean


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_interval_and_test_are_those_of_the_t_test(level: float) -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 5).tolist()
    found, expected = seed_mean(values, level=level), stats.ttest_1samp(values, 0.0)
    interval = expected.confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.mean, found.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert found.values == tuple(values)


def test_a_paired_difference_is_the_paired_t_test() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 6))
    assert seed_mean((b - a).tolist()).p_value == pytest.approx(stats.ttest_rel(b, a).pvalue)


def test_one_value_says_nothing_of_spread() -> None:
    found = seed_mean([0.5])
    assert (found.mean, found.std, found.low, found.high, found.p_value) == (0.5, None, None, None, None)


@pytest.mark.parametrize(("value", "p_value"), [(0.0, 1.0), (0.25, 0.0)])
def test_equal_values(value: float, p_value: float) -> None:
    found = seed_mean([value] * 3)
    assert (found.mean, found.std, found.low, found.high) == (value, 0.0, value, value)
    assert found.p_value == p_value


@pytest.mark.parametrize(
    ("values", "most", "ends"),
    [
        ([0.45, 0.55], 1.0, (0.0, 1.0)),
        ([0.96, 0.98], 1.0, (None, 1.0)),
        ([0.02, 0.04], 1.0, (0.0, None)),
        ([0.5, 0.51, 0.52], 1.0, (None, None)),
        ([3.0, 9.0], float("inf"), (0.0, None)),
    ],
)
def test_the_interval_of_a_share_ends_where_the_scale_does(
    values: list[float], most: float, ends: tuple[float | None, float | None]
) -> None:
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    low, high = (own if end is None else end for own, end in zip(expected, ends, strict=True))
    assert interval_of_share(seed_mean(values), most=most) == pytest.approx((low, high))


def test_the_interval_of_one_share() -> None:
    assert interval_of_share(seed_mean([0.5])) is None
