"""Measure embeddings from anywhere: retrieval, clustering and intervals in one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from tuplet.evaluation.embedding_files import LabelledEmbeddings, with_shared_classes
from tuplet.metrics.clustering import ClusteringReport, clustering_metrics
from tuplet.metrics.intervals import Interval, Unit
from tuplet.metrics.names import RetrievalDistance, retrieval_names
from tuplet.metrics.retrieval import QueryScores, retrieval_scores, score_intervals


@dataclass(frozen=True)
class EvalReport:
    """The measurements of one split.

    Attributes:
        split: "test" or "validation", classes that training never saw; or the folder or file it came from.
        retrieval: "recall_at_1", ..., "r_precision", "map_at_r", each in [0, 1].
        clustering: None where it was not asked for.
        num_images: all images of the split, those left out as queries too; without the gallery's.
        num_classes: classes of those images.
        num_queries: images that have another one of their class to find; the others are left out.
        num_gallery: images that were searched; None where they searched among themselves.
        intervals: by metric, then "queries" and "classes"; None where they were not asked for.
        distance: what ranked the results.
    """

    split: str
    retrieval: dict[str, float]
    clustering: ClusteringReport | None
    num_images: int
    num_classes: int
    num_queries: int
    num_gallery: int | None = None
    intervals: dict[str, dict[Unit, Interval | None]] | None = None
    distance: RetrievalDistance = "cosine"

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> EvalReport:
        """Rebuild a report from the result of `asdict`; fields that older reports lack get their defaults."""
        clustering, intervals = tree["clustering"], tree.get("intervals")
        if intervals is not None:
            intervals = {
                metric: {
                    unit: None if fields is None else Interval(**fields) for unit, fields in units.items()
                }
                for metric, units in intervals.items()
            }
        known = {
            "clustering": None if clustering is None else ClusteringReport(**clustering),
            "intervals": intervals,
        }
        return cls(**{**tree, **known})


@dataclass(frozen=True)
class MeasureSettings:
    """The measurements to make of embeddings.

    Attributes:
        recall_at: the K of Recall@K, each >= 1.
        kmeans_runs: runs of k-means for NMI and AMI; 0: none; None: the default of `clustering_metrics`. They
            are left out with one class, and with a gallery, as papers do not agree on what to cluster then.
        distance: what ranks the results; clusters are of embeddings of unit length with either.
        intervals: compute the intervals of the retrieval metrics, with the defaults of `score_intervals`.
    """

    recall_at: Sequence[int] = (1, 2, 4, 8)
    kmeans_runs: int | None = None
    distance: RetrievalDistance = "cosine"
    intervals: bool = True


def measure(
    queries: LabelledEmbeddings,
    *,
    split: str,
    gallery: LabelledEmbeddings | None = None,
    settings: MeasureSettings = MeasureSettings(),
) -> EvalReport:
    """Measure retrieval and clustering of embeddings from any source.

    Args:
        queries: at least one class with two items, or with one in the gallery.
        split: name of the queries in the report.
        gallery: items that the queries search; None: the queries, each excluded from its own results.
        settings: what to measure.
    Raises:
        DataError: classes named in one and numbered in the other, or what `retrieval_metrics` and
            `clustering_metrics` refuse.
    """
    if gallery is not None:
        queries, gallery = with_shared_classes(queries, gallery)
    scores = retrieval_scores(
        queries.embeddings,
        queries.labels,
        most_before=max(settings.recall_at),
        gallery=None if gallery is None else gallery.embeddings,
        gallery_labels=None if gallery is None else gallery.labels,
        distance=settings.distance,
    )
    clusters = None
    if gallery is None and has_clusters(queries.labels, settings):
        clusters = clustering_metrics(queries.embeddings, queries.labels, num_runs=settings.kmeans_runs)
    num_gallery = None if gallery is None else len(gallery.labels)
    return report_of(split, scores, queries.labels, settings, clusters, num_gallery)


def has_clusters(labels: Int64[np.ndarray, " N"], settings: MeasureSettings) -> bool:
    """Return whether NMI and AMI are measured: they are asked for, and there are two classes or more."""
    return settings.kmeans_runs != 0 and len(np.unique(labels)) > 1


def report_of(
    split: str,
    scores: QueryScores,
    labels: Int64[np.ndarray, " N"],
    settings: MeasureSettings,
    clusters: ClusteringReport | None,
    num_gallery: int | None,
) -> EvalReport:
    """Return the report of the scores of a split.

    Args:
        split: what to call it.
        scores: of its queries.
        labels: class of each of its images.
        settings: what was measured.
        clusters: the agreement of clusters and classes, if it was measured.
        num_gallery: images that were searched; None if they searched among themselves.
    """
    metrics = retrieval_names(settings.recall_at)
    return EvalReport(
        split,
        {name: scores.of_metric(name).mean().item() for name in metrics},
        clusters,
        len(labels),
        len(np.unique(labels)),
        len(scores.queries),
        num_gallery,
        score_intervals(scores, scores.labels, metrics) if settings.intervals else None,
        settings.distance,
    )
