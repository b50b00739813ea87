"""K-reciprocal codes, which describe an item by its mutual nearest neighbours, and distances between codes.

All lists start with the item itself. Sizes: N items, k1 neighbours, D wide; a code has dozens of entries.
Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

Codes: TypeAlias = Any
"""A scipy.sparse.csr_array [N, N] whose rows sum to one; SciPy is imported where it is needed."""

BLOCK_VALUES = 1 << 22
"""Numbers of one temporary array; a handful of them live at once, about 200 MB."""
_NONE = -1


def reciprocal_codes(unit: Float32[np.ndarray, "N D"], nearest: Int64[np.ndarray, "N k1"], k2: int) -> Codes:
    """Compute the code of each item: weights of its expanded k-reciprocal set, larger for nearer items.

    Args:
        unit: items, of unit length.
        nearest: neighbours of each, nearest first, without itself.
        k2: nearest items, itself included, whose codes are averaged (local query expansion), >= 1.
    """
    from scipy.sparse import csr_array

    size = len(nearest)
    lists = np.concatenate([np.arange(size)[:, None], nearest], axis=1)
    half = nearest.shape[1] // 2 + 1
    mutual, mutual_half = _mutual(lists), _mutual(lists[:, :half])
    parts = [
        _expanded_sets(mutual, mutual_half, np.arange(at, min(at + step, size)))
        for step in [max(1, BLOCK_VALUES // (lists.shape[1] ** 2 * half))]
        for at in range(0, size, step)
    ]
    rows, columns = (np.concatenate(side) for side in zip(*parts, strict=True))
    # exp(-d), with d = 1 - cosine, half the squared distance; then rows sum to one (the paper's Eq. 7).
    weights = np.exp(_pair_cosines(unit, rows, columns) - 1.0)
    weights /= np.bincount(rows, weights, minlength=size)[rows]
    codes = csr_array((weights, (rows, columns)), shape=(size, size))
    taken = lists[:, :k2]
    places = np.arange(0, taken.size + 1, taken.shape[1])
    shares = np.full(taken.size, 1.0 / taken.shape[1])
    averaged: Codes = csr_array((shares, taken.ravel(), places), shape=(size, size)) @ codes
    return averaged


def jaccard_blocks(
    codes: Codes, rows: Int64[np.ndarray, " n"]
) -> Iterator[tuple[Int64[np.ndarray, " b"], Float64[np.ndarray, "b N"]]]:
    """Yield some rows at a time, and their Jaccard distances to all items, in [0, 1].

    The distance of codes a and b is 1 - sum min(a, b) / sum max(a, b). As both sum to one, the maxima sum to
    2 - sum min(a, b), and only items that share an entry must be looked at.
    """
    size = codes.shape[0]
    by_column = codes.tocsc()
    lengths = np.diff(by_column.indptr).astype(np.int64)
    # The cost of a row: the entries of every column in which it has an entry, plus one number per item.
    reached = np.append(0, np.cumsum(lengths[codes.indices]))[codes.indptr]
    costs = np.maximum(np.diff(reached), size)[rows]
    numbers = np.cumsum(costs) // BLOCK_VALUES
    for block in np.split(rows, np.flatnonzero(np.diff(numbers)) + 1):
        entries = codes[block].tocoo()
        counts = lengths[entries.col]
        starts = by_column.indptr[entries.col] - (np.cumsum(counts) - counts)
        at = np.repeat(starts, counts) + np.arange(counts.sum())
        smaller = np.minimum(np.repeat(entries.data, counts), by_column.data[at])
        places = np.repeat(entries.row.astype(np.int64) * size, counts) + by_column.indices[at]
        shared = np.bincount(places, smaller, minlength=len(block) * size).reshape(len(block), size)
        yield block, 1.0 - shared / (2.0 - shared)


def _mutual(lists: Int64[np.ndarray, "N k"]) -> Int64[np.ndarray, "N k"]:
    """Return the items of each list whose own lists contain the list's owner; `_NONE` for the others."""
    step = max(1, BLOCK_VALUES // lists.shape[1] ** 2)
    kept = np.full_like(lists, _NONE)
    for at in range(0, len(lists), step):
        own = lists[at : at + step]
        mutual = (lists[own] == np.arange(at, at + len(own))[:, None, None]).any(axis=2)
        kept[at : at + step][mutual] = own[mutual]
    return kept


def _expanded_sets(
    mutual: Int64[np.ndarray, "N k"], mutual_half: Int64[np.ndarray, "N h"], rows: Int64[np.ndarray, " b"]
) -> tuple[Int64[np.ndarray, " e"], Int64[np.ndarray, " e"]]:
    """Return the pairs (item, member) of expanded k-reciprocal sets, each once.

    A member brings its own reciprocal set, of half the neighbours, if the item's set holds at least two
    thirds of it (the paper's Eq. 3, whose sign >= differs from the > of its code).
    """
    members = mutual[rows]
    real = members != _NONE
    brought = mutual_half[members]
    exists = (brought != _NONE) & real[:, :, None]
    shared = (brought[:, :, :, None] == members[:, None, None, :]).any(axis=3) & exists
    accepted: Bool[np.ndarray, "b k"] = real & (3 * shared.sum(axis=2) >= 2 * exists.sum(axis=2))
    exists &= accepted[:, :, None]
    owners = np.broadcast_to(rows[:, None], members.shape)[real]
    more = np.broadcast_to(rows[:, None, None], brought.shape)[exists]
    size = len(mutual)
    pairs = np.unique(np.concatenate([owners * size + members[real], more * size + brought[exists]]))
    first, second = np.divmod(pairs, size)
    return first, second


def _pair_cosines(
    unit: Float32[np.ndarray, "N D"], rows: Int64[np.ndarray, " e"], columns: Int64[np.ndarray, " e"]
) -> Float64[np.ndarray, " e"]:
    step = max(1, BLOCK_VALUES // unit.shape[1])
    parts = [
        np.einsum("ed,ed->e", unit[rows[at : at + step]], unit[columns[at : at + step]])
        for at in range(0, len(rows), step)
    ]
    return np.concatenate(parts).astype(np.float64)
