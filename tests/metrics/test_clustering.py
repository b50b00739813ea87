"""Clustering metrics: known answers, repeatability, and refusals."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict

import faiss
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from tuplet.errors import InputError
from tuplet.metrics import clustering
from tuplet.metrics.clustering import ClusteringReport, clustering_metrics


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


def test_mutual_information_from_its_definition(monkeypatch):
    classes, clusters = np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 0, 0, 0, 0])
    monkeypatch.setattr(clustering, "cluster", lambda *_, **__: clusters)

    def entropy(*columns):
        _, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
        return -sum(n / 6 * math.log(n / 6) for n in counts)

    shared = entropy(classes) + entropy(clusters) - entropy(classes, clusters)
    report = clustering_metrics(np.ones((6, 2), np.float32), classes)
    assert report.nmi_mean == pytest.approx(shared / math.sqrt(entropy(classes) * entropy(clusters)))
    assert report.nmi_arithmetic_mean == pytest.approx(2 * shared / (entropy(classes) + entropy(clusters)))
    for average, ami in (("geometric", report.ami_mean), ("arithmetic", report.ami_arithmetic_mean)):
        assert ami == pytest.approx(
            adjusted_mutual_info_score(classes, clusters, average_method=average), abs=1e-10
        )


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
    ("arguments", "message"),
    [
        ({"labels": np.zeros(120, int)}, r"all 120 labels are of one class; want at least 2 classes"),
        ({"labels": np.arange(7)}, r"labels has 7 entries for 120 embeddings"),
        ({"embeddings": np.full((120, 3), np.nan)}, r"embeddings holds NaN or infinity, first in row 0"),
        ({"embeddings": np.zeros((0, 3))}, r"embeddings is empty"),
        ({"num_runs": 0}, r"num_runs is 0; wanted an integer >= 1"),
        ({"num_iterations": 0}, r"num_iterations is 0; wanted an integer >= 1"),
        ({"seed": -1}, r"seed is -1; wanted an integer >= 0"),
    ],
)
def test_refusals(arguments, message):
    x, y = blobs()
    with pytest.raises(InputError, match=message):
        clustering_metrics(**({"embeddings": x, "labels": y} | arguments))
