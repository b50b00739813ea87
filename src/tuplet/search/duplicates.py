"""Pictures that are in an index more than once: exact copies, and others that look nearly the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from tuplet.errors import SettingsError
from tuplet.progress import track
from tuplet.search.index import ImageIndex, IndexedPicture

THRESHOLD = 0.95
"""Cosine from which on two pictures count as near-duplicates; docs/search.md says how it was chosen."""
_BLOCK_ROWS, _BLOCK_PRODUCTS = 1024, 2**25


@dataclass(frozen=True)
class Duplicate:
    """A picture of a group, its cosine to the group's first, and whether another file has the same bytes."""

    picture: IndexedPicture
    cosine: float
    exact: bool


@dataclass(frozen=True)
class DuplicateGroup:
    """Two or more pictures sorted by path, each similar to another of the group; exact: all are copies."""

    pictures: tuple[Duplicate, ...]
    exact: bool


def find_duplicates(
    index: ImageIndex,
    *,
    threshold: float = THRESHOLD,
    where: str | None = None,
    device: torch.device | str = "cpu",
) -> list[DuplicateGroup]:
    """Find groups of near-duplicates and exact copies, the largest first.

    Every pair is compared, a block at a time: the time grows with the square of the number of pictures, the
    memory linearly, however many are similar. Two pictures of a group may be less similar than the threshold
    if others connect them.

    Args:
        index: of any size.
        threshold: cosine from which on two pictures belong together, in (0, 1].
        where: an SQL condition; only pictures that meet it are compared.
        device: where the products are computed.

    Raises:
        InputError: a threshold out of range, or a condition that cannot be used.
    """
    if not 0 < threshold <= 1:
        raise SettingsError(
            f"threshold is {threshold}; want a cosine in (0, 1], such as {THRESHOLD}",
            subject="threshold",
            given=threshold,
        )
    batches = list(index.vectors(where=where))
    pictures = [picture for batch in batches for picture in batch.pictures]
    if not pictures:
        return []
    vectors = np.concatenate([batch.vectors for batch in batches])
    by_path = sorted(range(len(pictures)), key=lambda row: pictures[row].path)
    pictures, vectors = [pictures[row] for row in by_path], vectors[by_path]
    contents = np.unique([picture.content for picture in pictures], return_inverse=True)[1]
    components = similar_groups(torch.from_numpy(vectors).to(device), contents, threshold)
    groups = [_group([pictures[row] for row in rows], vectors[rows], contents[rows]) for rows in components]
    return sorted(groups, key=lambda group: (-len(group.pictures), group.pictures[0].picture.path))


def similar_groups(
    vectors: Float32[Tensor, "N D"], contents: Int64[np.ndarray, " N"], threshold: float
) -> list[Int64[np.ndarray, " n"]]:
    """Return the connected components of two or more rows, joined by cosine or by equal content.

    Args:
        vectors: of unit length.
        contents: number of each row's content.
        threshold: cosine from which on two rows are joined.

    Returns: ascending rows of each component.
    """
    # Compare one row per content: a thousand exact copies would have half a million pairs.
    _, first, of_content = np.unique(contents, return_index=True, return_inverse=True)
    single = vectors[torch.from_numpy(first).to(vectors.device)]
    component = np.arange(len(first))
    # Shorter blocks for more rows, so that the memory for products stays the same.
    size = max(1, min(_BLOCK_ROWS, _BLOCK_PRODUCTS // max(len(first), 1)))
    for start in track(range(0, len(first), size), "comparing"):
        # Rounding leaves the product of equal unit vectors a little below 1.
        similar = single[start : start + size] @ single[start:].T >= threshold - 1e-6
        component = _joined(component, similar, start)
    of_row = component[of_content]
    order = np.argsort(of_row, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(of_row[order])) + 1)
    return [part for part in parts if part.size > 1]


def _joined(
    component: Int64[np.ndarray, " N"], similar: Bool[Tensor, "B M"], start: int
) -> Int64[np.ndarray, " N"]:
    """Join the components of the `B` rows from `start` on with those of the `M` from there on."""
    while True:
        of = torch.from_numpy(component[start:]).to(similar.device)
        apart = (similar & (of[: len(similar), None] != of)).view(torch.uint8)
        if not apart.any():
            return component
        # There may be as many pairs as products. One pair of each row and column joins every component that
        # has any pair with another, so at most half as many components remain: a few rounds are enough.
        linked, column = apart.max(dim=1)
        reached, row = apart.max(dim=0)
        pairs = torch.cat([_pairs(linked, column), _pairs(reached, row)], dim=1).cpu().numpy()
        a, b = component[pairs + start]
        graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=2 * component.shape)
        together = connected_components(graph, directed=False)[1].astype(np.int64)
        component = together[component]


def _pairs(linked: UInt8[Tensor, " n"], other: Int64[Tensor, " n"]) -> Int64[Tensor, "2 m"]:
    places = linked.nonzero()[:, 0]
    return torch.stack([places, other[places]])


def _group(
    pictures: Sequence[IndexedPicture],
    vectors: Float32[np.ndarray, "n D"],
    contents: Int64[np.ndarray, " n"],
) -> DuplicateGroup:
    cosines = np.clip(vectors @ vectors[0], -1.0, 1.0)
    _, of_content, counts = np.unique(contents, return_inverse=True, return_counts=True)
    members = [
        Duplicate(picture, float(cosine), bool(copies > 1))
        for picture, cosine, copies in zip(pictures, cosines, counts[of_content], strict=True)
    ]
    return DuplicateGroup(tuple(members), exact=len(counts) == 1)
