"""Mutual information: scikit-learn's on small cases, and sizes that it takes too long for."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from tuplet.metrics.clustering import agreement, expected_mutual_information


def assert_as_in_sklearn(classes, clusters):
    found = agreement(classes, clusters)
    for average, nmi, ami in (
        ("geometric", found.nmi, found.ami),
        ("arithmetic", found.nmi_arithmetic, found.ami_arithmetic),
    ):
        kinds = {"average_method": average}
        assert nmi == pytest.approx(normalized_mutual_info_score(classes, clusters, **kinds), abs=1e-10)
        assert ami == pytest.approx(adjusted_mutual_info_score(classes, clusters, **kinds), abs=1e-10)


def mutual_information(classes, clusters):
    num = len(classes)
    return sum(
        n / num * math.log(n * num / (np.sum(classes == a) * np.sum(clusters == b)))
        for a, b in itertools.product(set(classes), set(clusters))
        if (n := np.sum((classes == a) & (clusters == b)))
    )


@pytest.mark.parametrize("seed", range(150))
def test_random_labellings(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 120))
    classes, clusters = (rng.integers(0, rng.integers(1, num + 1), num) for _ in range(2))
    assert_as_in_sklearn(classes, clusters)
    assert_as_in_sklearn(classes, 3 * classes + (rng.random(num) < 0.2))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1] * 30, [1] * 30),  # all alone in both
        ([1] * 30, [30]),
        ([30], [30]),
        ([1], [1]),
        ([29, 1], [29, 1]),  # overlaps of at least 28
        ([29, 1], [1] * 30),
        ([20, 10], [25, 5]),
        ([999, 1], [500, 500]),
        ([2, 3, 5, 7, 11, 13, 17, 19, 23], [50, 50]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [12] * 6 + [6]),
    ],
)
def test_adversarial_sizes(a, b):
    classes, clusters = np.repeat(np.arange(len(a)), a), np.repeat(np.arange(len(b)), b)
    assert_as_in_sklearn(classes, clusters)
    assert_as_in_sklearn(classes, np.random.default_rng(0).permutation(clusters))


@pytest.mark.parametrize(("a", "b"), [([2, 2, 1], [3, 2]), ([4, 2], [5, 1]), ([3, 3], [2, 2, 2])])
def test_expected_is_the_mean_over_all_permutations(a, b):
    classes, clusters = np.repeat(np.arange(len(a)), a), np.repeat(np.arange(len(b)), b)
    values = [mutual_information(classes, np.array(one)) for one in itertools.permutations(clusters)]
    assert expected_mutual_information(np.array(a), np.array(b)) == pytest.approx(np.mean(values), abs=1e-12)


def test_sizes_of_a_large_data_set():
    # Pairs in both: each class meets a cluster in 0, 1 or 2 items, with probabilities one can write down.
    num = 60_000
    pairs = np.full(num // 2, 2)
    both = 1 / math.comb(num, 2)
    one = 2 * (num - 2) * 2 / (num * (num - 1))
    expected = len(pairs) ** 2 * (one * 1 / num * math.log(num / 4) + both * 2 / num * math.log(2 * num / 4))
    assert expected_mutual_information(pairs, pairs) == pytest.approx(expected, rel=1e-8)


def test_labels_may_be_any_integers():
    classes, clusters = np.array([5, 5, -3, 90, 90, 90]), np.array([0, 7, 7, 1000, 1000, 0])
    assert_as_in_sklearn(classes, clusters)
