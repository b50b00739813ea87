"""Folders of pictures into an index: only what is new or has changed is embedded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pyarrow
import torch

from tuplet.errors import InputError
from tuplet.inference.encoder import PictureEmbedder, absolute
from tuplet.progress import track
from tuplet.search.approximate import APPROXIMATE_FROM, keep_approximate_index, misses_rows
from tuplet.search.index import ImageIndex
from tuplet.search.pictures import (
    FoundPicture,
    FoundPictures,
    LabelFolder,
    PictureFiles,
    ReadPicture,
    find_pictures,
    picture_id,
    readable,
)
from tuplet.search.rebuilding import begin_rebuild, drop_rebuilds, finish_rebuild
from tuplet.search.storage import Uri, errors_in_a_line, locked, open_table
from tuplet.search.writing import RowWriter, tidy


@dataclass(frozen=True)
class IndexingReport:
    """What indexing did.

    Attributes:
        added: pictures that are new.
        changed: pictures whose content is another; they were embedded again.
        touched: pictures with another time or label and the same content; they were not embedded.
        unchanged: pictures that were not even read.
        dropped: pictures that were in the index and are gone, or can no longer be read.
        kept: pictures that cannot be looked at, nor the folders that they lie in, left as they were.
        others: pictures of other folders, left as they were.
        unreadable: files that are no pictures after all, and what cannot be looked at, "path: reason".
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
    total: int
    approximate: bool


@dataclass(frozen=True)
class _Known:
    """What the index says of one picture: what it takes to see whether it changed."""

    path: str
    label: str | None
    size: int
    modified: int
    content: str

    def is_as(self, found: FoundPicture) -> bool:
        return (self.size, self.modified) == (found.size, found.modified)


@dataclass(frozen=True)
class _Work:
    """A file that has to be read, and the hash that it is known by, or an empty text."""

    found: FoundPicture
    content: str


def index_pictures(
    uri: Uri,
    folders: Sequence[Path],
    embedder: PictureEmbedder,
    *,
    label_folder: LabelFolder = "first",
    only: bool = False,
    rebuild: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    approximate_from: int = APPROXIMATE_FROM,
) -> IndexingReport:
    """What was done to make an index hold the pictures below some folders.

    It is written in commits of a thousand pictures, or every 20 s. A process that is killed leaves the last
    commit; the next goes on from there. A file of the same size and time is not read; one with the same
    content is not embedded. A rebuild is seen when it is whole, see `finish_rebuild`.

    Args:
        uri: the index; made where there is none.
        folders: at least one; pictures of other folders stay as they are.
        embedder: of the model that made the index.
        label_folder: see `find_pictures`.
        only: drop the pictures of other folders.
        rebuild: begin anew, perhaps with another model, or go on with such a rebuild that was killed; without
            it, what a killed one left is dropped.
        batch_size: pictures that are embedded at a time, >= 1.
        num_workers: threads that decode, >= 0; 0 and 1 are the same.
        approximate_from: pictures from which on there is an approximate index, >= 1.

    Raises:
        InputError: no folder, one without pictures, another model, or an index that cannot be written or is
            being written by another process.
    """
    found = find_pictures(folders, label_folder=label_folder)
    with locked(uri):
        index = begin_rebuild(uri, embedder.model) if rebuild else _opened(uri, embedder)
        left = not rebuild and drop_rebuilds(uri)
        known, twice = _known(index)
        gone, kept = _missing(known, found, None if only or rebuild else folders)
        writer = RowWriter(index)
        writer.delete(twice)
        work = _compare(found, known, writer)
        writing = _Reading(work, embedder, writer)
        writing.read(batch_size, num_workers)
        writer.commit()
        lost = {picture_id(path) for path in writing.problems} & known.keys()
        # Last, for a folder that was renamed can be searched, as it was, until it is embedded again.
        writer.delete(gone | lost)
        if rebuild:
            index = finish_rebuild(index, embedder.model)
        if rebuild or left or writer.commits or misses_rows(index):
            tidy(index)
        keep_approximate_index(index, approximate_from)
        total, pictures = index.count(), len(found.pictures) - len(writing.problems)
        return IndexingReport(
            added=writing.added,
            changed=writing.embedded - writing.added,
            touched=writer.updated,
            unchanged=pictures - writing.embedded - writer.updated,
            dropped=len(gone) + len(lost),
            kept=len(kept),
            others=total - pictures - len(kept),
            unreadable=(*found.broken, *(f"{path}: {reason}" for path, reason in writing.problems.items())),
            total=total,
            approximate=index.is_approximate,
        )


