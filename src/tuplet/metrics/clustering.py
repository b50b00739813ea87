"""Clustering metrics: how well k-means on the embeddings recovers the classes."""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from jaxtyping import Float, Float32, Int
from torch import Tensor

from tuplet.errors import InputError
from tuplet.metrics._inputs import Array, as_embeddings, as_labels, unit_rows
from tuplet.metrics._kmeans import cluster, num_gpus
from tuplet.metrics._mutual_information import agreement

MANY = 20_000
"""Embeddings beyond which one run of k-means is the default, as papers on such data report it."""


@dataclass(frozen=True)
class ClusteringReport:
    """Agreement of k-means clusters with the classes, over several runs.

    Attributes:
        nmi_mean, nmi_std: normalised mutual information, in [0, 1], divided by the geometric average of the
            entropies of classes and clusters.
        ami_mean, ami_std: adjusted mutual information, at most 1, with the geometric average.
        settings: how it was measured, in words: averages, k, runs, iterations, seeds, implementation.
        nmi_arithmetic_mean, nmi_arithmetic_std: NMI with the arithmetic average; None in older reports.
        ami_arithmetic_mean, ami_arithmetic_std: AMI with the arithmetic average; None in older reports.
    """

    nmi_mean: float
    nmi_std: float
    ami_mean: float
    ami_std: float
    settings: str
    nmi_arithmetic_mean: float | None = None
    nmi_arithmetic_std: float | None = None
    ami_arithmetic_mean: float | None = None
    ami_arithmetic_std: float | None = None


def clustering_metrics(
    embeddings: Float[Array, "N D"],
    labels: Int[Array, " N"],
    *,
    num_runs: int | None = None,
    num_iterations: int = 20,
    seed: int = 0,
) -> ClusteringReport:
    """NMI and AMI between the classes and k-means clusters, one cluster a class, over several seeds.

    k-means is faiss's, in float32, on embeddings of unit length, with every embedding used; a zero vector
    stays zero. It runs on the GPUs that faiss has; faiss-cpu has none. On the CPU, products that cannot
    change a cluster are left out (see `tuplet.metrics._kmeans`). It uses as many threads as
    OMP_NUM_THREADS allows, and repeats exactly on one machine with one number of threads. A cluster that runs
    empty is refilled by splitting a large one; where there are fewer distinct embeddings than classes some
    stay empty, and where all are equal both measures are 0.

    Args:
        embeddings: finite; any device and precision.
        labels: class of each embedding, any integers, at least two different ones.
        num_runs: k-means runs, >= 1, seeded seed, seed + 1, ...; each starts from other random embeddings.
            None: ten, but one beyond 20,000 embeddings.
        num_iterations: of each run at most, >= 1; a run ends early once no centroid moves.
        seed: of the first run, >= 0.
    Returns: means and sample standard deviations over the runs; 0 for the deviations of a single run.
    Raises: InputError: fewer than two classes, an argument out of range, or embeddings or labels that
        `tuplet.metrics.retrieval.retrieval_metrics` would refuse.
    Source: Vinh, Epps and Bailey, "Information Theoretic Measures for Clusterings Comparison", JMLR 11, 2010.
    """
    _check_settings(num_runs, num_iterations, seed)
    points = _unit_points(as_embeddings(embeddings, name="embeddings"))
    classes = as_labels(labels, name="labels", length=len(points)).cpu().numpy()
    k = len(np.unique(classes))
    if k < 2:
        raise InputError(f"all {len(points)} labels are of one class; want at least 2 classes to tell apart")
    if num_runs is None:
        num_runs = 1 if len(points) > MANY else 10
    seeds = range(seed, seed + num_runs)
    runs = [agreement(classes, cluster(points, k, num_iterations=num_iterations, seed=one)) for one in seeds]
    nmi, nmi_std = _mean_and_std([run.nmi for run in runs])
    ami, ami_std = _mean_and_std([run.ami for run in runs])
    return ClusteringReport(
        nmi,
        nmi_std,
        ami,
        ami_std,
        _settings(k, num_iterations, seeds),
        *_mean_and_std([run.nmi_arithmetic for run in runs]),
        *_mean_and_std([run.ami_arithmetic for run in runs]),
    )


def _check_settings(num_runs: int | None, num_iterations: int, seed: int) -> None:
    for name, value, least in (
        ("num_runs", num_runs, 1),
        ("num_iterations", num_iterations, 1),
        ("seed", seed, 0),
    ):
        if value is not None and value < least:
            raise InputError(f"{name} is {value}; wanted an integer >= {least}")


def _settings(k: int, num_iterations: int, seeds: range) -> str:
    gpus, threads = num_gpus(), faiss.omp_get_max_threads()
    where = f"GPUs: {gpus}" if gpus else f"threads: {threads}"
    return (
        "geometric average, the arithmetic one beside it; faiss k-means on L2-normalised embeddings,"
        f" k = {k} classes, runs: {len(seeds)}, iterations: at most {num_iterations},"
        f" seeds: {seeds[0]}..{seeds[-1]}, {where}"
    )


def _unit_points(embeddings: Float[Tensor, "N D"]) -> Float32[np.ndarray, "N D"]:
    points: Float32[np.ndarray, "N D"] = unit_rows(embeddings).float().cpu().numpy()
    return points


def _mean_and_std(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
