"""Index folders of pictures: find the files, and read and embed those that are new or have changed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow
from jaxtyping import Float32

from tuplet.data.pixels import UnreadableImageError
from tuplet.errors import DataError, SearchIndexError, SettingsError
from tuplet.evaluation.sizes import choose_code
from tuplet.inference.pictures import IndexedModel, PictureEncoder, absolute
from tuplet.progress import track
from tuplet.search.approximate import APPROXIMATE_FROM, keep_approximate_index, misses_rows
from tuplet.search.embedding import Embedded, Entry, ReadingSettings, embed_entries
from tuplet.search.finding import FoundPicture, FoundPictures, LabelFolder, find_pictures
from tuplet.search.index import ImageIndex, picture_id, schema_of
from tuplet.search.shards import Shard
from tuplet.search.storage import (
    Uri,
    is_remote,
    lance_errors,
    locked,
    make_new_table,
    open_table,
    stored_text,
)
from tuplet.search.workers import Workers, embed_in_processes
from tuplet.search.writing import RowWriter, begin_rebuild, drop_rebuilds, finish_rebuild, is_scattered, tidy

CHOICE_PICTURES = 2000
"""Pictures that are embedded beforehand to choose how to keep vectors in few bytes."""

TURN_SECONDS = 2.0
"""How long each shard waits for the one before it to make an index in object storage."""


@dataclass(frozen=True)
class IndexingReport:
    """What indexing did.

    Attributes:
        added: pictures that are new.
        changed: pictures with other content; they were embedded again.
        touched: pictures with another time or label and the same content; they were not embedded.
        unchanged: pictures that were not even read.
        dropped: pictures that were in the index and are gone, or can no longer be read.
        kept: pictures that cannot be read now, or whose folders cannot, and stay as they were.
        others: pictures of other folders, which stay as they were.
        unreadable: files that are no pictures after all, and what cannot be read, "path: reason".
        notes: a line for each kind of file and folder that was left out.
        total: pictures in the index now.
        approximate: whether there is an approximate index.
    """

    added: int
    changed: int
    touched: int
    unchanged: int
    dropped: int
    kept: int
    others: int
    unreadable: tuple[str, ...]
    notes: tuple[str, ...]
    total: int
    approximate: bool


def index_pictures(
    uri: Uri,
    folders: Sequence[Path],
    embedder: PictureEncoder,
    *,
    label_folder: LabelFolder = "first",
    only: bool = False,
    rebuild: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    approximate_from: int = APPROXIMATE_FROM,
    num_bytes: int | None = None,
    workers: Workers | None = None,
    shard: Shard | None = None,
) -> IndexingReport:
    """Add the pictures below some folders to an index, and return what was done.

    It is written in commits of a thousand pictures, or every 20 s. If the process is killed, the last commit
    remains, and the next call continues from there. A file of the same size and time is not read; one with
    the same content is not embedded. A rebuild becomes visible in one step at its end, see `finish_rebuild`.

    Args:
        uri: the index; made where there is none.
        folders: at least one; pictures of other folders stay as they are.
        embedder: of the model that made the index.
        label_folder: see `find_pictures`.
        only: drop the pictures of other folders.
        rebuild: build the index again, perhaps with another model, or resume an interrupted rebuild. False
            also deletes what an interrupted rebuild has left.
        batch_size: pictures that are embedded at a time, >= 1.
        num_workers: threads that decode, >= 0; 0 and 1 are the same.
        approximate_from: number of pictures from which there is an approximate index, >= 1.
        num_bytes: the most that the vector of a picture takes, >= 1, see `choose_code`; for a new index, or
            with `rebuild`. None: float32, all dimensions.
        workers: number of processes that embed instead of this one; None: this one.
        shard: embed this share of the pictures only, and leave tidying and the approximate index to a last
            call without a shard. Other processes may embed the other shares at the same time, if the index is
            in object storage.

    Raises:
        DataError: no folder, or one without pictures.
        SearchIndexError: another model, an index that cannot be written or that another process writes, or a
            worker that was killed.
        SettingsError: a rebuild of a shard.
    """
    if rebuild and shard is not None:
        raise SettingsError(
            "--rebuild with --shard would replace the index by one share; want --workers, or a new --index",
            subject="--rebuild",
        )
    found = find_pictures(folders, label_folder=label_folder)
    with locked(uri):
        new = rebuild or open_table(uri) is None
        model = _model_in_bytes(embedder, found, num_bytes) if new else embedder.model
        index = begin_rebuild(uri, model) if rebuild else _open_or_create(uri, model, num_bytes, shard)
        dropped_rebuilds = not rebuild and shard is None and drop_rebuilds(uri)
        found = found if shard is None else found.only(shard.has_path)
        known, twice = _known(index, shard)
        gone, kept = _missing(known, found, None if only or rebuild else folders)
        rows = _Rows(known, twice, gone, kept)
        done, written = _update(
            index, found, rows, embedder, ReadingSettings(batch_size, num_workers), workers
        )
        if rebuild:
            index = finish_rebuild(index, model)
        if shard is None:
            if rebuild or dropped_rebuilds or written or misses_rows(index) or is_scattered(index):
                tidy(index)
            keep_approximate_index(index, approximate_from)
        return _report(index, found, rows, done)


@dataclass
class _Rows:
    """The rows that an index had before, and what becomes of them.

    Attributes:
        known: by id, without those that occur twice.
        twice: ids that occur twice, as after two writers.
        dropped: ids of pictures that are gone or can no longer be read.
        kept: ids of pictures that cannot be read now.
        relabelled: number of pictures with another label and the same size and time.
    """

    known: dict[str, Entry]
    twice: set[str]
    dropped: set[str]
    kept: set[str]
    relabelled: int = 0


def _update(
    index: ImageIndex,
    found: FoundPictures,
    rows: _Rows,
    embedder: PictureEncoder,
    reading: ReadingSettings,
    workers: Workers | None,
) -> tuple[Embedded, bool]:
    """Make an index hold the pictures that were found; return what was done and whether anything was written.

    What the files show when they are read is added to `rows`.
    """
    writer = RowWriter(index)
    writer.delete(rows.twice)
    work = _compare(found, rows.known, writer)
    rows.relabelled = writer.updated
    if workers is None or not work:
        done = embed_entries(work, embedder, writer, reading)
    else:
        writer.commit()  # the processes open the index anew
        done = embed_in_processes(index, work, workers, reading)
    rows.kept |= {picture_id(path) for path in done.kept} & rows.known.keys()
    rows.dropped |= ({picture_id(path) for path in done.problems} & rows.known.keys()) - rows.kept
    # Last: the pictures of a renamed folder can be searched as they were until they are embedded again.
    writer.delete(rows.dropped)
    return done, bool(writer.commits or done.num_embedded or done.num_updated)


def _report(index: ImageIndex, found: FoundPictures, rows: _Rows, done: Embedded) -> IndexingReport:
    """Count what was done."""
    num_pictures, touched = len(found.pictures) - len(done.problems), rows.relabelled + done.num_updated
    ids = set(map(picture_id, found.pictures))
    return IndexingReport(
        added=done.num_added,
        changed=done.num_embedded - done.num_added,
        touched=touched,
        unchanged=num_pictures - done.num_embedded - touched,
        dropped=len(rows.dropped),
        kept=len(rows.kept),
        others=len(rows.known.keys() - ids - rows.dropped - rows.kept),
        unreadable=(*found.broken, *(f"{path}: {reason}" for path, reason in done.problems.items())),
        notes=(*found.notes, *_elsewhere(rows.known, found, rows.dropped | rows.kept)),
        total=index.count(),
        approximate=index.is_approximate,
    )


def _model_in_bytes(embedder: PictureEncoder, found: FoundPictures, num_bytes: int | None) -> IndexedModel:
    """Return the model with the code that keeps its vectors in some bytes, chosen on some of the pictures."""
    if num_bytes is None or num_bytes >= 4 * embedder.model.dim:
        return embedder.model
    pictures = list(found.pictures.values())
    places = np.unique(np.linspace(0, len(pictures) - 1, min(len(pictures), CHOICE_PICTURES)).astype(int))
    labels, vectors = list[str | None](), list[Float32[np.ndarray, "1 D"]]()
    for place in track(places.tolist(), "choosing how to store"):
        with suppress(UnreadableImageError):
            vectors.append(embedder.embed_files([Path(pictures[place].path)]))
            labels.append(pictures[place].label)
    if len(labels) < 2:
        raise DataError("fewer than two pictures can be read; want two or more to choose by", subject="bytes")
    code = choose_code(np.concatenate(vectors), labels, num_bytes)
    return replace(embedder.model, code=code.to_json())


def _is_made(uri: Uri, shard: Shard | None) -> bool:
    """Return whether there is an index; in object storage a shard first waits for its turn to make one."""
    # There LanceDB tests whether there is a table, then writes one: of two processes that do so at once, the
    # later replaces the table of the earlier with its rows.
    turn = (shard.number - 1) * TURN_SECONDS if shard is not None and is_remote(uri) else 0.0
    end = time.monotonic() + turn
    while (table := open_table(uri)) is None and time.monotonic() < end:
        time.sleep(0.25)
    return table is not None


def _open_or_create(uri: Uri, model: IndexedModel, num_bytes: int | None, shard: Shard | None) -> ImageIndex:
    if not _is_made(uri, shard):
        # Another process may make it at this moment: whoever comes second takes the table of the first.
        make_new_table(uri, schema_of(model))
    index = ImageIndex(uri)
    small = index.model.small
    if num_bytes is not None and num_bytes < (4 * index.model.dim if small is None else small.num_bytes):
        raise SearchIndexError(
            f"{uri} exists with larger vectors than {num_bytes} bytes; want --rebuild with --bytes, or"
            " another --index",
            subject=uri,
            given=num_bytes,
        )
    difference = model.difference(index.model)
    if difference:
        raise SearchIndexError(
            f"{uri} was made with another model, {index.model.path}: the one given has {difference}; want the"
            " same model, another --index, or --rebuild to embed every picture again",
            subject=uri,
            given=difference,
        )
    return index


def _known(index: ImageIndex, shard: Shard | None) -> tuple[dict[str, Entry], set[str]]:
    """Return the rows of an index or of a share by id, and the ids that occur twice, as after two writers."""
    columns = ["id", "path", "label", "size", "modified", "content"]
    known: dict[str, Entry] = {}
    twice: set[str] = set()
    # A batch at a time: ten million rows as Arrow and as lists at once would take as much memory again.
    with lance_errors(f"cannot read the index {index.uri}", subject=index.uri):
        for batch in index.table.search().select(columns).to_batches():
            facts = [batch[column] for column in columns]
            facts[columns.index("modified")] = batch["modified"].cast(pyarrow.int64())
            for name, path, label, *numbers, content in zip(*(one.to_pylist() for one in facts), strict=True):
                if shard is not None and not shard.has(name):
                    continue
                if name in known:
                    twice.add(name)
                shared = None if label is None else sys.intern(label)  # many pictures have the same one
                known[name] = Entry(FoundPicture(path, shared, *numbers), content)
    for name in twice:
        del known[name]
    return known, twice


def _missing(
    known: dict[str, Entry], found: FoundPictures, folders: Sequence[Path] | None
) -> tuple[set[str], set[str]]:
    """Return the ids of pictures that are gone, and of those that only cannot be read now.

    Args:
        known: the index.
        found: the pictures in the folders.
        folders: pictures of others are neither; None: all are looked for.
    """
    ids = set(map(picture_id, found.pictures))
    below = tuple(f"{stored_text(absolute(folder)).rstrip(os.sep)}{os.sep}" for folder in folders or ())
    missing = {
        name: entry.picture.path
        for name, entry in known.items()
        if name not in ids and (folders is None or entry.picture.path.startswith(below))
    }
    if not found.unseen:
        return set(missing), set()
    unseen = {Path(stored_text(path)) for path in found.unseen}
    kept = {
        name for name, path in missing.items() if not unseen.isdisjoint((Path(path), *Path(path).parents))
    }
    return missing.keys() - kept, kept


def _elsewhere(known: dict[str, Entry], found: FoundPictures, looked_for: set[str]) -> list[str]:
    """Return a note of pictures of other folders that are no longer there: the folder may have moved."""
    ids = looked_for | set(map(picture_id, found.pictures))
    others = [entry.picture.path for name, entry in known.items() if name not in ids]
    gone = {folder for folder in {Path(path).parent for path in others} if _is_gone(folder)}
    paths = sorted(path for path in others if Path(path).parent in gone)
    if not paths:
        return []
    are = "picture of another folder is" if len(paths) == 1 else "pictures of other folders are"
    return [f"{len(paths):,} {are} no longer there, such as {paths[0]}; --only drops them"]


def _is_gone(folder: Path) -> bool:
    if "\\x" in str(folder):  # a name that is not UTF-8, as the index writes it
        return False
    try:
        return not folder.is_dir()
    except OSError:
        return False


def _compare(found: FoundPictures, known: dict[str, Entry], writer: RowWriter) -> list[Entry]:
    """Return the files that have to be read; write the other labels of those that need not be."""
    work = []
    for picture in found.pictures.values():
        entry = known.get(picture_id(picture.path))
        if entry is None:
            work.append(Entry(picture, ""))
        elif (entry.picture.size, entry.picture.modified) != (picture.size, picture.modified):
            work.append(Entry(picture, entry.content))
        elif entry.picture.label != picture.label:
            writer.update(picture.row)
    return work
