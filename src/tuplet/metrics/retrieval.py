"""Exact retrieval metrics: Recall@K, R-precision and MAP@R, with self excluded by index and ties defined.

The order of a query's results is a stable descending sort of similarity: of equally similar gallery items the
one with the lower index comes first. Items with identical rows are equally similar by construction, whatever
kernel multiplies the matrices; other items tie when their computed similarities are equal.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from tuplet.errors import InputError
from tuplet.metrics._inputs import Array, as_embeddings, as_labels
from tuplet.metrics._ranking import Distance, Search, first_results, rank_of_nearest


@dataclass(frozen=True)
class QueryScores:
    """How each query fared: what the metrics are means of. Queries without a positive are left out.

    Attributes:
        queries: which queries these are, ascending indices into the embeddings, `[n]`.
        num_before: gallery items before the nearest positive, `[n]`, >= 0; from `most_before` on, that
            many or more.
        r_precision: share of positives among the first R results, in [0, 1], `[n]`.
        average_precision: at R, in [0, 1], `[n]`.
        most_before: Recall@K is known for every K up to this.
    """

    queries: Int64[Tensor, " n"]
    num_before: Int64[Tensor, " n"]
    r_precision: Float64[Tensor, " n"]
    average_precision: Float64[Tensor, " n"]
    most_before: int

    def of_metric(self, name: str) -> Float64[Tensor, " n"]:
        """What each query adds to the mean of a metric, in [0, 1].

        Args:
            name: "recall_at_K" with 1 <= K <= most_before, "r_precision" or "map_at_r".

        Raises:
            InputError: (a ValueError) there is no such metric.
        """
        if name == "r_precision":
            return self.r_precision
        if name == "map_at_r":
            return self.average_precision
        kind, _, k = name.rpartition("_")
        if kind != "recall_at" or not k.isdecimal() or not 1 <= int(k) <= self.most_before:
            raise InputError(
                f"got metric {name!r}; want r_precision, map_at_r or recall_at_K with K in"
                f" 1..{self.most_before}"
            )
        return (self.num_before < int(k)).double()


def retrieval_metrics(
    embeddings: Float[Array, "N D"],
    labels: Int[Array, " N"],
    *,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    gallery: Float[Array, "M D"] | None = None,
    gallery_labels: Int[Array, " M"] | None = None,
    distance: Distance = "cosine",
) -> dict[str, float]:
    """Recall@K, R-precision and MAP@R, averaged over the queries, each in [0, 1].

    A positive of a query is a gallery item of its class, other than itself; R is their number. Recall@K is
    the share of queries with a positive among the first K results, R-precision the share of positives among
    the first R, MAP@R the sum over those positives of the precision at their rank, divided by R.

    Queries without a positive are left out of every mean (`num_queries` counts the others). Ties are in the
    order of the gallery (see the module). A zero vector has cosine similarity 0 to everything. Cosine is
    computed in the precision of the embeddings (float16 and bfloat16 in float32), Euclidean in float64.
    Beyond a few copies of the embeddings, memory is some blocks of 16 MiB, or of one query's M numbers.

    Args:
        embeddings: the queries, finite; tensors are worked on where they are.
        labels: class of each query, any integers.
        recall_at: the K of Recall@K, each >= 1; one beyond the size of the gallery is allowed.
        gallery: what is searched; None: the queries themselves, each one excluded from its own results.
        gallery_labels: class of each gallery item; given exactly where `gallery` is.
        distance: "cosine" or "euclidean".
    Returns: "recall_at_K" for each K in the order given, "r_precision", "map_at_r".
    Raises: InputError: empty, NaN or infinity (names the first row), lengths or widths that differ, K < 1,
        no query with a positive, an unknown distance.
    Source: Musgrave, Belongie and Lim, "A Metric Learning Reality Check", ECCV 2020.
    """
    ks = _checked_recall_at(recall_at)
    scores = retrieval_scores(
        embeddings,
        labels,
        most_before=max(ks, default=1),
        gallery=gallery,
        gallery_labels=gallery_labels,
        distance=distance,
    )
    names = [*(f"recall_at_{k}" for k in ks), "r_precision", "map_at_r"]
    return {name: scores.of_metric(name).mean().item() for name in names}


def retrieval_scores(
    embeddings: Float[Array, "N D"],
    labels: Int[Array, " N"],
    *,
    most_before: int = 1000,
    gallery: Float[Array, "M D"] | None = None,
    gallery_labels: Int[Array, " M"] | None = None,
    distance: Distance = "cosine",
) -> QueryScores:
    """What `retrieval_metrics` takes the means of, query by query.

    Args:
        embeddings: as there.
        labels: as there.
        most_before: the largest K of Recall@K that will be asked for, >= 1.
        gallery: as there.
        gallery_labels: as there.
        distance: as there.
    Raises: InputError: as there.
    """
    queries = as_embeddings(embeddings, name="embeddings")
    wanted = as_labels(labels, name="labels", length=len(queries), device=queries.device)
    if (gallery is None) != (gallery_labels is None):
        raise InputError("got one of gallery and gallery_labels; wanted both or neither")
    search = Search(queries, gallery, distance)
    found = None
    if gallery_labels is not None:
        found = as_labels(
            gallery_labels, name="gallery_labels", length=search.gallery_size, device=wanted.device
        )
    rows, rank, r_precision, average_precision = _of_each_query(search, wanted, found)
    ascending = rows.argsort()
    return QueryScores(
        rows[ascending],
        rank[ascending].clamp(max=most_before),
        r_precision[ascending],
        average_precision[ascending],
        most_before,
    )


def nearest_neighbours(
    embeddings: Float[Array, "N D"],
    k: int,
    *,
    gallery: Float[Array, "M D"] | None = None,
    distance: Distance = "cosine",
) -> tuple[Int64[Tensor, "N k"], Float[Tensor, "N k"]]:
    """The k nearest gallery items of each query, nearest first, and how similar they are.

    Self and ties are treated as in `retrieval_metrics`.

    Args:
        embeddings: the queries, finite.
        k: results a query, in 1..M, or 1..N-1 where a query is excluded from its own results.
        gallery: what is searched; None: the queries themselves, each one excluded from its own results.
        distance: "cosine" or "euclidean".
    Returns: indices into the gallery, and similarities: the cosine, or minus the Euclidean distance; tensors,
        on the device of the embeddings. Rounding can take a cosine past 1 by a few units in the last place.
    Raises: InputError: as in `retrieval_metrics`, or k out of range.
    """
    queries = as_embeddings(embeddings, name="embeddings")
    search = Search(queries, gallery, distance)
    most = search.gallery_size - search.excludes_self
    if not 1 <= operator.index(k) <= most:
        raise InputError(f"k is {k}; wanted 1..{most}, the number of items that a query can find")
    indices, similarities = [], []
    for rows, similarity in search.blocks(torch.arange(len(queries), device=queries.device)):
        nearest = first_results(similarity, k)
        indices.append(nearest)
        similarities.append(search.reported(similarity.gather(1, nearest), rows))
    return torch.cat(indices), torch.cat(similarities).to(queries.dtype)


def num_queries(labels: Int[Array, " N"], gallery_labels: Int[Array, " M"] | None = None) -> int:
    """How many queries have a positive to find, and so count in the means of `retrieval_metrics`.

    Args:
        labels: class of each query, any integers.
        gallery_labels: class of each gallery item; None: the gallery is the queries, and self is no positive.
    Raises: InputError: labels that are not one-dimensional integers.
    """
    query = as_labels(labels, name="labels")
    found = None
    if gallery_labels is not None:
        found = as_labels(gallery_labels, name="gallery_labels", device=query.device)
    return int((_count_positives(query, found) > 0).sum())


def _checked_recall_at(recall_at: Sequence[int]) -> list[int]:
    ks = [operator.index(k) for k in recall_at]
    if wrong := [k for k in ks if k < 1]:
        raise InputError(f"recall_at holds {wrong[0]}; wanted integers >= 1, e.g. 1, 2, 4, 8")
    return ks


def _of_each_query(
    search: Search, query_labels: Int64[Tensor, " N"], gallery_labels: Int64[Tensor, " M"] | None
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The n queries that have a positive: items before the nearest, R-precision, average precision at R."""
    num_positives = _count_positives(query_labels, gallery_labels)
    found_labels = query_labels if gallery_labels is None else gallery_labels
    # Queries of similar R share a block, since a block ranks as many results as its largest R.
    order = num_positives.argsort(stable=True)
    order = order[num_positives[order] > 0]
    if len(order) == 0:
        raise InputError(
            f"none of {len(query_labels)} queries has another item of its class to find; wanted at least one"
        )
    ranks, r_precisions, average_precisions = [], [], []
    for rows, similarity in search.blocks(order):
        # Self is among the positives, but at a similarity of -inf: behind every result that is looked at.
        positive = query_labels[rows, None] == found_labels
        ranks.append(rank_of_nearest(similarity, positive))
        relevant = positive.gather(1, first_results(similarity, int(num_positives[rows].max())))
        r_precision, average_precision = _precisions_at_r(relevant, num_positives[rows])
        r_precisions.append(r_precision)
        average_precisions.append(average_precision)
    return order, torch.cat(ranks), torch.cat(r_precisions), torch.cat(average_precisions)


def _count_positives(
    query_labels: Int64[Tensor, " N"], gallery_labels: Int64[Tensor, " M"] | None
) -> Int64[Tensor, " N"]:
    """Gallery items of each query's class; None: the gallery is the queries, and self does not count."""
    num_known = len(query_labels)
    known = query_labels if gallery_labels is None else torch.cat([query_labels, gallery_labels])
    _, classes = torch.unique(known, return_inverse=True)
    found = classes if gallery_labels is None else classes[num_known:]
    counts = torch.bincount(found, minlength=int(classes.max()) + 1 if len(classes) else 0)
    return counts[classes[:num_known]] - int(gallery_labels is None)


def _precisions_at_r(
    relevant: Bool[Tensor, "b K"], num_positives: Int64[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """R-precision and average precision at R of each query, in float64.

    Args:
        relevant: whether each of the first K results is a positive, K >= R.
        num_positives: R of each query, >= 1.
    """
    position = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    relevant = relevant & (position <= num_positives[:, None])
    precision = relevant.cumsum(1).double() / position
    return relevant.sum(1) / num_positives.double(), (precision * relevant).sum(1) / num_positives
