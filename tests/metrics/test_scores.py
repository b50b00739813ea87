"""Scores of queries: their intervals, and two models compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tuplet.errors import DataError, SettingsError
from tuplet.metrics.intervals import holm, mean_intervals
from tuplet.metrics.retrieval import (
    QueryScores,
    compare_scores,
    retrieval_metrics,
    retrieval_scores,
    score_intervals,
)

METRICS = ("recall_at_1", "recall_at_4", "r_precision", "map_at_r")


def scores_of(num_before, labels, precision=None):
    values = torch.zeros(len(labels)) if precision is None else torch.tensor(precision)
    values = values.double()
    return QueryScores(
        torch.arange(len(labels)) * 2,
        torch.as_tensor(labels),
        torch.as_tensor(num_before),
        values,
        values / 2,
        10,
    )


def test_each_metric_has_the_intervals_of_its_own_scores():
    before, precision = [0, 1, 5, 0, 9, 2], [0.5, 0.25, 1.0, 0.0, 0.75, 0.5]
    labels = np.array([3, 3, 1, 1, 1, 2])
    scores = scores_of(before, labels, precision)
    got = score_intervals(scores, labels, ["recall_at_2", "map_at_r"], seed=2)
    assert list(got) == ["recall_at_2", "map_at_r"]
    for name, values in (("recall_at_2", [1, 1, 0, 1, 0, 0]), ("map_at_r", [p / 2 for p in precision])):
        column = np.array(values, dtype=float)[:, None]
        assert got[name] == {
            "queries": mean_intervals(column, None, seed=2)[0],
            "classes": mean_intervals(column, labels, seed=2)[0],
        }
        assert scores.interval(name, seed=2) == got[name]["classes"]
        assert scores.interval(name, over="queries", seed=2) == got[name]["queries"]
    assert score_intervals(scores, labels, []) == {}
    narrow = scores.interval("map_at_r", level=0.5, num_resamples=200)
    assert (narrow.level, narrow.num_resamples) == (0.5, 200)


def test_scores_carry_the_labels_of_their_queries():
    # Class 1 has one item, which is no query: its label must not shift the others'.
    labels = np.array([0, 2, 0, 1, 2, 0, 2, 2])
    embeddings = np.random.default_rng(0).normal(size=(8, 3))
    scores = retrieval_scores(embeddings, labels)
    assert scores.labels.tolist() == labels[scores.queries.numpy()].tolist() == [0, 2, 0, 2, 0, 2, 2]
    with_gallery = retrieval_scores(embeddings, labels, gallery=embeddings[:2], gallery_labels=labels[:2])
    assert with_gallery.labels.tolist() == scores.labels.tolist()


def test_queries_of_a_class_are_flipped_together():
    labels = np.repeat(np.arange(8), 50)
    gained = np.repeat([1, 1, 1, 1, 1, 1, 1, 0], 50)  # 7 classes wholly won by B
    a, b = scores_of(gained, labels), scores_of(np.zeros(400, int), labels)
    compared = compare_scores(a, b, labels, ["recall_at_1"])
    (found,) = compared.differences
    # By queries, 350 won and none lost would be beyond any doubt.
    assert (found.p_value, compared.num_flips, compared.exact) == (2 / 2**7, 2**7, True)
    assert (compared.num_queries, compared.num_classes) == (400, 8)
    assert (found.a, found.b, found.difference) == (0.125, 1.0, 0.875)
    assert a.compare(b, ["recall_at_1"]) == compared


@pytest.fixture(scope="module")
def two_models():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), rng.integers(2, 9, 30))
    centres = rng.normal(size=(30, 5))
    worse, better = (centres[labels] + noise * rng.normal(size=(len(labels), 5)) for noise in (0.9, 0.6))
    return worse, better, labels


def test_values_intervals_and_signs_of_two_models(two_models):
    worse, better, labels = two_models
    a, b = retrieval_scores(worse, labels), retrieval_scores(better, labels)
    forth = compare_scores(a, b, labels, METRICS, num_resamples=500, seed=3)
    back = b.compare(a, METRICS, num_resamples=500, seed=3)
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
    settings = (forth.level, forth.num_resamples, forth.num_flips, forth.exact, forth.seed)
    assert settings == (0.95, 500, 10_000, False, 3)


def test_all_metrics_are_compared_where_none_are_named(two_models):
    worse, better, labels = two_models
    a, b = (retrieval_scores(x, labels, most_before=5) for x in (worse, better))
    names = ["recall_at_1", "recall_at_2", "recall_at_4", "r_precision", "map_at_r"]
    assert [one.metric for one in a.compare(b).differences] == names


def test_a_model_does_not_differ_from_itself(two_models):
    scores = retrieval_scores(two_models[0], two_models[2])
    for found in scores.compare(scores, METRICS).differences:
        assert (found.difference, found.p_value, found.p_holm) == (0, 1, 1)
        assert (found.over_classes.low, found.over_classes.high) == (0, 0)


def test_one_class_says_nothing():
    labels = np.zeros(5, int)
    a, b = scores_of([1, 1, 1, 1, 0], labels), scores_of([0, 0, 0, 0, 0], labels)
    (found,) = a.compare(b, ["recall_at_1"]).differences
    assert found.over_classes is None
    assert a.interval("recall_at_1") is None
    assert found.over_queries is not None
    assert found.p_value == 1


LABELS = np.array([0, 1, 1])
SCORES = scores_of([0, 1, 2], LABELS)


@pytest.mark.parametrize(
    ("call", "kind", "subject"),
    [
        (lambda: score_intervals(SCORES, LABELS[:2], METRICS), DataError, "labels"),
        (lambda: score_intervals(SCORES, LABELS * 1.0, METRICS), DataError, "labels"),
        (lambda: score_intervals(SCORES, LABELS, ["recall_at_11"]), SettingsError, "metric"),
        (lambda: score_intervals(SCORES, LABELS, METRICS, level=95), SettingsError, "level"),
        (lambda: SCORES.interval("nmi"), SettingsError, "metric"),
        (lambda: SCORES.interval("map_at_r", num_resamples=20), SettingsError, "num_resamples"),
        (lambda: compare_scores(SCORES, SCORES, LABELS[:2], METRICS), DataError, "labels"),
        (lambda: SCORES.compare(scores_of([0, 1], [0, 0])), DataError, "queries"),
        (lambda: SCORES.compare(replace(SCORES, labels=torch.tensor([0, 1, 2]))), DataError, "labels"),
        (lambda: SCORES.compare(SCORES, ["nmi"]), SettingsError, "metric"),
        (lambda: SCORES.compare(SCORES, num_flips=99), SettingsError, "num_flips"),
        (lambda: SCORES.compare(SCORES, seed=-1), SettingsError, "seed"),
    ],
)
def test_refusals(call, kind, subject):
    with pytest.raises(kind) as error:
        call()
    assert error.value.subject == subject
