"""Retrieval metrics of embeddings that are spread over ranks; the ranks exchange them block by block.

Sizes: n embeddings on this rank, N on all, m in a block that one rank shows to all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch import distributed as dist

from tuplet.errors import DataError
from tuplet.metrics.exact.counting import SAMPLE, Counts, block_sizes, ranges
from tuplet.metrics.exact.positives import Positives, positives_of_pairs, rows_and_positions
from tuplet.metrics.exact.similarity import (
    Frame,
    Similarity,
    exponent_of,
    similarity,
    squares_of_rows,
    sum_of_rows,
)
from tuplet.metrics.exact.sorting import Ranks
from tuplet.metrics.inputs import as_embeddings, as_labels
from tuplet.metrics.names import RetrievalDistance
from tuplet.metrics.retrieval import QueryScores

SHOWN_ROWS = 4096
"""Embeddings that one rank shows to the others at a time."""
EXACT_ROWS = 256
"""Hard queries that are compared with a block at a time."""


def spread_retrieval_scores(
    embeddings: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    indices: Int[Tensor, " n"],
    *,
    gallery: tuple[Tensor, Tensor, Tensor] | None = None,
    most_before: int = 1000,
    distance: RetrievalDistance = "cosine",
    group: dist.ProcessGroup | None = None,
) -> QueryScores:
    """Compute `retrieval_scores` of the embeddings of all ranks together, to the last digit, on each rank.

    Call it on every rank. A rank holds its own embeddings, one block of another rank's, and three numbers for
    each query. Items that a sampler repeated to give all ranks the same number count once.

    Args:
        embeddings: of this rank, finite, maybe none; on a device that the group's backend can send from.
        labels: class of each, any integers.
        indices: the item that each is of, the same wherever it is repeated; ties are in their order.
        gallery: this rank's part of what is searched: embeddings `[m, D]`, labels and indices as above; None:
            the queries themselves, each one excluded from its own results.
        most_before: as for `retrieval_scores`.
        distance: as there.
        group: of torch.distributed; None is all of its processes.
    Returns: `queries` are indices of items.
    Raises:
        DataError: as `retrieval_scores` does, on every rank.
    """
    own = searched = _own_items(embeddings, labels, indices, group)
    if gallery is not None:
        searched = _own_items(*gallery, group, name="gallery", like=own.embeddings)
    frame = _frame(own, searched, group) if distance == "euclidean" else None

    def compared(block: _Items) -> Similarity:
        return similarity(own.embeddings, block.embeddings, distance, frame)

    shown = partial(_shown, searched, group)
    positives = _find_positives(own, shown(), compared, excludes_self=gallery is None)
    # The bound depends on the queries and the frame only, so any gallery gives the right one.
    anything = own.embeddings.new_zeros(1, own.embeddings.shape[1])
    bound = similarity(own.embeddings, anything, distance, frame).bound
    counts = Counts(positives, bound, most_before=most_before)
    _count(own, shown(), compared, counts)
    num_hard = torch.tensor(len(counts.hard()), device=own.labels.device)
    # Every rank has to take part in the broadcasts of blocks, also one without a hard query.
    if int(_reduced(num_hard, dist.ReduceOp.MAX, group)) > 0:
        _count_hard(own, shown(), compared, counts)
    has_positive = positives.count > 0
    own_ranks = counts.ranks(own.indices).of(has_positive)
    ranks = Ranks(*(_gathered(getattr(own_ranks, field.name), group) for field in fields(Ranks)))
    if len(ranks.queries) == 0:
        raise DataError("no query has another item of its class to find; want at least one", subject="labels")
    return QueryScores.of_ranks(ranks, _gathered(own.labels[has_positive], group), most_before)


@dataclass(frozen=True)
class _Items:
    """Some items, by ascending label, and those of one label by ascending index."""

    embeddings: Float[Tensor, "n D"]
    labels: Int64[Tensor, " n"]
    indices: Int64[Tensor, " n"]


def _own_items(
    embeddings: Tensor,
    labels: Tensor,
    indices: Tensor,
    group: dist.ProcessGroup | None,
    *,
    name: str = "embeddings",
    like: Tensor | None = None,
) -> _Items:
    """Return this rank's items, without those that it or a lower rank has already.

    Unusable items of one rank raise an error on all ranks: if one rank alone raised, the others would wait
    for it in the next collective operation.
    """
    message = ""
    try:
        embeddings = as_embeddings(embeddings, name=name, may_be_empty=True)
        labels = as_labels(labels, name="labels", length=len(embeddings), device=embeddings.device)
        indices = as_labels(indices, name="indices", length=len(embeddings), device=embeddings.device)
        if like is not None and embeddings.shape[1] != like.shape[1]:
            raise DataError(
                f"{name} is {embeddings.shape[1]} wide and the queries {like.shape[1]}; want the same width"
            )
        embeddings = embeddings if like is None else embeddings.to(like)
    except DataError as error:
        message = str(error)
    shapes: list[tuple[str, str]] = [("", "")] * dist.get_world_size(group)
    shape = f"{embeddings.dtype} of width {embeddings.shape[-1]}"
    dist.all_gather_object(shapes, (message, shape), group=group)
    for rank, (text, other) in enumerate(shapes):
        if text or other != shapes[0][1]:
            wrong = text or f"{name} are {other}, and those of rank 0 {shapes[0][1]}; want the same"
            raise DataError(f"on rank {rank}, {wrong}", subject=name, given=rank)
    sizes = _sizes(len(indices), indices, group)
    if sum(sizes) == 0:
        raise DataError(f"{name} are empty on every rank; want at least one", subject=name)
    start = sum(sizes[: dist.get_rank(group)])
    first = _first_of_each(_gathered(indices, group))[start : start + len(indices)]
    mine = first.nonzero()[:, 0]
    mine = mine[indices[mine].argsort()]
    mine = mine[labels[mine].argsort(stable=True)]
    return _Items(embeddings[mine], labels[mine], indices[mine])


def _first_of_each(values: Int64[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Mark the entries that are the first of their value."""
    ordered, places = values.sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return torch.zeros_like(first).index_copy_(0, places, first)


