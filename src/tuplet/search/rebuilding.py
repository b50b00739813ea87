"""An index made anew where nobody sees it, until one step puts it in the place of the old one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime

import pyarrow

from tuplet.inference.encoder import IndexedModel
from tuplet.search.index import ImageIndex, is_complete, schema_of
from tuplet.search.storage import REBUILD, Uri, drop_table, is_remote, make_table, open_table, rebuild_names
from tuplet.search.writing import KEPT_VERSIONS

_COPIED_AT_ONCE = 1024
_NAME_DIGITS = 16


def begin_rebuild(uri: Uri, model: IndexedModel) -> ImageIndex:
    """What a killed rebuild with the same model left, or nothing yet: an index that nobody else sees.

    Args:
        uri: held by this process.
        model: of the vectors that are to come.

    Raises:
        InputError: it cannot be read or written.
    """
    name = _name(model)
    drop_rebuilds(uri, but=name)
    table = open_table(uri, name)
    if table is not None and is_complete(table.schema):
        return ImageIndex(uri, name)
    if table is not None:  # by another version of tuplet, or on its way out
        drop_table(uri, name)
    return ImageIndex.create(uri, model, name)


def finish_rebuild(rebuilt: ImageIndex, model: IndexedModel) -> ImageIndex:
    """The index with the rows of a rebuild in place of what it held, which is dropped then.

    The rows are copied into one new version of the index, a batch at a time. Whoever searches it sees all of
    what it held until that is whole, and then all of the rebuild, wherever a process is killed.

    Args:
        rebuilt: what `begin_rebuild` gave, filled.
        model: of its vectors, where it lies now.

    Raises:
        InputError: the index cannot be written; what was rebuilt is still there.
    """
    schema = schema_of(model)
    batches = rebuilt.table.search().select(schema.names).to_batches(_COPIED_AT_ONCE)
    make_table(rebuilt.uri, pyarrow.RecordBatchReader.from_batches(schema, batches))
    drop_table(rebuilt.uri, rebuilt.name)
    return ImageIndex(rebuilt.uri)


def drop_rebuilds(uri: Uri, *, but: str = "") -> bool:
    """Whether there was anything left of killed rebuilds; there is not any more.

    In object storage, where nobody holds an index, a rebuild that was written within the last day may still
    be going on, and stays.

    Args:
        uri: held by this process.
        but: name of a table that stays.
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
    return any(datetime.now() - one["timestamp"] < KEPT_VERSIONS for one in table.list_versions())


def _name(model: IndexedModel) -> str:
    """The name of the table of a rebuild: another one for every model, so that vectors of two never meet."""
    seen = replace(model, path="").to_json().encode()
    return f"{REBUILD}{hashlib.sha256(seen).hexdigest()[:_NAME_DIGITS]}"
