"""Clustering metrics: how well k-means on the embeddings recovers the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import faiss
import numpy as np
from jaxtyping import Float, Float32, Int, Int64
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from torch import Tensor

from tuplet.errors import InputError
from tuplet.metrics._inputs import Array, as_embeddings, as_labels, unit_rows

Average: TypeAlias = Literal["geometric", "arithmetic"]


@dataclass(frozen=True)
class ClusteringReport:
    """Agreement of k-means clusters with the classes, over several runs.

    Attributes:
        nmi_mean, nmi_std: normalised mutual information, in [0, 1].
        ami_mean, ami_std: adjusted mutual information, at most 1.
        settings: how it was measured, in words: average, k, runs, iterations, seeds, implementation.
    """

    nmi_mean: float
    nmi_std: float
    ami_mean: float
    ami_std: float
    settings: str


def clustering_metrics(
    embeddings: Float[Array, "N D"],
    labels: Int[Array, " N"],
    *,
    num_runs: int = 10,
    num_iterations: int = 20,
    seed: int = 0,
    average: Average = "geometric",
) -> ClusteringReport:
    """NMI and AMI between the classes and k-means clusters, one cluster a class, over several seeds.

    k-means is faiss's, on the CPU in float32, on embeddings of unit length, with every embedding used; a
    zero vector stays zero. It uses as many threads as OMP_NUM_THREADS allows, and repeats exactly on one
    machine with one number of threads. A cluster that runs empty is refilled by splitting a large one; where
    there are fewer distinct embeddings than classes some stay empty, and where all are equal both measures
    are 0.

    Args:
        embeddings: finite; any device and precision.
        labels: class of each embedding, any integers, at least two different ones.
        num_runs: k-means runs, >= 1, seeded seed, seed + 1, ...; each starts from other random embeddings.
        num_iterations: of each run, >= 1.
        seed: of the first run, >= 0.
        average: of the two entropies that mutual information is divided by.
    Returns: means and sample standard deviations over the runs; 0 for the deviations of a single run.
    Raises: InputError: fewer than two classes, an argument out of range, or embeddings or labels that
        `tuplet.metrics.retrieval.retrieval_metrics` would refuse.
    Source: Vinh, Epps and Bailey, "Information Theoretic Measures for Clusterings Comparison", JMLR 11, 2010.
    """
    _check_settings(num_runs, num_iterations, seed, average)
    points = _unit_points(as_embeddings(embeddings, name="embeddings"))
    classes = as_labels(labels, name="labels", length=len(points)).cpu().numpy()
    k = len(np.unique(classes))
    if k < 2:
        raise InputError(
            f"all {len(points)} labels are of one class; wanted at least 2 classes to tell apart"
        )
    seeds = range(seed, seed + num_runs)
    runs = [_kmeans(points, k, num_iterations=num_iterations, seed=one) for one in seeds]
    nmi = [normalized_mutual_info_score(classes, run, average_method=average) for run in runs]
    ami = [adjusted_mutual_info_score(classes, run, average_method=average) for run in runs]
    settings = (
        f"{average} average; faiss k-means on L2-normalised embeddings, k = {k} classes, "
        f"runs: {num_runs}, iterations: {num_iterations}, seeds: {seed}..{seeds[-1]}"
    )
    return ClusteringReport(*_mean_and_std(nmi), *_mean_and_std(ami), settings)


def _check_settings(num_runs: int, num_iterations: int, seed: int, average: str) -> None:
    for name, value, least in (
        ("num_runs", num_runs, 1),
        ("num_iterations", num_iterations, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"{name} is {value}; wanted an integer >= {least}")
    if average not in get_args(Average):
        raise InputError(f"average is {average!r}; wanted one of {', '.join(get_args(Average))}")


def _unit_points(embeddings: Float[Tensor, "N D"]) -> Float32[np.ndarray, "N D"]:
    points: Float32[np.ndarray, "N D"] = unit_rows(embeddings).float().cpu().numpy()
    return points


def _kmeans(
    points: Float32[np.ndarray, "N D"], k: int, *, num_iterations: int, seed: int
) -> Int64[np.ndarray, " N"]:
    """Cluster of each point, in 0..k-1."""
    # By default faiss drops all but 256 points a centroid, and warns on stderr below 39.
    kmeans = faiss.Kmeans(
        points.shape[1],
        k,
        niter=num_iterations,
        seed=seed,
        verbose=False,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    kmeans.train(points)
    nearest: Int64[np.ndarray, "N 1"] = kmeans.index.search(points, 1)[1]
    return nearest[:, 0]


def _mean_and_std(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
