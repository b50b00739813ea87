"""Write an index: rows in atomic commits, and a rebuild that replaces all rows in one step."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, final

import pyarrow

from tuplet.inference.pictures import IndexedModel
from tuplet.search.index import ImageIndex, is_complete, schema_of
from tuplet.search.storage import (
    REBUILD,
    TABLE,
    Uri,
    any_of,
    drop_table,
    is_damaged,
    is_remote,
    lance_errors,
    make_table,
    open_table,
    rebuild_names,
)

COMMIT_ROWS = 1024
COMMIT_SECONDS = 20.0
KEPT_VERSIONS = timedelta(days=1)
"""Versions that were replaced longer ago are removed when an index is written: no search reads them still."""
_DELETED_AT_ONCE = 1000
_COPIED_AT_ONCE = 1024
_NAME_DIGITS = 16


@final
class RowWriter:
    """Collects rows of an index, and commits them every `COMMIT_ROWS` rows or `COMMIT_SECONDS`.

    Args:
        index: locked by this process.

    Attributes:
        commits: number of commits so far.
        updated: number of rows of which some columns were replaced, including those not yet committed.
    """

    def __init__(self, index: ImageIndex) -> None:
        self._index = index
        self._rows: list[dict[str, Any]] = []
        self._updates: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self.commits = self.updated = 0

    @property
    def model(self) -> IndexedModel:
        """Return the model of the index, with how it keeps vectors."""
        return self._index.model

    def add(self, row: dict[str, Any]) -> None:
        """Replace or add a picture's row with the next commit."""
        self._rows.append(row)
        self._commit_if_due()

    def update(self, row: dict[str, Any]) -> None:
        """Replace some columns of a row, the same ones in every call, with the next commit."""
        self._updates.append(row)
        self.updated += 1
        self._commit_if_due()

    def _commit_if_due(self) -> None:
        waiting = len(self._rows) + len(self._updates)
        if waiting >= COMMIT_ROWS or time.monotonic() - self._began > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write the collected rows."""
        schema, table = self._index.table.schema, self._index.table
        with _writing(self._index):
            if self._rows:
                rows = pyarrow.Table.from_pylist(self._rows, schema=schema)
                table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
            if self._updates:
                columns = pyarrow.schema([schema.field(name) for name in self._updates[0]])
                rows = pyarrow.Table.from_pylist(self._updates, schema=columns)
                table.merge_insert("id").when_matched_update_all().execute(rows)
        self.commits += bool(self._rows) + bool(self._updates)
        self._rows, self._updates, self._began = [], [], time.monotonic()

    def delete(self, ids: Collection[str]) -> None:
        """Delete the rows with these ids."""
        names = sorted(ids)
        with _writing(self._index):
            for start in range(0, len(names), _DELETED_AT_ONCE):
                self._index.table.delete(any_of("id", names[start : start + _DELETED_AT_ONCE]))
                self.commits += 1


def is_scattered(index: ImageIndex) -> bool:
    """Return whether rows lie in many small files, as after processes that each wrote a share."""
    if index.is_approximate:  # rows inside and outside of the approximate index are never merged
        return False
    with lance_errors(f"cannot read the index {index.uri}", subject=index.uri):
        return int(index.table.stats()["fragment_stats"]["num_small_fragments"]) > 1


def tidy(index: ImageIndex) -> None:
    """Compact the files of many commits, and remove versions that nobody reads; the index is locked."""
    with _writing(index):
        # The lock keeps other writers out of a folder, so files that belong to no version were left by a
        # killed process. Object storage has no lock.
        index.table.optimize(
            cleanup_older_than=_age_of_current(index), delete_unverified=not is_remote(index.uri)
        )


def _age_of_current(index: ImageIndex) -> timedelta:
    """Return the age of the version that was current `KEPT_VERSIONS` ago, and a second."""
    now = datetime.now()
    ages = (now - version["timestamp"] for version in index.table.list_versions())
    return min((age for age in ages if age > KEPT_VERSIONS), default=KEPT_VERSIONS) + timedelta(seconds=1)


def _writing(index: ImageIndex) -> AbstractContextManager[None]:
    wanted = "want free space and permission to write; the same command then goes on from what it holds"
    return lance_errors(f"cannot write the index {index.uri}", wanted, subject=index.uri)


def begin_rebuild(uri: Uri, model: IndexedModel) -> ImageIndex:
    """Resume a killed rebuild with the same model, or create an empty index that searches do not see.

    The index is locked by this process; the model is that of the vectors to come.
    """
    name = _name(model)
    drop_rebuilds(uri, but=name)
    damaged = is_damaged(uri, name)
    table = None if damaged else open_table(uri, name)
    if table is not None and is_complete(table.schema):
        return ImageIndex(uri, name)
    if damaged or table is not None:  # of another version of tuplet, or half dropped
        drop_table(uri, name)
    return ImageIndex.create(uri, model, name)


def finish_rebuild(rebuilt: ImageIndex, model: IndexedModel) -> ImageIndex:
    """Replace the rows of the index by those of a rebuild, and drop the rebuild.

    The rows are copied into one new version of the index, a batch at a time. A search sees the old rows until
    that version is complete, and then all of the new ones, wherever the process is killed. A damaged index,
    which cannot be searched or written, is dropped first.

    Args:
        rebuilt: from `begin_rebuild`, filled; it stays where the index cannot be written.
        model: of its vectors, with the path where it lies now.
    """
    schema = schema_of(model)
    batches = rebuilt.table.search().select(schema.names).to_batches(_COPIED_AT_ONCE)
    if is_damaged(rebuilt.uri):
        drop_table(rebuilt.uri, TABLE)
    make_table(rebuilt.uri, pyarrow.RecordBatchReader.from_batches(schema, batches))
    drop_table(rebuilt.uri, rebuilt.name)
    return ImageIndex(rebuilt.uri)


def drop_rebuilds(uri: Uri, *, but: str = "") -> bool:
    """Drop the tables of killed rebuilds, except the table `but`; return whether there were any.

    Object storage has no lock: there, a rebuild that was written within the last day may still be running, so
    its table is kept.
    """
    names = [
        name for name in rebuild_names(uri) if name != but and not (is_remote(uri) and _is_young(uri, name))
    ]
    for name in names:
        drop_table(uri, name)
    return bool(names)


def _is_young(uri: Uri, name: str) -> bool:
    table = open_table(uri, name)
    if table is None:
        return False
    return any(datetime.now() - version["timestamp"] < KEPT_VERSIONS for version in table.list_versions())


def _name(model: IndexedModel) -> str:
    """Return the name of a rebuild's table, a hash of the model, so that vectors of two models never mix."""
    description = replace(model, path="").to_json().encode()
    return f"{REBUILD}{hashlib.sha256(description).hexdigest()[:_NAME_DIGITS]}"
