"""Rows of a table drawn at random, without looking at all of it where that can be helped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from jaxtyping import UInt64

from tuplet.search.filters import any_of

_FEW = 1000


def drawn_rows(
    table: Any, columns: Sequence[str], count: int, seed: int, labels: Collection[str] | None
) -> pyarrow.Table:
    """Some rows drawn at random without repetition, by id; fewer where there are fewer.

    Args:
        table: LanceDB's, of an index.
        columns: what is read of them; id is one.
        count: >= 1.
        seed: >= 0; the same rows come from the same version of the table.
        labels: draw among rows with these only; None: among all.
    """
    random = np.random.default_rng(seed)
    if labels is None:
        places = random.choice(rows := table.count_rows(), min(count, rows), replace=False)
        found = table.take_offsets(places.tolist())
    else:
        numbers = _numbers(table, labels)
        found = table.take_row_ids(random.choice(numbers, min(count, len(numbers)), replace=False).tolist())
    return found.select(list(columns)).to_arrow().sort_by("id")


def _numbers(table: Any, labels: Collection[str]) -> UInt64[np.ndarray, " n"]:
    """LanceDB's numbers of the rows with one of some labels."""
    search = table.search().select(["label"]).with_row_id(True)
    if len(labels) <= _FEW:  # quicker than to read all of them
        search = search.where(any_of("label", labels))
    rows = search.to_arrow()
    # Python would make an object of every row, and let no other thread in meanwhile.
    wanted = pyarrow.compute.is_in(rows["label"], pyarrow.array(list(labels), pyarrow.string()))
    numbers: UInt64[np.ndarray, " n"] = rows["_rowid"].filter(wanted).to_numpy()
    return numbers
