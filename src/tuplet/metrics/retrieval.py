"""Exact retrieval metrics: Recall@K, R-precision and MAP@R, with self excluded by index and ties defined.

The order of a query's results is a stable descending sort of similarity: of equally similar gallery items the
one with the lower index comes first. Similarities are those of float64 arithmetic, whatever the precision of
the embeddings, and cosines closer than 2^-32 (2e-10) may count as equal: they are rounded to multiples of
it, so that rounding errors never decide. The order depends on neither blocks, threads nor devices.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from tuplet.errors import DataError, SettingsError, unusable
from tuplet.metrics.exact.counting import rank_by_counting
from tuplet.metrics.exact.labelled import labelled_search
from tuplet.metrics.exact.positives import ClassOrder
from tuplet.metrics.exact.similarity import similarity
from tuplet.metrics.exact.sorting import Ranks, nearest_items
from tuplet.metrics.inputs import Array, as_embeddings, as_labels
from tuplet.metrics.intervals import Interval, Unit, class_totals, holm, mean_intervals, sign_flips
from tuplet.metrics.names import RetrievalDistance, retrieval_names


@dataclass(frozen=True)
class MetricDifference:
    """One metric of two models, A and B.

    Attributes:
        metric: its name, such as "recall_at_1".
        a, b: its value for each, in [0, 1].
        difference: b - a.
        over_queries, over_classes: intervals of the difference; None where there is but one to draw.
        p_value: of `sign_flips`, in (0, 1].
        p_holm: the same, adjusted for all the metrics that are compared.
    """

    metric: str
    a: float
    b: float
    difference: float
    over_queries: Interval | None
    over_classes: Interval | None
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class ScoreComparison:
    """Every metric of two models on the same queries, and how the differences were judged.

    Attributes:
        differences: one per metric.
        num_queries, num_classes: compared.
        level: of the intervals.
        num_resamples: behind the intervals.
        num_flips: patterns of signs behind the p-values.
        exact: whether these are all the patterns there are.
        seed: of resamples and signs.
    """

    differences: tuple[MetricDifference, ...]
    num_queries: int
    num_classes: int
    level: float
    num_resamples: int
    num_flips: int
    exact: bool
    seed: int


@dataclass(frozen=True)
class QueryScores:
    """The scores of each query: what the metrics are means of. Queries without a positive are left out.

    >>> labels = np.arange(60) // 6
    >>> noise = np.random.default_rng(0).normal(size=(60, 10))
    >>> worse = retrieval_scores(np.eye(10)[labels] + 0.6 * noise, labels)
    >>> better = retrieval_scores(np.eye(10)[labels] + 0.3 * noise, labels)
    >>> interval = worse.interval("map_at_r")
    >>> interval.low < worse.of_metric("map_at_r").mean() < interval.high
    tensor(True)
    >>> found = worse.compare(better, ["map_at_r"]).differences[0]
    >>> found.over_classes.low > 0, found.p_value
    (True, 0.001953125)

    Attributes:
        queries: which queries these are, ascending indices into the embeddings, `[n]`.
        labels: class of each, `[n]`.
        num_before: gallery items before the nearest positive, `[n]`, >= 0; from `most_before` on, that
            many or more.
        r_precision: share of positives among the first R results, in [0, 1], `[n]`.
        average_precision: at R, in [0, 1], `[n]`.
        most_before: Recall@K is known for every K up to this.
    """

    queries: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    num_before: Int64[Tensor, " n"]
    r_precision: Float64[Tensor, " n"]
    average_precision: Float64[Tensor, " n"]
    most_before: int

    @classmethod
    def of_ranks(cls, ranks: Ranks, labels: Int64[Tensor, " n"], most_before: int) -> QueryScores:
        """Return the scores of queries whose ranks and labels are in any order."""
        order = ranks.queries.argsort()
        before = ranks.num_before.clamp(max=most_before)
        return cls(
            ranks.queries[order],
            labels[order],
            before[order],
            ranks.r_precision[order],
            ranks.average_precision[order],
            most_before,
        )

    def of_metric(self, name: str) -> Float64[Tensor, " n"]:
        """Return the value of a metric for each query, in [0, 1]; their mean is the metric.

        Args:
            name: "recall_at_K" with 1 <= K <= most_before, "r_precision" or "map_at_r".
        Raises:
            SettingsError: there is no such metric.
        """
        if name == "r_precision":
            return self.r_precision
        if name == "map_at_r":
            return self.average_precision
        kind, _, k = name.rpartition("_")
        if kind != "recall_at" or not k.isdecimal() or not 1 <= int(k) <= self.most_before:
            wanted = f"r_precision, map_at_r or recall_at_K with K in 1..{self.most_before}"
            raise SettingsError(
                f"got metric {name!r}; want {wanted}", subject="metric", given=name, wanted=wanted
            )
        return (self.num_before < int(k)).double()

    def interval(
        self,
        metric: str,
        *,
        over: Unit = "classes",
        level: float = 0.95,
        num_resamples: int = 2000,
        seed: int = 0,
    ) -> Interval | None:
        """Compute the bootstrap interval of one metric; settings are those of `mean_intervals`.

        An interval over "classes" covers the choice of test classes, one over "queries" only the choice of
        queries from these classes.

        Returns: None where there is but one class, or query, to draw.
        Raises:
            SettingsError: an unknown metric, or a setting out of range.
        """
        units = self.labels.cpu().numpy() if over == "classes" else None
        columns = score_columns(self, [metric])
        return mean_intervals(columns, units, level=level, num_resamples=num_resamples, seed=seed)[0]

    def compare(
        self,
        other: QueryScores,
        metrics: Sequence[str] | None = None,
        *,
        level: float = 0.95,
        num_resamples: int = 2000,
        num_flips: int = 10000,
        seed: int = 0,
    ) -> ScoreComparison:
        """Compare with another model on the same queries, by intervals and paired tests of other - self.

        Each bootstrap resample takes the same queries, or classes, for both models: it resamples the
        differences between their scores.

        Args:
            other: scores of the other model, B; these are A's.
            metrics: names that both know; None: Recall@1, 2, 4 and 8, R-precision and MAP@R.
            level: of the intervals, in (0, 1).
            num_resamples: behind the intervals, >= 100.
            num_flips: see `sign_flips`.
            seed: of resamples and signs, >= 0.
        Raises:
            DataError: other queries, or other classes of them.
            SettingsError: an unknown metric, or a setting out of range.
        """
        if not torch.equal(self.queries.cpu(), other.queries.cpu()):
            raise DataError(
                f"got scores of {len(self.queries)} and of {len(other.queries)} queries, not the same ones;"
                " want both models on the same images, with the same classes",
                subject="queries",
            )
        if not torch.equal(self.labels.cpu(), other.labels.cpu()):
            raise unusable("labels", "of the queries differ", "the same for both")
        if metrics is None:
            most = min(self.most_before, other.most_before)
            metrics = retrieval_names(k for k in (1, 2, 4, 8) if k <= most)
        first, second = score_columns(self, metrics), score_columns(other, metrics)
        gains, classes = second - first, self.labels.cpu().numpy()
        over_queries, over_classes = (
            mean_intervals(gains, units, level=level, num_resamples=num_resamples, seed=seed)
            for units in (None, classes)
        )
        totals, _ = class_totals(gains, classes)
        test = sign_flips(totals, num_flips=num_flips, seed=seed)
        means = (columns.mean(axis=0).tolist() for columns in (first, second, gains))
        judged = (over_queries, over_classes, test.p_values, holm(test.p_values))
        differences = tuple(MetricDifference(*row) for row in zip(metrics, *means, *judged, strict=True))
        sizes = (len(classes), len(totals))
        return ScoreComparison(differences, *sizes, level, num_resamples, test.num_flips, test.exact, seed)


def retrieval_metrics(
    embeddings: Float[Array, "N D"],
    labels: Int[Array, " N"],
    *,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    gallery: Float[Array, "M D"] | None = None,
    gallery_labels: Int[Array, " M"] | None = None,
    distance: RetrievalDistance = "cosine",
) -> dict[str, float]:
    """Compute Recall@K, R-precision and MAP@R, averaged over the queries, each in [0, 1].

    A positive of a query is a gallery item of its class, other than itself; R is their number. Recall@K is
    the share of queries with a positive among the first K results, R-precision the share of positives among
    the first R, MAP@R the sum over those positives of the precision at their rank, divided by R.

    Queries without a positive are left out of every mean. Ties are in the order of the gallery (see the
    module). A zero vector has cosine similarity 0 to everything. The time is about that of the matrix product
    of queries and gallery, or half of it where the queries search each other. Memory beyond the embeddings is
    some blocks of 16 MiB, and 40 bytes for each of up to 4 million positives.

    Args:
        embeddings: the queries, finite; tensors are worked on where they are.
        labels: class of each query, any integers.
        recall_at: the K of Recall@K, each >= 1; one beyond the size of the gallery is allowed.
        gallery: what is searched; None: the queries themselves, each one excluded from its own results.
        gallery_labels: class of each gallery item; given exactly where `gallery` is.
        distance: "cosine" or "euclidean".
    Returns: "recall_at_K" for each K in the order given, "r_precision", "map_at_r".
    Raises:
        DataError: empty, NaN or infinity (names the first row), lengths or widths that differ, or no query
            with a positive.
        SettingsError: K < 1, an unknown distance, or one of gallery and gallery_labels alone.
    References: Musgrave, Belongie and Lim, "A Metric Learning Reality Check", ECCV 2020.
    """
    ks = [operator.index(k) for k in recall_at]
    if wrong := [k for k in ks if k < 1]:
        message = f"recall_at holds {wrong[0]}; want integers >= 1, e.g. 1, 2, 4, 8"
        raise SettingsError(message, subject="recall_at", given=wrong[0])
    scores = retrieval_scores(
        embeddings,
        labels,
        most_before=max(ks, default=1),
        gallery=gallery,
        gallery_labels=gallery_labels,
        distance=distance,
    )
    return {name: scores.of_metric(name).mean().item() for name in retrieval_names(ks)}


def retrieval_scores(
    embeddings: Float[Array, "N D"],
    labels: Int[Array, " N"],
    *,
    most_before: int = 1000,
    gallery: Float[Array, "M D"] | None = None,
    gallery_labels: Int[Array, " M"] | None = None,
    distance: RetrievalDistance = "cosine",
) -> QueryScores:
    """Compute the scores of each query, whose means are the metrics of `retrieval_metrics`.

    Args:
        embeddings: the queries, finite.
        labels: class of each query, any integers.
        most_before: the largest K of Recall@K that will be needed, >= 1.
        gallery: items to search; None: the queries, each excluded from its own results.
        gallery_labels: class of each gallery item; given exactly where `gallery` is.
        distance: "cosine" or "euclidean".
    Returns: scores of the queries that have a positive.
    Raises:
        DataError: as for `retrieval_metrics`.
        SettingsError: as for `retrieval_metrics`.
    """
    search = labelled_search(embeddings, labels, gallery, gallery_labels, distance=distance)
    classes = ClassOrder(search.labels, search.gallery_labels)
    if not bool((classes.num_positives > 0).any()):
        count = len(search.labels)
        message = f"none of {count} queries has another item of its class to find; want at least one"
        raise DataError(message, subject="labels")
    ranks = rank_by_counting(search.compared, classes, most_before=most_before)
    return QueryScores.of_ranks(ranks, search.labels[ranks.queries], most_before)


def nearest_neighbours(
    embeddings: Float[Array, "N D"],
    k: int,
    *,
    gallery: Float[Array, "M D"] | None = None,
    distance: RetrievalDistance = "cosine",
) -> tuple[Int64[Tensor, "N k"], Float[Tensor, "N k"]]:
    """Find the k nearest gallery items of each query, nearest first, and how similar they are.

    Self and ties are treated as in `retrieval_metrics`.

    Args:
        embeddings: the queries, finite.
        k: results a query, in 1..M, or 1..N-1 where a query is excluded from its own results.
        gallery: what is searched; None: the queries themselves, each one excluded from its own results.
        distance: "cosine" or "euclidean".
    Returns: indices into the gallery, and similarities: the cosine, or minus the Euclidean distance; tensors,
        on the device of the embeddings. Rounding can take a cosine past 1 by a few units in the last place.
    Raises:
        DataError: as in `retrieval_metrics`.
        SettingsError: k out of range, or an unknown distance.
    """
    queries = as_embeddings(embeddings, name="embeddings")
    compared = similarity(queries, gallery, distance)
    most = len(compared.gallery) - compared.excludes_self
    if not 1 <= operator.index(k) <= most:
        message = f"k is {k}; want 1..{most}, the number of items that a query can find"
        raise SettingsError(message, subject="k", given=k, wanted=most)
    indices, exact = nearest_items(compared, k)
    return indices, compared.reported(exact).to(queries.dtype)


def score_intervals(
    scores: QueryScores,
    labels: Int[Array, " n"],
    metrics: Sequence[str],
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[Unit, Interval | None]]:
    """Compute each metric's interval over queries and over classes; settings are those of `mean_intervals`.

    Labels are the classes of the queries with scores, such as `scores.labels`; metrics are names that
    `scores.of_metric` knows.

    Returns: by metric and then by "queries" and "classes"; None where there is but one to draw.
    Raises:
        DataError: another number of labels than queries.
        SettingsError: an unknown metric, or a setting out of range.
    """
    classes = _query_classes(scores, labels).cpu().numpy()
    values = score_columns(scores, metrics)
    over_queries, over_classes = (
        mean_intervals(values, units, level=level, num_resamples=num_resamples, seed=seed)
        for units in (None, classes)
    )
    return {
        name: {"queries": over_queries[column], "classes": over_classes[column]}
        for column, name in enumerate(metrics)
    }


def compare_scores(
    a: QueryScores,
    b: QueryScores,
    labels: Int[Array, " n"],
    metrics: Sequence[str],
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    num_flips: int = 10000,
    seed: int = 0,
) -> ScoreComparison:
    """Compare two models by `QueryScores.compare`, with the classes of the queries given apart.

    Labels are those at `a.queries`; all other arguments and errors are as there.
    """
    classes = _query_classes(a, labels)
    return replace(a, labels=classes).compare(
        replace(b, labels=classes),
        metrics,
        level=level,
        num_resamples=num_resamples,
        num_flips=num_flips,
        seed=seed,
    )


def score_columns(scores: QueryScores, metrics: Sequence[str]) -> Float64[np.ndarray, "n M"]:
    """Return the value of each metric for each query, one column per metric, on the CPU."""
    columns = [scores.of_metric(name).cpu().numpy() for name in metrics]
    return np.stack(columns, axis=1) if columns else np.zeros((len(scores.queries), 0))


def _query_classes(scores: QueryScores, labels: Int[Array, " n"]) -> Int64[Tensor, " n"]:
    """Return the labels; raise an error unless there is one for each query with scores."""
    classes = as_labels(labels, name="labels")
    if len(classes) != len(scores.queries):
        problem = f"has {len(classes)} entries for {len(scores.queries)} queries with scores"
        raise unusable("labels", problem, "one each: all labels at scores.queries", fact=len(classes))
    return classes
