"""What evaluation.py measures: metrics of embeddings by different libraries, as plain numbers by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import faiss
import numpy as np
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN, FaissKNN
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from torch import Tensor

from benchmarks.evaluation.data import Items
from tuplet import clustering_metrics, retrieval_metrics

RECALL_AT = (1, 10, 100, 1000)
MOST = max(RECALL_AT)
BLOCK = 512
"""Queries of a block."""
ITERATIONS = 20
"""Of k-means."""

Values = dict[str, float]


def tuplet_retrieval(items: Items) -> Values:
    """What retrieval_metrics says: Recall@{1, 10, 100, 1000}, R-precision, MAP@R."""
    return retrieval_metrics(
        items.embeddings,
        items.labels,
        recall_at=RECALL_AT,
        gallery=items.gallery,
        gallery_labels=items.gallery_labels,
    )


def pml_faiss(items: Items) -> Values:
    """pytorch-metric-learning's AccuracyCalculator with its default search, faiss."""
    return _pml(items, FaissKNN())


def pml_custom(items: Items) -> Values:
    """The same with its search in PyTorch; in blocks, for one product of all pairs does not fit."""
    return _pml(items, CustomKNN(CosineSimilarity(), batch_size=BLOCK))


def torch_topk(items: Items) -> Values:
    """The 1,001 nearest by torch.topk in blocks, and the same metrics from them."""
    alone = items.gallery is None
    labels = items.searched_labels
    positives = labels.bincount(minlength=int(items.labels.max()) + 1)[items.labels] - int(alone)
    totals: dict[str, list[Tensor]] = {}
    for rows in torch.arange(len(items.embeddings)).split(BLOCK):
        similarity = items.embeddings[rows] @ items.searched.T
        if alone:
            similarity[torch.arange(len(rows)), rows] = -torch.inf
        nearest = similarity.topk(min(MOST + 1, similarity.shape[1]), dim=1).indices
        keep = positives[rows] > 0
        relevant = labels[nearest[keep]] == items.labels[rows[keep], None]
        for name, values in _scores(relevant, positives[rows[keep]]).items():
            totals.setdefault(name, []).append(values)
    return {name: float(torch.cat(values).mean()) for name, values in totals.items()}


def faiss_search(items: Items) -> Values:
    """The 1,001 nearest by faiss.IndexFlatIP and nothing more; Recall@1 shows that it found them."""
    index = faiss.IndexFlatIP(items.embeddings.shape[1])
    index.add(items.searched.numpy())
    found = index.search(items.embeddings.numpy(), min(MOST + 1, len(items.searched)))[1]
    first = found[:, 0]
    if items.gallery is None:
        own = np.arange(len(first))
        first = np.where(first == own, found[:, 1], first)
    positives = np.bincount(items.searched_labels, minlength=int(items.labels.max()) + 1)[items.labels]
    keep = positives > int(items.gallery is None)
    same = items.searched_labels.numpy()[first] == items.labels.numpy()
    return {"recall_at_1": float(same[keep].mean())}


def tuplet_clustering(items: Items) -> Values:
    """What clustering_metrics says after one run."""
    report = asdict(clustering_metrics(items.embeddings, items.labels, num_runs=1, num_iterations=ITERATIONS))
    return {name.replace("_mean", ""): report[name] for name in report if name.endswith("_mean")}


def faiss_clustering(items: Items) -> Values:
    """faiss.Kmeans with every embedding used, and scikit-learn's NMI."""
    points, k = items.embeddings.numpy(), len(items.labels.unique())
    settings = {"min_points_per_centroid": 1, "max_points_per_centroid": len(points)}
    kmeans = faiss.Kmeans(points.shape[1], k, niter=ITERATIONS, seed=0, **settings)
    kmeans.train(points)
    return _nmi(items.labels.numpy(), kmeans.index.search(points, 1)[1][:, 0])


def sklearn_clustering(items: Items) -> Values:
    """scikit-learn's KMeans from random points, its NMI and its AMI."""
    classes, k = items.labels.numpy(), len(items.labels.unique())
    kmeans = KMeans(k, init="random", n_init=1, max_iter=ITERATIONS, tol=0.0, random_state=0)
    clusters = kmeans.fit_predict(items.embeddings.numpy())
    ami = {
        f"ami{suffix}": adjusted_mutual_info_score(classes, clusters, average_method=average)
        for suffix, average in (("", "geometric"), ("_arithmetic", "arithmetic"))
    }
    return _nmi(classes, clusters) | ami


RETRIEVAL: dict[str, Callable[[Items], Values]] = {
    "tuplet": tuplet_retrieval,
    "pml_faiss": pml_faiss,
    "pml_custom": pml_custom,
    "torch_topk": torch_topk,
    "faiss_search": faiss_search,
}
CLUSTERING: dict[str, Callable[[Items], Values]] = {
    "tuplet_clustering": tuplet_clustering,
    "faiss_clustering": faiss_clustering,
    "sklearn_clustering": sklearn_clustering,
}
METHODS = RETRIEVAL | CLUSTERING


def _pml(items: Items, search: FaissKNN | CustomKNN) -> Values:
    names = {
        "precision_at_1": "recall_at_1",
        "r_precision": "r_precision",
        "mean_average_precision_at_r": "map_at_r",
    }
    calculator = AccuracyCalculator(
        include=tuple(names), k="max_bin_count", device=torch.device("cpu"), knn_func=search
    )
    found = calculator.get_accuracy(items.embeddings, items.labels, items.gallery, items.gallery_labels)
    return {names[name]: float(value) for name, value in found.items()}


def _scores(relevant: Tensor, positives: Tensor) -> dict[str, Tensor]:
    """Of each query, from whether each of its first results is of its class; R up to their number."""
    place = torch.arange(1, relevant.shape[1] + 1)
    scores = {f"recall_at_{k}": relevant[:, :k].any(1).double() for k in RECALL_AT}
    among = relevant & (place <= positives[:, None])
    precision = among.cumsum(1).double() / place
    scores["r_precision"] = among.sum(1) / positives.double()
    scores["map_at_r"] = (precision * among).sum(1) / positives
    return scores


def _nmi(classes: np.ndarray, clusters: np.ndarray) -> Values:
    return {
        f"nmi{suffix}": normalized_mutual_info_score(classes, clusters, average_method=average)
        for suffix, average in (("", "geometric"), ("_arithmetic", "arithmetic"))
    }
