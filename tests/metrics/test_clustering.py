"""Clustering: known answers, mutual information against scikit-learn, k-means against faiss."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import asdict

import faiss
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from tuplet.errors import DataError, SettingsError
from tuplet.metrics import clustering
from tuplet.metrics.agreement import agreement, expected_mutual_information
from tuplet.metrics.clustering import ClusteringReport, cluster, clustering_metrics


def blobs(num_classes=6, each=20, noise=0.01, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), each)
    centres = np.eye(num_classes, 12)
    return (centres[labels] + noise * rng.normal(size=(len(labels), 12))).astype(np.float32), labels


def test_two_far_classes_are_recovered_perfectly():
    x, y = blobs(num_classes=2)
    report = clustering_metrics(x, y, num_runs=5)
    assert (report.nmi_mean, report.ami_mean) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (report.nmi_std, report.ami_std) == (pytest.approx(0.0, abs=1e-9), pytest.approx(0.0, abs=1e-9))


def test_random_labels_have_no_adjusted_information():
    x, y = blobs(noise=1.0, each=100)
    report = clustering_metrics(x, np.random.default_rng(1).permutation(y), num_runs=3)
    assert abs(report.ami_mean) < 0.02
    assert 0 <= report.nmi_mean < 0.1


def test_mean_and_sample_deviation_over_the_seeds():
    x, y = blobs(noise=0.4)
    whole = clustering_metrics(x, y, num_runs=4, seed=3)
    runs = [clustering_metrics(x, y, num_runs=1, seed=seed) for seed in (3, 4, 5, 6)]
    assert whole.nmi_mean == pytest.approx(np.mean([run.nmi_mean for run in runs]))
    assert whole.nmi_std == pytest.approx(np.std([run.nmi_mean for run in runs], ddof=1))
    assert whole.ami_mean == pytest.approx(np.mean([run.ami_mean for run in runs]))
    assert whole.ami_std == pytest.approx(np.std([run.ami_mean for run in runs], ddof=1))
    assert whole.nmi_std > 0
    assert all(run.nmi_std == run.ami_std == 0.0 for run in runs)


def test_both_averages_have_mean_and_deviation(monkeypatch):
    classes = np.arange(12) // 4
    found = [np.arange(12) // 6, np.arange(12) % 5, np.arange(12) // 3]
    monkeypatch.setattr(clustering, "cluster", lambda *_, seed, **__: found[seed])
    report = clustering_metrics(np.ones((12, 2), np.float32), classes, num_runs=3)
    for score, name in ((normalized_mutual_info_score, "nmi"), (adjusted_mutual_info_score, "ami")):
        for average, suffix in (("geometric", ""), ("arithmetic", "_arithmetic")):
            values = [score(classes, one, average_method=average) for one in found]
            assert getattr(report, f"{name}{suffix}_mean") == pytest.approx(np.mean(values), abs=1e-10)
            assert getattr(report, f"{name}{suffix}_std") == pytest.approx(np.std(values, ddof=1), abs=1e-10)


@pytest.mark.parametrize(("size", "runs"), [(clustering.MANY, 10), (clustering.MANY + 1, 1)])
def test_one_run_is_the_default_for_many_embeddings(monkeypatch, size, runs):
    seeds = []
    monkeypatch.setattr(
        clustering, "cluster", lambda *_, seed, **__: seeds.append(seed) or np.arange(size) % 2
    )
    report = clustering_metrics(np.ones((size, 2), np.float32), np.arange(size) % 2, seed=3)
    assert seeds == list(range(3, 3 + runs))
    assert f"runs: {runs}, iterations: at most 20, seeds: 3..{2 + runs}, threads: " in report.settings


def test_reports_of_older_runs_load():
    old = {"nmi_mean": 0.9, "nmi_std": 0.01, "ami_mean": 0.8, "ami_std": 0.02, "settings": "k = 4"}
    report = ClusteringReport(**old)
    assert {name: value for name, value in asdict(report).items() if value is not None} == old


def test_repeats_exactly_and_ignores_length_names_and_container():
    x, y = blobs(noise=0.4)
    report = clustering_metrics(x, y, num_runs=3)
    assert clustering_metrics(x, y, num_runs=3) == report
    assert clustering_metrics(torch.tensor(x), torch.tensor(y * 10 - 5), num_runs=3) == report
    # Powers of two, so that normalising rounds alike.
    lengths = 2.0 ** np.random.default_rng(0).integers(-3, 4, (len(x), 1))
    assert clustering_metrics((x * lengths).astype(np.float64), y, num_runs=3).nmi_mean == pytest.approx(
        report.nmi_mean, abs=0.05
    )


def test_nothing_is_printed(capfd):
    for each in (2, 1000):
        x, y = blobs(num_classes=3, each=each)
        assert clustering_metrics(x, y, num_runs=20).nmi_mean > 0.5
    assert capfd.readouterr() == ("", "")


def test_as_many_classes_as_embeddings():
    x, _ = blobs(noise=0.3, each=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clustering_metrics(x, np.arange(len(x)), num_runs=2).nmi_mean == pytest.approx(1.0)


def test_embeddings_that_are_all_equal_say_nothing():
    for value in (0.0, 1.0):
        report = clustering_metrics(np.full((12, 3), value, np.float32), np.arange(12) % 4, num_runs=2)
        assert report.nmi_mean == pytest.approx(0.0, abs=1e-12)
        assert report.ami_mean == pytest.approx(0.0, abs=1e-12)


def test_settings_say_how_it_was_measured():
    x, y = blobs()
    assert clustering_metrics(x, y, num_runs=2, num_iterations=7, seed=5).settings == (
        "geometric average, the arithmetic one beside it; faiss k-means on L2-normalised embeddings, "
        "k = 6 classes, runs: 2, iterations: at most 7, seeds: 5..6, "
        f"threads: {faiss.omp_get_max_threads()}"
    )


@pytest.mark.parametrize(
    ("arguments", "kind", "subject"),
    [
        ({"labels": np.zeros(120, int)}, DataError, "labels"),
        ({"labels": np.arange(7)}, DataError, "labels"),
        ({"embeddings": np.full((120, 3), np.nan)}, DataError, "embeddings"),
        ({"embeddings": np.zeros((0, 3))}, DataError, "embeddings"),
        ({"num_runs": 0}, SettingsError, "num_runs"),
        ({"num_iterations": 0}, SettingsError, "num_iterations"),
        ({"seed": -1}, SettingsError, "seed"),
    ],
)
def test_refusals(arguments, kind, subject):
    x, y = blobs()
    with pytest.raises(kind) as error:
        clustering_metrics(**({"embeddings": x, "labels": y} | arguments))
    assert error.value.subject == subject


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


@pytest.mark.parametrize("seed", range(30))
def test_random_labellings(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 120))
    classes, clusters = (rng.integers(0, rng.integers(1, num + 1), num) for _ in range(2))
    assert_as_in_sklearn(classes, clusters)
    assert_as_in_sklearn(classes * 90 - 7, 3 * classes + (rng.random(num) < 0.2))


def test_equal_labellings_agree_perfectly_and_not_more():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, rng.integers(2, 40), rng.integers(50, 400))
        found = agreement(classes, -classes)
        assert max(found) <= 1.0
        assert min(found) == pytest.approx(1.0)


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


@pytest.fixture
def none_are_few(monkeypatch):
    monkeypatch.setattr(clustering, "FEW", 0)


def points_of(num_points, dim, *, blobs, repeated=False, seed=0):
    rng = np.random.default_rng(seed)
    points = 3 * rng.normal(size=(blobs, dim))[rng.integers(blobs, size=num_points)]
    points = points + rng.normal(size=(num_points, dim))
    if repeated:
        points = points[rng.integers(max(2, num_points // 3), size=num_points)]
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def by_faiss(points, k, *, num_iterations, seed):
    all_points = {"min_points_per_centroid": 1, "max_points_per_centroid": len(points)}
    kmeans = faiss.Kmeans(points.shape[1], k, niter=num_iterations, seed=seed, **all_points)
    kmeans.train(points)
    return kmeans.index.search(points, 1)[1][:, 0]


@pytest.mark.usefixtures("none_are_few")
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("num_iterations", [1, 2, 5, 20])
@pytest.mark.parametrize(
    ("num_points", "k", "dim"), [(40, 39, 5), (300, 7, 3), (900, 150, 16), (3000, 12, 8)]
)
def test_the_clusters_of_faiss(num_points, k, dim, num_iterations, repeated):
    for seed in range(2):
        points = points_of(num_points, dim, blobs=9, repeated=repeated, seed=seed)
        found = cluster(points, k, num_iterations=num_iterations, seed=seed)
        expected = by_faiss(points, k, num_iterations=num_iterations, seed=seed)
        assert (found == expected).all()


@pytest.mark.usefixtures("none_are_few")
def test_as_many_clusters_as_points():
    points = points_of(30, 6, blobs=4)
    assert sorted(cluster(points, 30, num_iterations=20, seed=1)) == list(range(30))


@pytest.mark.usefixtures("none_are_few")
def test_seeds_start_differently():
    points = points_of(300, 6, blobs=30)
    runs = [cluster(points, 20, num_iterations=20, seed=seed) for seed in (0, 1)]
    assert (runs[0] != runs[1]).any()


@pytest.mark.usefixtures("none_are_few")
def test_later_iterations_compare_few_pairs(monkeypatch):
    compared = []
    nearest = clustering._nearest

    def counted(points, rows, centroids):
        compared.append(len(rows) * len(centroids))
        return nearest(points, rows, centroids)

    monkeypatch.setattr(clustering, "_nearest", counted)
    points = points_of(2000, 6, blobs=30)
    cluster(points, 200, num_iterations=20, seed=0)
    assert compared[0] == 2000 * 200
    # Two searches an iteration: among those that moved, and, where the own centroid moved away, among all.
    assert sum(compared[-2:]) < 0.5 * compared[0]


def test_few_clusters_are_left_to_faiss(monkeypatch):
    monkeypatch.setattr(clustering, "FEW", 21)
    monkeypatch.setattr(clustering, "_nearest", None)
    points = points_of(300, 5, blobs=9)
    found = cluster(points, 20, num_iterations=4, seed=1)
    assert (found == by_faiss(points, 20, num_iterations=4, seed=1)).all()


@pytest.mark.usefixtures("none_are_few")
def test_blocks_change_nothing(monkeypatch):
    points = points_of(700, 5, blobs=9)
    whole = cluster(points, 40, num_iterations=20, seed=2)
    monkeypatch.setattr(clustering, "BLOCK_ROWS", 64)
    assert (cluster(points, 40, num_iterations=20, seed=2) == whole).all()


@pytest.mark.usefixtures("none_are_few")
def test_points_stay_as_they_are():
    points = points_of(200, 5, blobs=9)
    before = points.copy()
    cluster(points, 20, num_iterations=5, seed=0)
    assert (points == before).all()


def test_on_a_gpu_faiss_does_it_all(monkeypatch):
    # No machine of the tests has one: what faiss would be asked for, then the same on the CPU.
    points, asked, kmeans = points_of(300, 5, blobs=9), [], faiss.Kmeans

    def on_cpu(*sizes, gpu, **how):
        asked.append((gpu, how["niter"], how["seed"], how["max_points_per_centroid"]))
        return kmeans(*sizes, **how)

    expected = by_faiss(points, 20, num_iterations=7, seed=3)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "Kmeans", on_cpu)
    assert (cluster(points, 20, num_iterations=7, seed=3) == expected).all()
    assert asked == [(2, 7, 3, 300)]


def test_without_a_word_about_gpus_there_are_none(monkeypatch):
    monkeypatch.delattr(faiss, "get_num_gpus")
    assert clustering.num_gpus() == 0
