"""k-means as faiss does it, without the products that cannot change anything.

After a few iterations most centroids stand still. A point is then compared with those that moved, unless its
own moved away from it: only in that case can one that stands still have become the nearest. The clusters are
those of faiss.Kmeans but for rounding.
"""

from __future__ import annotations

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int64

BLOCK_ROWS = 2**16
"""Points that are copied at a time."""


FEW = 1000
"""Clusters below which all products take less time than finding out which ones matter."""


def num_gpus() -> int:
    """GPUs that faiss can use; faiss-cpu has none."""
    count = getattr(faiss, "get_num_gpus", None)
    return 0 if count is None else int(count())


def cluster(
    points: Float32[np.ndarray, "N D"], k: int, *, num_iterations: int, seed: int
) -> Int64[np.ndarray, " N"]:
    """Cluster of each point, in 0..k-1; on the GPUs that faiss has, or else on the CPU.

    Args:
        points: finite, contiguous.
        k: clusters, in 1..N. They start at k random points.
        num_iterations: at most so many, >= 1; fewer where no centroid moves any more.
        seed: of the random points, >= 0.
    """
    if num_gpus() or k < FEW:
        return _clusters(_by_faiss(points, k, num_iterations, seed, None), points)
    centroids = np.array(_by_faiss(points, k, 0, seed, None).centroids, np.float32)
    clusters, distances = _nearest(points, np.arange(len(points)), centroids)
    changed = np.ones(k, bool)
    for done in range(num_iterations):
        if np.bincount(clusters, minlength=k).min() == 0:
            # faiss splits large clusters to refill empty ones, and goes on from the same centroids.
            return _clusters(_by_faiss(points, k, num_iterations - done, seed, centroids), points)
        moved = _move(centroids, points, clusters, changed)
        if not moved.any():
            break
        before = clusters.copy()
        _assign(clusters, distances, points, centroids, moved)
        changed = np.zeros(k, bool)
        changed[before[before != clusters]] = changed[clusters[before != clusters]] = True
    return clusters


def _move(
    centroids: Float32[np.ndarray, "k D"],
    points: Float32[np.ndarray, "N D"],
    clusters: Int64[np.ndarray, " N"],
    changed: Bool[np.ndarray, " k"],
) -> Bool[np.ndarray, " k"]:
    """Put centroids, in place, to the means of their points where these changed; which ones moved."""
    members = np.flatnonzero(changed[clusters])
    moved = np.zeros(len(changed), bool)
    if len(members) == 0:
        return moved
    members = members[clusters[members].argsort(kind="stable")]
    numbers, starts, sizes = np.unique(clusters[members], return_index=True, return_counts=True)
    means = np.add.reduceat(points[members], starts, axis=0) / sizes[:, None].astype(np.float32)
    moved[numbers] = (means != centroids[numbers]).any(1)
    centroids[numbers] = means
    return moved


def _assign(
    clusters: Int64[np.ndarray, " N"],
    distances: Float32[np.ndarray, " N"],
    points: Float32[np.ndarray, "N D"],
    centroids: Float32[np.ndarray, "k D"],
    moved: Bool[np.ndarray, " k"],
) -> None:
    """Bring the nearest centroids and their squared distances, in place, up to date after some moved."""
    own = _own_distances(points, centroids, clusters, distances, moved)
    away = own > distances
    distances[:] = own
    rows, numbers = np.flatnonzero(~away), np.flatnonzero(moved)
    nearest, found = _nearest(points, rows, centroids[numbers])
    nearer = found < distances[rows]
    clusters[rows[nearer]], distances[rows[nearer]] = numbers[nearest[nearer]], found[nearer]
    rows = np.flatnonzero(away)
    clusters[rows], distances[rows] = _nearest(points, rows, centroids)


def _own_distances(
    points: Float32[np.ndarray, "N D"],
    centroids: Float32[np.ndarray, "k D"],
    clusters: Int64[np.ndarray, " N"],
    distances: Float32[np.ndarray, " N"],
    moved: Bool[np.ndarray, " k"],
) -> Float32[np.ndarray, " N"]:
    """The squared distance of each point to the centroid of its cluster, after some moved."""
    own = distances.copy()
    for rows in _blocks(np.flatnonzero(moved[clusters])):
        differences = points[rows] - centroids[clusters[rows]]
        own[rows] = np.einsum("nd,nd->n", differences, differences)
    return own


def _nearest(
    points: Float32[np.ndarray, "N D"], rows: Int64[np.ndarray, " n"], centroids: Float32[np.ndarray, "c D"]
) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """The nearest centroid of some points and the squared distance to it."""
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(centroids)
    nearest, distances = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    start = 0
    for block in _blocks(rows):
        found, numbers = index.search(points[block], 1)
        part = slice(start, start + len(block))
        nearest[part], distances[part] = numbers[:, 0], found[:, 0]
        start = part.stop
    return nearest, distances


def _blocks(rows: Int64[np.ndarray, " n"]) -> list[Int64[np.ndarray, " b"]]:
    return [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]


def _by_faiss(
    points: Float32[np.ndarray, "N D"],
    k: int,
    num_iterations: int,
    seed: int,
    centroids: Float32[np.ndarray, "k D"] | None,
) -> faiss.Kmeans:
    """k-means by faiss alone, trained from given centroids or from random points."""
    # By default faiss drops all but 256 points a centroid, and warns on stderr below 39.
    kmeans = faiss.Kmeans(
        points.shape[1],
        k,
        niter=num_iterations,
        seed=seed,
        verbose=False,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
        gpu=num_gpus(),
    )
    kmeans.train(points, init_centroids=centroids)
    return kmeans


def _clusters(kmeans: faiss.Kmeans, points: Float32[np.ndarray, "N D"]) -> Int64[np.ndarray, " N"]:
    nearest: Int64[np.ndarray, "N 1"] = kmeans.index.search(points, 1)[1]
    return nearest[:, 0]
