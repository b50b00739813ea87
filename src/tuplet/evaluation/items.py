"""Which items two sets share: all of them to compare models, none to search a gallery."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from tuplet.errors import DataError
from tuplet.evaluation.embedding_files import LabelledEmbeddings


def require_same_items(a: LabelledEmbeddings, b: LabelledEmbeddings) -> tuple[str, ...]:
    """Raise an error unless both have the same items, in order and class.

    Items are the same where their names are, below the folder that all names of their side share. Classes
    are the same where their names are, or, where they are numbers, where they put the same items together.

    Returns: what could not be checked, one line each.
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
