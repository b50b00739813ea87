"""Two models compared: against scipy and enumeration, and under the null."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from tuplet.errors import InputError
from tuplet.metrics import intervals as comparison
from tuplet.metrics.intervals import holm, mean_intervals, sign_flips
from tuplet.metrics.retrieval import (
    QueryScores,
    compare_scores,
    retrieval_metrics,
    retrieval_scores,
)


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
        assert got == comparison.SignFlips((p,), 8, True)


def test_classes_without_a_difference_change_nothing():
    totals = np.random.default_rng(0).normal(1, 1, (9, 3))
    totals[4, 1] = 0
    padded = np.zeros((500, 3))
    padded[::50][:9] = totals
    assert sign_flips(padded) == sign_flips(totals)
    assert sign_flips(np.zeros((40, 2))) == comparison.SignFlips((1.0, 1.0), 1, True)


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
    monkeypatch.setattr(comparison, "BLOCK_BYTES", 1)
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


def scores_of(num_before, labels):
    zeros = torch.zeros(len(labels), dtype=torch.float64)
    return QueryScores(torch.arange(len(labels)), torch.as_tensor(num_before), zeros, zeros, 10)


def test_queries_of_a_class_are_flipped_together():
    labels = np.repeat(np.arange(8), 50)
    gained = np.repeat([1, 1, 1, 1, 1, 1, 1, 0], 50)  # 7 classes wholly won by B
    comparison = compare_scores(
        scores_of(gained, labels), scores_of(np.zeros(400, int), labels), labels, ["recall_at_1"]
    )
    (found,) = comparison.differences
    # By queries, 350 won and none lost would be beyond any doubt.
    assert (found.p_value, comparison.num_flips, comparison.exact) == (2 / 2**7, 2**7, True)
    assert (comparison.num_queries, comparison.num_classes) == (400, 8)
    assert (found.a, found.b, found.difference) == (0.125, 1.0, 0.875)


@pytest.fixture(scope="module")
def two_models():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), rng.integers(2, 9, 30))
    centres = rng.normal(size=(30, 5))
    worse, better = (centres[labels] + noise * rng.normal(size=(len(labels), 5)) for noise in (0.9, 0.6))
    return worse, better, labels


METRICS = ("recall_at_1", "recall_at_4", "r_precision", "map_at_r")


def test_values_intervals_and_signs_of_two_models(two_models):
    worse, better, labels = two_models
    a, b = retrieval_scores(worse, labels), retrieval_scores(better, labels)
    forth = compare_scores(a, b, labels, METRICS, num_resamples=500, seed=3)
    back = compare_scores(b, a, labels, METRICS, num_resamples=500, seed=3)
    of_a, of_b = (retrieval_metrics(x, labels, recall_at=(1, 4)) for x in (worse, better))
    gains = np.stack([(b.of_metric(name) - a.of_metric(name)).numpy() for name in METRICS], axis=1)
    over_classes = mean_intervals(gains, labels, num_resamples=500, seed=3)
    over_queries = mean_intervals(gains, None, num_resamples=500, seed=3)
    for column, name in enumerate(METRICS):
        found, mirrored = forth.differences[column], back.differences[column]
        assert found.metric == name
        assert (found.a, found.b) == pytest.approx((of_a[name], of_b[name]))
        assert found.difference == pytest.approx(of_b[name] - of_a[name])
        assert (found.over_classes, found.over_queries) == (over_classes[column], over_queries[column])
        assert mirrored.difference == pytest.approx(-found.difference)
        assert mirrored.p_value == found.p_value < 0.01
        assert found.over_classes.low > 0 > mirrored.over_classes.high
    assert [one.p_holm for one in forth.differences] == list(holm([one.p_value for one in forth.differences]))
    assert (forth.level, forth.num_resamples, forth.num_flips, forth.exact, forth.seed) == (
        0.95, 500, 10_000, False, 3,
    )  # fmt: skip


def test_a_model_does_not_differ_from_itself(two_models):
    scores = retrieval_scores(two_models[0], two_models[2])
    for found in compare_scores(scores, scores, two_models[2], METRICS).differences:
        assert (found.difference, found.p_value, found.p_holm) == (0, 1, 1)
        assert (found.over_classes.low, found.over_classes.high) == (0, 0)


def test_one_class_says_nothing():
    labels = np.zeros(5, int)
    (found,) = compare_scores(
        scores_of([1, 1, 1, 1, 0], labels), scores_of([0, 0, 0, 0, 0], labels), labels, ["recall_at_1"]
    ).differences
    assert found.over_classes is None
    assert found.over_queries is not None
    assert found.p_value == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b": scores_of([0, 1], np.zeros(2, int))}, r"scores of 3 and of 2 queries, not the same ones"),
        ({"labels": np.zeros(2, int)}, r"labels has 2 entries for 3 queries with scores"),
        ({"metrics": ["nmi"]}, r"got metric 'nmi'"),
        ({"num_flips": 99}, r"num_flips is 99; wanted 100 or more"),
        ({"num_resamples": 1}, r"num_resamples is 1; wanted 100 or more"),
        ({"seed": -1}, r"seed is -1"),
    ],
)
def test_refusals(arguments, message):
    labels = np.array([0, 1, 1])
    scores = scores_of([0, 1, 2], labels)
    given = {"a": scores, "b": scores, "labels": labels, "metrics": ["recall_at_1"]} | arguments
    with pytest.raises(InputError, match=message):
        compare_scores(**given)
