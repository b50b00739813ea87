"""Measure embeddings that are stored in few bytes: Recall@1 and MAP@R against the bytes per picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, Float32, Int64

from tuplet.errors import SettingsError
from tuplet.metrics.intervals import Interval
from tuplet.metrics.ranked import RankedScores, nearest_rows, num_relevant, ranked_scores
from tuplet.metrics.small_vectors import CodeKind, Directions, SmallCode, widest
from tuplet.metrics.unit_length import at_unit_length

_NUM_NEIGHBOURS = 10
SizeKind: TypeAlias = Literal["float32", "int8", "bits", "leading"]
"""A `CodeKind`; or leading: the embeddings cut off, for which Matryoshka training makes them."""


@dataclass(frozen=True)
class SizePoint:
    """One way to store vectors, and the quality of searches in them.

    Attributes:
        kind: float32, int8 or bits, of the leading directions; or leading, the first coordinates themselves
            as float32.
        width: directions or coordinates that are kept.
        num_bytes: per picture.
        recall_at_1: in [0, 1].
        map_at_r: in [0, 1].
        recall_interval: of Recall@1 by classes; None with one class.
        map_interval: likewise of MAP@R.
    """

    kind: SizeKind
    width: int
    num_bytes: int
    recall_at_1: float
    map_at_r: float
    recall_interval: Interval | None
    map_interval: Interval | None


def size_curve(
    embeddings: Float[np.ndarray, "N D"],
    labels: Int64[np.ndarray, " N"],
    *,
    widths: Sequence[int] | None = None,
) -> list[SizePoint]:
    """Measure embeddings that search each other, stored in every kind and some widths.

    The directions are computed from these embeddings without labels, as an index does for its pictures. A
    query stays float32. Every stored vector is ranked, int8 by its bytes and bits by its bits; an index ranks
    only the candidates that the bits select.

    Args:
        embeddings: any length but zero.
        labels: at least one class with two items.
        widths: multiples of 8, each in 8..D; None: D halved again and again.

    Returns: by kind, then from few bytes to many.

    Raises:
        DataError: no class has two items.
        SettingsError: a width out of range, or fewer than 8 dimensions.
    """
    unit = at_unit_length(embeddings.astype(np.float32))
    directions, points = Directions(unit), list[SizePoint]()
    if unit.shape[1] < 8:
        raise SettingsError(
            f"the embeddings have {unit.shape[1]} dimensions; want 8 or more", subject="sizes"
        )
    for kind in get_args(SizeKind):
        for width in sorted(set(_halved(unit.shape[1]) if widths is None else widths)):
            code = leading_code(unit.shape[1], width) if kind == "leading" else directions.code(kind, width)
            scores = stored_scores(unit, labels, code)
            recall, mean = scores.intervals()
            size = code.num_bytes
            points.append(SizePoint(kind, width, size, scores.recall_at_1, scores.map_at_r, recall, mean))
    return points


def leading_code(dim: int, width: int) -> SmallCode:
    """Return the code that cuts embeddings off after their first coordinates."""
    return SmallCode("float32", np.eye(dim, width, dtype=np.float32))


def stored_scores(
    unit: Float32[np.ndarray, "N D"], labels: Int64[np.ndarray, " N"], code: SmallCode
) -> RankedScores:
    """Compute Recall@1 and MAP@R of unit vectors that search each other as a code stores them."""
    queries = code.project(unit)
    count = min(max(int(num_relevant(labels).max()), 1), len(unit) - 1)
    return ranked_scores(nearest_rows(queries, code.stored(queries), count), labels)


def choose_code(
    embeddings: Float[np.ndarray, "N D"], labels: Sequence[str | None], num_bytes: int
) -> SmallCode:
    """Return the code that finds the most among those that fit into `num_bytes`.

    The widest code of each kind is compared: by MAP@R if two embeddings share a label, otherwise by the share
    of the ten nearest neighbours of the full float32 vectors that it finds.

    Args:
        embeddings: of some pictures, at least 2.
        labels: of each; None: without one.
        num_bytes: the most a picture may take.

    Raises:
        SettingsError: no code is that small.
    """
    unit = at_unit_length(embeddings.astype(np.float32))
    dim, directions = unit.shape[1], Directions(unit)
    codes = [
        directions.code(kind, width)
        for kind in get_args(CodeKind)
        if (width := widest(kind, num_bytes, dim)) > 0
    ]
    if not codes:
        raise SettingsError(
            f"no vector of {dim} dimensions fits into {num_bytes} bytes; want 1 or more, and 8 dimensions",
            subject="num_bytes",
            given=num_bytes,
        )
    labelled = np.array([row for row, label in enumerate(labels) if label is not None], dtype=np.int64)
    names = [label for label in labels if label is not None]
    if len(set(names)) < len(names):
        numbers = np.unique(names, return_inverse=True)[1].astype(np.int64)
        return max(codes, key=lambda code: stored_scores(unit[labelled], numbers, code).map_at_r)
    count = min(_NUM_NEIGHBOURS, len(unit) - 1)
    wanted = nearest_rows(unit, unit, count)

    def share(code: SmallCode) -> float:
        queries = code.project(unit)
        neighbours = nearest_rows(queries, code.stored(queries), count)
        return float((neighbours[:, :, None] == wanted[:, None, :]).any(axis=2).mean())

    return max(codes, key=share)


def _halved(dim: int) -> list[int]:
    """Return D rounded down to a multiple of 8, its half and so on, down to 8."""
    widths = [dim // 8 * 8]
    while widths[-1] > 8:
        widths.append(max(8, widths[-1] // 16 * 8))
    return [width for width in widths if width > 0]
