"""k-means: the clusters of faiss.Kmeans, found with fewer products."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from tuplet.metrics import clustering as _kmeans
from tuplet.metrics.clustering import cluster


@pytest.fixture(autouse=True)
def no_clusters_are_few(monkeypatch):
    monkeypatch.setattr(_kmeans, "FEW", 0)


def points_of(num_points, dim, *, blobs, repeated=False, seed=0):
    rng = np.random.default_rng(seed)
    points = 3 * rng.normal(size=(blobs, dim))[rng.integers(blobs, size=num_points)]
    points = points + rng.normal(size=(num_points, dim))
    if repeated:
        points = points[rng.integers(max(2, num_points // 3), size=num_points)]
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def by_faiss(points, k, *, num_iterations, seed):
    kmeans = faiss.Kmeans(
        points.shape[1],
        k,
        niter=num_iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    kmeans.train(points)
    return kmeans.index.search(points, 1)[1][:, 0]


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("num_iterations", [1, 2, 5, 20])
@pytest.mark.parametrize(
    ("num_points", "k", "dim"), [(40, 39, 5), (300, 7, 3), (900, 150, 16), (3000, 12, 8)]
)
def test_the_clusters_of_faiss(num_points, k, dim, num_iterations, repeated):
    for seed in range(4):
        points = points_of(num_points, dim, blobs=9, repeated=repeated, seed=seed)
        found = cluster(points, k, num_iterations=num_iterations, seed=seed)
        expected = by_faiss(points, k, num_iterations=num_iterations, seed=seed)
        assert (found == expected).all()


def test_as_many_clusters_as_points():
    points = points_of(30, 6, blobs=4)
    assert sorted(cluster(points, 30, num_iterations=20, seed=1)) == list(range(30))


def test_seeds_start_differently():
    points = points_of(300, 6, blobs=30)
    runs = [cluster(points, 20, num_iterations=20, seed=seed) for seed in (0, 1)]
    assert (runs[0] != runs[1]).any()


def test_later_iterations_compare_few_pairs(monkeypatch):
    compared = []
    nearest = _kmeans._nearest
    monkeypatch.setattr(
        _kmeans,
        "_nearest",
        lambda points, rows, centroids: (
            compared.append(len(rows) * len(centroids)) or nearest(points, rows, centroids)
        ),
    )
    points = points_of(2000, 6, blobs=30)
    cluster(points, 200, num_iterations=20, seed=0)
    assert compared[0] == 2000 * 200
    # Two searches an iteration: among those that moved, and, where the own centroid moved away, among all.
    assert sum(compared[-2:]) < 0.5 * compared[0]


def test_few_clusters_are_left_to_faiss(monkeypatch):
    monkeypatch.setattr(_kmeans, "FEW", 21)
    monkeypatch.setattr(_kmeans, "_nearest", None)
    points = points_of(300, 5, blobs=9)
    found = cluster(points, 20, num_iterations=4, seed=1)
    assert (found == by_faiss(points, 20, num_iterations=4, seed=1)).all()


def test_blocks_change_nothing(monkeypatch):
    points = points_of(700, 5, blobs=9)
    whole = cluster(points, 40, num_iterations=20, seed=2)
    monkeypatch.setattr(_kmeans, "BLOCK_ROWS", 64)
    assert (cluster(points, 40, num_iterations=20, seed=2) == whole).all()


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
    assert _kmeans.num_gpus() == 0
