"""Check that two sets hold the same items (to compare models) or different ones (queries and a gallery)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Float64

from tuplet.errors import DataError
from tuplet.evaluation.embedding_files import LabelledEmbeddings


def require_same_items(a: LabelledEmbeddings, b: LabelledEmbeddings) -> tuple[str, ...]:
    """Raise an error unless both have the same items, in order and class.

    Two items are the same if their names are equal, apart from the folder that all names of a side share.
    Two classes are the same if their names are equal or, for numbers, if they contain the same items.

    Returns: notes on what could not be checked, one line each.
    Raises:
        DataError: names the first item that differs (`given` is its row), or another number of them.
    """
    counts, unchecked, row = f"A has {len(a.labels):,} items and B {len(b.labels):,}", [], None
    if a.names is not None and b.names is not None:
        names = zip(_below_common_folder(a.names), _below_common_folder(b.names), strict=False)
        row = _first(left != right for left, right in names)
        if row is not None:
            raise _differs(f"{counts}; item {row} is {a.names[row]} in A and {b.names[row]} in B", row)
    else:
        unchecked.append(
            "the items have no names on both sides: that they are the same, in the same order, is taken on"
            " trust; only their classes are compared"
        )
    if len(a.labels) != len(b.labels):
        raise _differs(counts, None)
    if a.class_names is not None and b.class_names is not None:
        pairs = [(a.class_names[i], b.class_names[j]) for i, j in zip(a.labels, b.labels, strict=True)]
        row, unlike = _first(left != right for left, right in pairs), ""
    else:
        pairs = list(zip(a.labels.tolist(), b.labels.tolist(), strict=True))
        forth, back = dict(reversed(pairs)), {right: left for left, right in reversed(pairs)}
        row = _first(forth[left] != right or back[right] != left for left, right in pairs)
        unlike = ", unlike items before it"
    if row is not None:
        title = f"item {row}" if a.names is None else f"item {row}, {a.names[row]},"
        left, right = pairs[row]
        raise _differs(f"{title} is of class {left} in A and {right} in B{unlike}", row)
    return tuple(unchecked)


def require_other_items(queries: LabelledEmbeddings, gallery: LabelledEmbeddings) -> tuple[str, ...]:
    """Raise an error if the gallery consists of the queries: each query would find itself first.

    Only directions are compared, as one file may hold the embeddings as they are and another scaled to unit
    length or in half precision. If all rows of the gallery have directions of queries, in any order, it is
    the same file, a copy or another format: an error. If only some queries have the direction of a gallery
    item, they may be that item or another one with the same embedding: a note.

    Returns: notes, one line each.
    Raises:
        DataError: the gallery holds the embeddings of the queries and nothing else.
    """
    a, b = queries.embeddings, gallery.embeddings
    if a.shape[1] != b.shape[1]:
        return ()
    lengths_a, lengths_b = _lengths(a), _lengths(b)
    # Rows are compared in full only where their first numbers occur on both sides.
    first_a, first_b = _directions(a[:, :1], lengths_a)[:, 0], _directions(b[:, :1], lengths_b)[:, 0]
    in_a, in_b = np.isin(first_a, first_b), np.isin(first_b, first_a)
    of_a = [row.tobytes() for row in _directions(a[in_a], lengths_a[in_a])]
    of_b = [row.tobytes() for row in _directions(b[in_b], lengths_b[in_b])]
    shared = set(of_a) & set(of_b)
    # With a collapsed network all embeddings are equal, so equal rows do not mean equal items.
    is_all = len(shared) > 1 and len(of_b) == len(b) and shared.issuperset(of_b)
    if is_all or _pairs(a, b, lengths_a, lengths_b):
        raise DataError(
            "the gallery holds the embeddings of the queries, so that each query finds itself first; want"
            " other items, or no gallery: then each query searches the other queries",
            subject="gallery",
            given=len(b),
        )
    num_shared = sum(row in shared for row in of_a)
    if not num_shared:
        return ()
    have = "1 query has" if num_shared == 1 else f"{num_shared:,} queries have"
    return (
        f"{have} the very embedding of an item in the gallery: where it is the same image, it finds itself",
    )


def _lengths(rows: Float[np.ndarray, "n D"]) -> Float64[np.ndarray, " n"]:
    lengths: Float64[np.ndarray, " n"] = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    lengths[lengths == 0] = 1.0
    return lengths


def _directions(
    rows: Float[np.ndarray, "n D"], lengths: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, "n D"]:
    # Round to what float32 resolves. Adding 0.0 turns -0.0 into 0.0: rows are compared by their bytes.
    unit: Float64[np.ndarray, "n D"] = np.round(rows.astype(np.float64) / lengths[:, None], 6) + 0.0
    return unit


def _pairs(
    a: Float[np.ndarray, "n D"],
    b: Float[np.ndarray, "m D"],
    lengths_a: Float64[np.ndarray, " n"],
    lengths_b: Float64[np.ndarray, " m"],
) -> bool:
    """Return whether each row of `a` is the same row of `b` up to half precision, and not each row of `b`."""
    if len(a) != len(b):
        return False

    def are_alike(other: Float[np.ndarray, "m D"], lengths: Float64[np.ndarray, " m"]) -> bool:
        cosines = np.einsum("ij,ij->i", a, other, dtype=np.float64) / (lengths_a * lengths)
        return bool((cosines > 1 - 1e-6).all())

    return are_alike(b, lengths_b) and not are_alike(np.roll(b, 1, axis=0), np.roll(lengths_b, 1))


def _differs(what: str, row: int | None) -> DataError:
    wanted = "both models on the same images, in the same order, with the same classes"
    return DataError(f"{what}; want {wanted}", subject="items", given=row)


def _first(conditions: Iterable[bool]) -> int | None:
    return next((row for row, holds in enumerate(conditions) if holds), None)


def _below_common_folder(names: Sequence[str]) -> list[str]:
    try:
        common = os.path.commonpath([os.path.dirname(name) for name in names])  # noqa: PTH120
    except ValueError:  # some absolute, some not
        return list(names)
    start = len(common) + (common not in ("", os.sep))
    return [name[start:] for name in names]