def _opened(uri: Uri, embedder: PictureEmbedder) -> ImageIndex:
    if open_table(uri) is None:
        return ImageIndex.create(uri, embedder.model)
    index = ImageIndex(uri)
    difference = embedder.model.difference(index.model)
    if difference:
        raise InputError(
            f"{uri} was made with another model, {index.model.path}: the one given has {difference}; want the"
            " same model, another --index, or --rebuild to embed every picture again"
        )
    return index


def _known(index: ImageIndex) -> tuple[dict[str, _Known], set[str]]:
    """The rows of an index by id, and the ids that stand there twice, as after two writers at once."""
    columns = ["id", "path", "label", "size", "modified", "content"]
    with errors_in_a_line(f"cannot read the index {index.uri}"):
        rows = index.table.search().select(columns).to_arrow()
    times = rows["modified"].cast(pyarrow.int64()).to_pylist()
    known: dict[str, _Known] = {}
    twice: set[str] = set()
    others = (rows[name].to_pylist() for name in ("id", "path", "label", "size", "content"))
    for (name, path, label, size, content), modified in zip(zip(*others, strict=True), times, strict=True):
        if name in known:
            twice.add(name)
        known[name] = _Known(path, label, size, modified, content)
    return {name: one for name, one in known.items() if name not in twice}, twice


def _missing(
    known: dict[str, _Known], found: FoundPictures, folders: Sequence[Path] | None
) -> tuple[set[str], set[str]]:
    """The ids of pictures in the index that are gone, and of those that only cannot be looked at.

    Args:
        known: the index.
        found: what there is in the folders.
        folders: pictures of others are neither; None: all are looked for.
    """
    ids = {picture_id(one.path) for one in found.pictures}
    below = tuple(f"{readable(absolute(folder)).rstrip(os.sep)}{os.sep}" for folder in folders or ())
    missing = {
        name: one.path
        for name, one in known.items()
        if name not in ids and (folders is None or one.path.startswith(below))
    }
    if not found.unseen:
        return set(missing), set()
    unseen = {Path(readable(path)) for path in found.unseen}
    kept = {
        name for name, path in missing.items() if not unseen.isdisjoint((Path(path), *Path(path).parents))
    }
    return missing.keys() - kept, kept


def _compare(found: FoundPictures, known: dict[str, _Known], writer: RowWriter) -> list[_Work]:
    """The files that have to be read; of those that need not be, other labels are written."""
    work = []
    for picture in found.pictures:
        row = known.get(picture_id(picture.path))
        if row is None or not row.is_as(picture):
            work.append(_Work(picture, "" if row is None else row.content))
        elif row.label != picture.label:
            writer.update(picture)
    return work


@final
class _Reading:
    """Files on their way into the index.

    Attributes:
        problems: why files cannot be read, by path.
        embedded: pictures so far, of which `added` are new.
    """

    def __init__(self, work: Sequence[_Work], embedder: PictureEmbedder, writer: RowWriter) -> None:
        self._work, self._embedder, self._writer = work, embedder, writer
        self.problems: dict[str, str] = {}
        self.embedded = self.added = 0

    def read(self, batch_size: int, num_workers: int) -> None:
        """Nothing; every file is then read, embedded where its content is new, and handed to the writer."""
        if not self._work:
            return
        files = PictureFiles(
            [one.found.path for one in self._work],
            [one.content for one in self._work],
            self._embedder.transform,
            self._embedder.min_side,
        )
        starts = range(0, len(files), batch_size)
        # Threads, for LanceDB's own do not survive a fork, and Pillow's decoders release the lock.
        pool = ThreadPoolExecutor(max(num_workers, 1))

        def batch(start: int) -> list[Future[ReadPicture]]:
            places = range(start, min(start + batch_size, len(files)))
            return [pool.submit(files.read, place) for place in places]

        try:
            ahead = batch(0)
            for start in track(starts, "embedding"):
                reading, ahead = ahead, batch(start + batch_size)
                self._take([future.result() for future in reading])
        finally:
            pool.shutdown(cancel_futures=True)

    def _take(self, batch: Sequence[ReadPicture]) -> None:
        pixels = []
        pictures = []
        for read in batch:
            work = self._work[read.place]
            if read.problem:
                self.problems[work.found.path] = read.problem
            elif read.pixels is None:
                self._writer.update(work.found)
            else:
                pixels.append(read.pixels)
                pictures.append(read)
        if not pixels:
            return
        vectors = self._embedder.embed(torch.stack(pixels))
        for read, vector in zip(pictures, vectors, strict=True):
            self._writer.add(self._work[read.place].found, read, vector)
            self.added += not self._work[read.place].content
        self.embedded += len(pixels)
