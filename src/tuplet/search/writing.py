"""Rows into an index, in commits that are whole or not there."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, final

import numpy as np
import pyarrow
from jaxtyping import Float32

from tuplet.search.index import ImageIndex
from tuplet.search.pictures import FoundPicture, ReadPicture, picture_id, readable
from tuplet.search.storage import any_of, errors_in_a_line, is_remote

COMMIT_ROWS = 1024
COMMIT_SECONDS = 20.0
KEPT_VERSIONS = timedelta(days=1)
"""Versions that were replaced so long ago are removed when an index is written: nobody reads them now."""
_DELETED_AT_ONCE = 1000


@final
class RowWriter:
    """Rows on their way into an index: they wait until there are `COMMIT_ROWS`, or for `COMMIT_SECONDS`.

    Args:
        index: held by this process.

    Attributes:
        commits: how many there were.
        updated: rows whose size, time or label were replaced, those that wait included.
    """

    def __init__(self, index: ImageIndex) -> None:
        self._index = index
        self._rows: list[dict[str, Any]] = []
        self._updates: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self.commits = self.updated = 0

    def add(self, found: FoundPicture, read: ReadPicture, vector: Float32[np.ndarray, " D"]) -> None:
        """Nothing; the picture's row is replaced or added with the next commit."""
        row = {**_of_file(found), "path": readable(found.path), "content": read.content}
        self._rows.append({**row, "vector": vector, "thumbnail": read.thumbnail})
        self._commit_if_due()

    def update(self, found: FoundPicture) -> None:
        """Nothing; size, time and label of a row are replaced with the next commit."""
        self._updates.append(_of_file(found))
        self.updated += 1
        self._commit_if_due()

    def _commit_if_due(self) -> None:
        waiting = len(self._rows) + len(self._updates)
        if waiting >= COMMIT_ROWS or time.monotonic() - self._began > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Nothing; what waited is then in the index."""
        with _writing(self._index):
            self._merge()
        self.commits += bool(self._rows) + bool(self._updates)
        self._rows, self._updates, self._began = [], [], time.monotonic()

    def delete(self, ids: Collection[str]) -> None:
        """Nothing; there are no rows with these ids then."""
        names = sorted(ids)
        with _writing(self._index):
            for start in range(0, len(names), _DELETED_AT_ONCE):
                self._index.table.delete(any_of("id", names[start : start + _DELETED_AT_ONCE]))
                self.commits += 1

    def _merge(self) -> None:
        schema, table = self._index.table.schema, self._index.table
        if self._rows:
            rows = pyarrow.Table.from_pylist(self._rows, schema=schema)
            table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        if self._updates:
            columns = [schema.field(name) for name in self._updates[0]]
            rows = pyarrow.Table.from_pylist(self._updates, schema=pyarrow.schema(columns))
            table.merge_insert("id").when_matched_update_all().execute(rows)


def tidy(index: ImageIndex) -> None:
    """Nothing; what many commits left in pieces is put together, and versions that nobody reads are removed.

    Args:
        index: held by this process.
    """
    with _writing(index):
        # In a folder nobody else writes: what no version names was left by a process that was killed.
        index.table.optimize(
            cleanup_older_than=_age_of_current(index), delete_unverified=not is_remote(index.uri)
        )


def _age_of_current(index: ImageIndex) -> timedelta:
    """The age of the version that was the current one `KEPT_VERSIONS` ago, and a second."""
    now = datetime.now()
    ages = (now - one["timestamp"] for one in index.table.list_versions())
    return min((age for age in ages if age > KEPT_VERSIONS), default=KEPT_VERSIONS) + timedelta(seconds=1)


def _writing(index: ImageIndex) -> AbstractContextManager[None]:
    wanted = "want room there, and leave to write; the same command then goes on from what it holds"
    return errors_in_a_line(f"cannot write the index {index.uri}", wanted)


def _of_file(found: FoundPicture) -> dict[str, Any]:
    return {
        "id": picture_id(found.path),
        "label": found.label,
        "size": found.size,
        "modified": found.modified,
    }
