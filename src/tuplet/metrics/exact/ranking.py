"""How each query's positives rank, read off the sorted results: the definition, and what is sure to work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from tuplet.metrics.exact.positives import Classes
from tuplet.metrics.exact.similarity import Similarity

BLOCK_BYTES = 2**24
"""Size of one block of similarities; a handful of temporaries of about that size live at once."""


@dataclass(frozen=True)
class Ranks:
    """Where the positives of some queries are among the results.

    Attributes:
        queries: which ones, `[n]`.
        num_before: gallery items before the nearest positive, `[n]`.
        r_precision: share of positives among the first R, `[n]`.
        average_precision: at R, `[n]`.
    """

    queries: Int64[Tensor, " n"]
    num_before: Int64[Tensor, " n"]
    r_precision: Float64[Tensor, " n"]
    average_precision: Float64[Tensor, " n"]

    def of(self, which: Tensor) -> Ranks:
        """The ranks of some of the queries: a mask, or places."""
        return Ranks(*(getattr(self, one.name)[which] for one in fields(self)))


def join(parts: Sequence[Ranks]) -> Ranks:
    """Ranks of the queries of several parts, at least one."""
    return Ranks(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(Ranks)))


def rank_by_sorting(similarity: Similarity, classes: Classes, rows: Int64[Tensor, " n"]) -> Ranks:
    """The ranks of the positives of some queries, by a stable sort of all exact similarities.

    Args:
        similarity: of the queries to the gallery.
        classes: of both.
        rows: places in `classes.queries`, at least one, each with a positive.
    """
    # Queries of similar R share a block, since a block ranks as many results as its largest R.
    rows = rows[classes.num_positives[rows].argsort(stable=True)]
    parts = []
    for places in blocks(rows, len(classes.gallery)):
        queries, num_positives = classes.queries[places], classes.num_positives[places]
        table = exact_similarities(similarity, queries)
        # Self is among the positives, but at a similarity of -inf: behind every result that is looked at.
        positive = classes.query_labels[queries, None] == classes.gallery_labels
        relevant = positive.gather(1, first_results(table, int(num_positives.max())))
        precisions = _precisions_at_r(relevant, num_positives)
        parts.append(Ranks(queries, rank_of_nearest(table, positive), *precisions))
    return join(parts)


def blocks(rows: Int64[Tensor, " n"], gallery_size: int) -> Iterator[Int64[Tensor, " b"]]:
    """As many rows at a time as have `BLOCK_BYTES` of exact similarities, or one."""
    return iter(torch.split(rows, max(1, BLOCK_BYTES // (8 * gallery_size))))


def exact_similarities(similarity: Similarity, queries: Int64[Tensor, " b"]) -> Float64[Tensor, "b M"]:
    """Exact similarities of some queries to the whole gallery; -inf at an excluded self."""
    size = len(similarity.gallery)
    everything = torch.arange(size, device=queries.device)
    parts = torch.split(everything, max(1, BLOCK_BYTES // (8 * similarity.gallery.shape[1])))
    tables = [similarity.exact_tables(queries[None], part[None])[0] for part in parts]
    table = torch.cat(tables, dim=1)
    return table.scatter_(1, queries[:, None], -torch.inf) if similarity.excludes_self else table


def first_results(similarity: Float[Tensor, "b M"], k: int) -> Int64[Tensor, "b k"]:
    """The k most similar gallery items of each query in order; ties by gallery index.

    Args:
        similarity: no NaN.
        k: in 1..M.
    """
    # topk leaves open which of the tied items it takes, so only its k-th value is used.
    threshold = similarity.topk(k, dim=1).values[:, -1:]
    chosen = similarity >= threshold
    if int(chosen.sum()) > len(similarity) * k:
        above = similarity > threshold
        tied = chosen & ~above
        chosen = above | (tied & (tied.cumsum(1) <= k - above.sum(1, keepdim=True)))
    ascending = chosen.nonzero()[:, 1].view(len(similarity), k)
    order = similarity.gather(1, ascending).sort(dim=1, descending=True, stable=True).indices
    return ascending.gather(1, order)


def rank_of_nearest(similarity: Float[Tensor, "b M"], wanted: Bool[Tensor, "b M"]) -> Int64[Tensor, " b"]:
    """How many gallery items come before the first wanted one of each query.

    Args:
        similarity: no NaN; of tied items the one with the lower index comes first.
        wanted: at least one a row has a similarity above -inf.
    """
    # Of equal maxima, torch.max gives the first.
    nearest, column = similarity.masked_fill(~wanted, -torch.inf).max(dim=1, keepdim=True)
    before = torch.arange(similarity.shape[1], device=similarity.device) < column
    return (similarity > nearest).sum(1) + ((similarity == nearest) & before).sum(1)


def _precisions_at_r(
    relevant: Bool[Tensor, "b K"], num_positives: Int64[Tensor, " b"]
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """R-precision and average precision at R of each query.

    Args:
        relevant: whether each of the first K results is a positive, K >= R.
        num_positives: R of each query, >= 1.
    """
    position = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    relevant = relevant & (position <= num_positives[:, None])
    precision = relevant.cumsum(1).double() / position
    return relevant.sum(1) / num_positives.double(), (precision * relevant).sum(1) / num_positives