def _shown(own: _Items, group: dist.ProcessGroup | None) -> Iterator[_Items]:
    """Yield the items of all ranks, block by block, the same on every rank."""
    for rank, size in enumerate(_sizes(len(own.labels), own.labels, group)):
        for rows in ranges(0, size, SHOWN_ROWS):
            if rank == dist.get_rank(group):
                tensors = own.embeddings[rows].contiguous(), own.labels[rows], own.indices[rows]
            else:
                count = rows.stop - rows.start
                labels = own.labels.new_empty(count)
                tensors = own.embeddings.new_empty(count, own.embeddings.shape[1]), labels, labels.clone()
            for tensor in tensors:
                dist.broadcast(tensor, group=group, group_src=rank)
            yield _Items(*tensors)


def _frame(own: _Items, searched: _Items, group: dist.ProcessGroup | None) -> Frame:
    zero = own.embeddings.new_zeros(())
    largest = [part.embeddings.abs().max() if len(part.labels) > 0 else zero for part in (own, searched)]
    exponent = exponent_of(_reduced(torch.stack(largest).max(), dist.ReduceOp.MAX, group))
    total = _reduced(sum_of_rows(searched.embeddings, exponent), dist.ReduceOp.SUM, group)
    origin = total / sum(_sizes(len(searched.labels), own.labels, group))
    squares = squares_of_rows(searched.embeddings, exponent, origin)
    farthest = squares.max() if len(squares) > 0 else origin.new_zeros(())
    return Frame(exponent, origin, _reduced(farthest, dist.ReduceOp.MAX, group).sqrt())


def _find_positives(
    own: _Items, shown: Iterator[_Items], compared: Callable[[_Items], Similarity], *, excludes_self: bool
) -> Positives:
    parts = []
    for block in shown:
        first = torch.searchsorted(block.labels, own.labels)
        num_alike = torch.searchsorted(block.labels, own.labels, right=True) - first
        rows, number = rows_and_positions(num_alike)
        columns = first[rows] + number - 1
        if excludes_self:
            others = own.indices[rows] != block.indices[columns]
            rows, columns = rows[others], columns[others]
        parts.append((rows, compared(block).exact_pairs(rows, columns), block.indices[columns]))
    rows, exact, items = (torch.cat(part) for part in zip(*parts, strict=True))
    return positives_of_pairs(len(own.labels), rows, exact, items)


def _count(
    own: _Items, shown: Iterator[_Items], compared: Callable[[_Items], Similarity], counts: Counts
) -> None:
    device = own.labels.device
    strip_rows, block_rows, block_columns = block_sizes(device)
    sampled = False
    for block in shown:
        of_block = compared(block)
        exact = of_block.exact_pairs
        for strip in ranges(0, len(own.labels), strip_rows):
            vectors = of_block.query_rows(torch.arange(strip.start, strip.stop, device=device))
            for columns in ranges(0, len(block.labels), block_columns):
                places = torch.arange(columns.start, columns.stop, device=device)
                others = of_block.gallery_rows(places)
                for part in ranges(0, len(vectors), block_rows):
                    rows = slice(strip.start + part.start, strip.start + part.stop)
                    products = of_block.products(vectors[part], others)
                    products.masked_fill_(own.labels[rows, None] == block.labels[columns], -torch.inf)
                    if not sampled and columns.start == 0:
                        counts.give_up(products[:, :: max(1, len(others) // SAMPLE)], rows)
                    counts.count(products, rows, block.indices[columns], places, exact)
        counts.settle(exact)
        sampled = True


def _count_hard(
    own: _Items, shown: Iterator[_Items], compared: Callable[[_Items], Similarity], counts: Counts
) -> None:
    """Count the hard queries again, with exact similarities."""
    hard = counts.hard()
    counts.begin_again(hard)
    for block in shown:
        of_block = compared(block)
        everything = torch.arange(len(block.labels), device=hard.device)
        for rows in torch.split(hard, EXACT_ROWS):
            table = of_block.exact_tables(rows[None], everything[None])[0]
            row, column = (own.labels[rows, None] != block.labels).nonzero(as_tuple=True)
            counts.count_exactly(rows[row], block.indices[column], table[row, column])


def _reduced(value: Tensor, how: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None) -> Tensor:
    total = value.clone()
    dist.all_reduce(total, how, group=group)
    return total


def _sizes(size: int, like: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """Return the number that each rank gives, on the device of `like`."""
    sizes = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=like.device)
    dist.all_gather_into_tensor(sizes, torch.tensor([size], device=like.device), group=group)
    listed: list[int] = sizes.tolist()
    return listed


def _gathered(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the values of all ranks on every rank; each may have another number of them."""
    sizes = _sizes(len(values), values, group)
    padded = values.new_zeros(max(sizes))
    padded[: len(values)] = values
    everyone = values.new_empty(len(sizes) * max(sizes))
    dist.all_gather_into_tensor(everyone, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(everyone.chunk(len(sizes)), sizes, strict=True)])
