"""Measure the gain and the cost of re-ranking: Recall@1 and MAP@R before and after, on the same queries."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from tuplet.evaluation.embedding_files import LabelledEmbeddings, with_shared_classes
from tuplet.metrics.intervals import Interval, mean_intervals
from tuplet.metrics.ranked import nearest_in, nearest_rows, num_relevant, ranked_scores
from tuplet.metrics.reranking import AlphaQueryExpansion, Reranking, reranked, unit_vectors

RerankName: TypeAlias = Literal["alpha-qe", "k-reciprocal"]
"""The methods, as the commands call them."""


@dataclass(frozen=True)
class Gain:
    """One metric before and after.

    Attributes:
        before, after: in [0, 1].
        gain: after - before.
        interval: of the gain, over classes; each resample takes the same queries from both rankings. None
            with one class.
    """

    before: float
    after: float
    gain: float
    interval: Interval | None


@dataclass(frozen=True)
class RerankReport:
    """The gain and the cost of re-ranking.

    Attributes:
        method: its name.
        settings: of the method.
        recall_at_1, map_at_r: the gains.
        num_queries: queries with an item of their class to find.
        plain_seconds: time to rank by cosine.
        seconds: time to rank by cosine and re-rank.
    """

    method: RerankName
    settings: Reranking
    recall_at_1: Gain
    map_at_r: Gain
    num_queries: int
    plain_seconds: float
    seconds: float

    def tree(self) -> dict[str, Any]:
        """Return the report as plain data, for JSON."""
        return asdict(self)


def measure_reranking(
    queries: LabelledEmbeddings, settings: Reranking, gallery: LabelledEmbeddings | None = None
) -> RerankReport:
    """Measure Recall@1, MAP@R and the time of a search with and without re-ranking.

    Args:
        queries: at least one class with two items, or with one in the gallery.
        settings: of the method.
        gallery: items that each query searches on its own; None: the other queries.
    Raises:
        DataError: as `measure` does.
    """
    if gallery is not None:
        queries, gallery = with_shared_classes(queries, gallery)
    labels, searched = queries.labels, None if gallery is None else gallery.labels
    most = len(labels) - 1 if gallery is None else len(gallery.labels)
    count = min(max(int(num_relevant(labels, searched).max()), 1), max(most, 1))
    begin = time.perf_counter()
    asked = unit_vectors(queries.embeddings, "embeddings")
    if gallery is None:
        plain = nearest_rows(asked, asked, count)
    else:
        plain = nearest_in(asked, unit_vectors(gallery.embeddings, "gallery"), count)
    middle = time.perf_counter()
    ranking = reranked(
        queries.embeddings, settings, count, gallery=None if gallery is None else gallery.embeddings
    )
    seconds = time.perf_counter() - middle
    before, after = (ranked_scores(order, labels, searched) for order in (plain, ranking))
    differences = after.values - before.values
    intervals = mean_intervals(differences, before.labels)
    means = zip(*(values.mean(axis=0) for values in (before.values, after.values, differences)), strict=True)
    recall, mean = (
        Gain(float(first), float(second), float(gain), interval)
        for (first, second, gain), interval in zip(means, intervals, strict=True)
    )
    name: RerankName = "alpha-qe" if isinstance(settings, AlphaQueryExpansion) else "k-reciprocal"
    return RerankReport(name, settings, recall, mean, len(before.queries), middle - begin, seconds)
