"""Intervals and tests against drawing by hand, scipy, enumeration and theory; how often they are right."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from tuplet.errors import SettingsError
from tuplet.metrics import intervals
from tuplet.metrics.intervals import (
    Interval,
    SignFlips,
    check_settings,
    holm,
    interval_of_share,
    mean_intervals,
    seed_mean,
    sign_flips,
)


def unequal_classes(seed=0, num_classes=15):
    """Few large bad classes among many small good ones: the mean of queries is not that of class means."""
    rng = np.random.default_rng(seed)
    sizes = np.where(np.arange(num_classes) % 3 == 0, 40, 4)
    labels = np.repeat(np.arange(num_classes), sizes)
    good = np.where(sizes == 40, 0.4, 0.9) + rng.normal(0, 0.1, num_classes)
    return (rng.random(len(labels)) < good[labels]).astype(float), labels


def drawn_by_hand(values, labels, seed, num_resamples=4000):
    """Means of resamples, each put together class by class."""
    rng = np.random.default_rng((seed, 77))
    groups = [values[labels == label] for label in np.unique(labels)]
    return np.array(
        [
            np.concatenate([groups[pick] for pick in rng.choice(len(groups), len(groups))]).mean()
            for _ in range(num_resamples)
        ]
    )


@pytest.mark.parametrize("over", ["classes", "queries"])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_agrees_with_resamples_put_together_by_hand(over, level):
    values, labels = unequal_classes()
    means = drawn_by_hand(values, labels if over == "classes" else np.arange(len(values)), seed=1)
    num_units = 15 if over == "classes" else len(values)
    quantile = stats.t(num_units - 1).ppf((1 - level) / 2) * np.sqrt(num_units / (num_units - 1))
    tail = stats.norm.cdf(quantile)
    low, high = np.quantile(means, [tail, 1 - tail])
    units = labels if over == "classes" else None
    (got,) = mean_intervals(values[:, None], units, level=level, num_resamples=4000)
    assert got.low == pytest.approx(low, abs=0.06 * (high - low))
    assert got.high == pytest.approx(high, abs=0.06 * (high - low))


def test_many_queries_agree_with_normal_theory():
    values = np.random.default_rng(0).beta(2, 1, size=(5000, 3))
    half = 1.96 * values.std(axis=0) / np.sqrt(len(values))
    for column, got in enumerate(mean_intervals(values, None, num_resamples=4000)):
        mean = values[:, column].mean()
        assert (got.low - mean, got.high - mean) == pytest.approx((-half[column], half[column]), rel=0.08)


def test_two_classes_reach_from_the_one_to_the_other():
    values = np.array([[0.1], [0.3], [0.2], [0.9]])
    (got,) = mean_intervals(values, np.array([7, 7, 7, -2]))
    assert (got.low, got.high) == (pytest.approx(0.2), pytest.approx(0.9))


# A column is one simulated test set: 60 classes of 20 queries.
CLASSES, QUERIES_EACH, SETS = 60, 20, 1500
LABELS = np.repeat(np.arange(CLASSES), QUERIES_EACH)


def coverage(values, labels, truth, num_resamples=2000):
    found = mean_intervals(values, labels, num_resamples=num_resamples)
    return np.mean([one.low <= truth <= one.high for one in found])


def test_of_independent_queries_both_intervals_hold_the_mean_at_their_level():
    values = (np.random.default_rng(0).random((len(LABELS), SETS)) < 0.7).astype(float)
    assert 0.92 < coverage(values, None, 0.7) < 0.98
    assert 0.92 < coverage(values, LABELS, 0.7) < 0.98


def test_of_classes_that_differ_only_the_interval_over_classes_does():
    rng = np.random.default_rng(0)
    of_class = rng.beta(1.4, 0.6, (CLASSES, SETS))  # correlation within a class: 1 / 3
    values = (rng.random((len(LABELS), SETS)) < of_class[LABELS]).astype(float)
    # 1 + 19 / 3 times the variance of independent queries: P(|z| < 1.96 / 2.71) is 0.53.
    assert 0.45 < coverage(values, None, 0.7) < 0.61
    assert 0.92 < coverage(values, LABELS, 0.7) < 0.98


def test_with_ten_classes_too():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 5)
    values = 0.5 + 0.1 * (rng.normal(size=(10, SETS))[labels] + rng.normal(size=(50, SETS)))
    # Plain percentiles, without Student's quantiles, hold the mean in 0.90 of such sets.
    assert 0.92 < coverage(values, labels, 0.5, num_resamples=5000) < 0.98


def test_what_one_class_or_one_query_says():
    values = np.array([[0.2], [0.4], [0.9]])
    assert mean_intervals(values, np.array([4, 4, 4])) == [None]
    assert isinstance(mean_intervals(values, None)[0], Interval)
    assert mean_intervals(values[:1], None) == mean_intervals(values[:1], np.array([4])) == [None]


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_equal_scores_give_their_value_exactly(value):
    for labels in (None, np.arange(35) // 3):
        (got,) = mean_intervals(np.full((35, 1), value), labels)
        assert (got.low, got.high) == (value, value)


def test_seeds_repeat_and_blocks_change_nothing(monkeypatch):
    values, labels = unequal_classes()
    columns = np.stack([values, 1 - values], axis=1)
    for units in (None, labels):
        before = mean_intervals(columns, units, seed=3)
        assert mean_intervals(columns, units, seed=3) == before
        assert mean_intervals(columns, units, seed=4) != before
        # The same resamples for every column: 1 - x is a mirror of x.
        assert before[0].low == pytest.approx(1 - before[1].high)
        with monkeypatch.context() as patch:
            patch.setattr(intervals, "BLOCK_BYTES", 8 * 100)
            small = mean_intervals(columns, units, seed=3)
        assert [one.low for one in small] == pytest.approx([one.low for one in before])


def test_settings_stand_in_the_interval_and_a_higher_level_is_wider():
    values, labels = unequal_classes()
    (got,) = mean_intervals(values[:, None], labels, level=0.9, num_resamples=500, seed=5)
    assert (got.over, got.level, got.num_resamples, got.seed) == ("classes", 0.9, 500, 5)
    (wider,) = mean_intervals(values[:, None], labels, level=0.99, num_resamples=500, seed=5)
    assert wider.low < got.low < values.mean() < got.high < wider.high
    assert mean_intervals(values[:, None], None)[0].over == "queries"


def test_memory_is_a_block_however_many_resamples():
    values = np.random.default_rng(0).random((20_000, 1))
    tracemalloc.start()
    try:
        mean_intervals(values, None, num_resamples=2000)  # all indices at once: 320 MB
        assert tracemalloc.get_traced_memory()[1] < 3 * intervals.BLOCK_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("level", 95), ("level", math.nan), ("num_resamples", 99), ("num_flips", 99), ("seed", -1)],
)
def test_settings_out_of_range(setting, value):
    with pytest.raises(SettingsError) as error:
        check_settings(**{setting: value})
    assert error.value.subject == setting


@pytest.mark.parametrize("level", [0.0, 1.0, 95, math.nan])
def test_a_mean_over_seeds_has_a_level_between_0_and_1(level):
    with pytest.raises(SettingsError) as error:
        seed_mean([0.1, 0.2], level=level)
    assert error.value.subject == "level"


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_interval_and_test_are_those_of_the_t_test(level):
    values = np.random.default_rng(0).normal(0.3, 1.0, 5).tolist()
    found, expected = seed_mean(values, level=level), stats.ttest_1samp(values, 0.0)
    interval = expected.confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.mean, found.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert found.values == tuple(values)
    paired = stats.ttest_rel(values, values[::-1] + np.ones(5))
    assert seed_mean(np.array(values) - values[::-1] - 1).p_value == pytest.approx(paired.pvalue)


def test_one_value_says_nothing_of_spread():
    found = seed_mean([0.5])
    assert interval_of_share(found) is None
    assert (found.mean, found.std, found.low, found.high, found.p_value) == (0.5, None, None, None, None)


@pytest.mark.parametrize(("value", "p_value"), [(0.0, 1.0), (0.25, 0.0), (0.1, 0.0)])
def test_equal_values(value, p_value):
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
def test_the_interval_of_a_share_ends_where_the_scale_does(values, most, ends):
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    low, high = (own if end is None else end for own, end in zip(expected, ends, strict=True))
    assert interval_of_share(seed_mean(values), most=most) == pytest.approx((low, high))


def by_scipy(first, second):
    """The exact p of swapping first and second class by class, two-sided."""
    return stats.permutation_test(
        (first, second),
        lambda x, y, axis: (y - x).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    ).pvalue


@pytest.mark.parametrize("num_classes", [2, 3, 7, 12])
@pytest.mark.parametrize("seed", range(4))
def test_few_classes_give_the_exact_p_of_scipy(num_classes, seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, (2, num_classes)).astype(float)  # many sums tie
    floats = rng.random((2, num_classes)) + np.array([[0], [0.2]])
    got = sign_flips(np.stack([counts[1] - counts[0], floats[1] - floats[0]], axis=1))
    assert got.exact
    assert got.p_values == pytest.approx([by_scipy(*counts), by_scipy(*floats)])


def test_all_patterns_of_a_hand_made_example():
    # +-1 +-2 +-4: the sums are -7, -5, ..., 7, each once.
    for totals, p in (([1, 2, 4], 2 / 8), ([1, 2, -4], 8 / 8), ([-1, 2, 4], 4 / 8), ([0.1, 0.2, 0.4], 2 / 8)):
        got = sign_flips(np.array(totals, dtype=float)[:, None])
        assert got == SignFlips((p,), 8, True)


def test_classes_without_a_difference_change_nothing():
    totals = np.random.default_rng(0).normal(1, 1, (9, 3))
    totals[4, 1] = 0
    padded = np.zeros((500, 3))
    padded[::50][:9] = totals
    assert sign_flips(padded) == sign_flips(totals)
    assert sign_flips(np.zeros((40, 2))) == SignFlips((1.0, 1.0), 1, True)


def test_many_classes_give_the_p_of_enumeration_but_for_chance():
    totals = np.random.default_rng(1).normal(0.35, 1, (15, 2)).round(1)
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=15)))
    exact = (np.abs(signs @ totals) >= np.abs(totals.sum(axis=0)) - 1e-9).mean(axis=0)
    assert 0.005 < exact.min() < exact.max() < 0.9
    got = sign_flips(totals, num_flips=20_000)
    assert (got.num_flips, got.exact) == (20_000, False)
    for p, wanted in zip(got.p_values, exact, strict=True):
        assert abs(p - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 20_000)


def test_a_drawn_p_is_never_zero_and_blocks_change_nothing(monkeypatch):
    totals = np.ones((60, 1))
    assert sign_flips(totals, num_flips=999).p_values == (1 / 1000,)
    wavering = np.random.default_rng(0).normal(0.2, 1, (60, 3))
    before = sign_flips(wavering, num_flips=500, seed=1)
    assert sign_flips(wavering, num_flips=500, seed=2) != before
    monkeypatch.setattr(intervals, "BLOCK_BYTES", 1)
    one_by_one = sign_flips(wavering, num_flips=500, seed=1)
    assert one_by_one.num_flips == 500
    assert one_by_one.p_values == pytest.approx(before.p_values, abs=0.15)


def test_under_the_null_p_is_uniform():
    rng = np.random.default_rng(0)
    totals = rng.normal(size=(40, 3000)) * rng.exponential(size=(40, 1))
    p_values = np.array(sign_flips(totals, num_flips=2000).p_values)
    for share in (0.01, 0.05, 0.5):
        assert (p_values <= share).mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 3000))


def test_holm_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.4, 0.6]) == pytest.approx((0.8, 0.8))
    assert holm([]) == ()
