"""Bootstrap intervals: against drawing by hand, against theory, and how often they hold the truth."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats

from tuplet.errors import InputError
from tuplet.metrics import intervals
from tuplet.metrics.intervals import Interval, mean_intervals
from tuplet.metrics.retrieval import QueryScores, retrieval_scores, score_intervals


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


def scores_of(num_before, r_precision):
    number = len(num_before)
    values = torch.tensor(r_precision, dtype=torch.float64)
    return QueryScores(torch.arange(number) * 2, torch.tensor(num_before), values, values / 2, 10)


def test_each_metric_has_the_intervals_of_its_own_scores():
    before, precision = [0, 1, 5, 0, 9, 2], [0.5, 0.25, 1.0, 0.0, 0.75, 0.5]
    labels = [3, 3, 1, 1, 1, 2]
    got = score_intervals(
        scores_of(before, precision), torch.tensor(labels), ["recall_at_2", "map_at_r"], seed=2
    )
    assert list(got) == ["recall_at_2", "map_at_r"]
    for name, values in (("recall_at_2", [1, 1, 0, 1, 0, 0]), ("map_at_r", [p / 2 for p in precision])):
        column = np.array(values, dtype=float)[:, None]
        assert got[name] == {
            "queries": mean_intervals(column, None, seed=2)[0],
            "classes": mean_intervals(column, np.array(labels), seed=2)[0],
        }


def test_scores_of_embeddings_with_lonely_queries():
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 0, 1, 2, 2, 2, 2])
    scores = retrieval_scores(rng.normal(size=(8, 3)), labels)
    got = score_intervals(scores, labels[scores.queries.numpy()], ["recall_at_1"])
    mean = scores.of_metric("recall_at_1").mean().item()
    assert all(one is not None and one.low <= mean <= one.high for one in got["recall_at_1"].values())
    assert score_intervals(scores, labels[scores.queries.numpy()], []) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [1, 1]}, r"labels has 2 entries for 3 queries with scores; wanted one each"),
        ({"labels": [1.0, 1.0, 2.0]}, r"labels holds torch.float64; wanted integers"),
        ({"metrics": ["recall_at_11"]}, r"got metric 'recall_at_11'"),
        ({"level": 95}, r"level is 95; wanted a share in \(0, 1\)"),
        ({"level": float("nan")}, r"level is nan"),
        ({"num_resamples": 20}, r"num_resamples is 20; wanted 100 or more"),
        ({"seed": -1}, r"seed is -1; wanted an integer >= 0"),
    ],
)
def test_refusals(arguments, message):
    given = {"labels": [1, 1, 2], "metrics": ["map_at_r"]} | arguments
    labels = np.array(given.pop("labels"))
    with pytest.raises(InputError, match=message):
        score_intervals(scores_of([0, 1, 2], [0.5, 0.5, 1.0]), labels, **given)
