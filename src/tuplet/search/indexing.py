"""Folders of pictures into an index: find them, read them, embed what is new or has changed."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pyarrow
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from tuplet.data.class_folders import files_below, is_image
from tuplet.data.decoding import UnreadableImageError, decode_image
from tuplet.data.transforms import Transform
from tuplet.errors import InputError
from tuplet.inference.encoder import PictureEmbedder, absolute
from tuplet.progress import track
from tuplet.search.approximate import APPROXIMATE_FROM, keep_approximate_index, misses_rows
from tuplet.search.index import ImageIndex, content_hash, picture_id
from tuplet.search.storage import Uri, errors_in_a_line, locked, open_table
from tuplet.search.writing import RowWriter, begin_rebuild, drop_rebuilds, finish_rebuild, tidy

LabelFolder = Literal["first", "last", "none"]
"""Whose name is a picture's label: the folder right below the one that is indexed, or the picture's own."""

THUMBNAIL_SIDE = 256
"""Longest side of a thumbnail, pixels."""
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What is said of a path that leads nowhere, a link to itself among them."""
_LATEST = 253_402_214_400_000_000
"""The last day that Python's datetime knows, in microseconds since 1970; file systems can be wrong."""


@dataclass(frozen=True)
class FoundPicture:
    """A file that is called like an image.

    Attributes:
        path: absolute; links in it are kept.
        label: name of its class; None where it has none.
        size: bytes.
        modified: microseconds since 1970.
    """

    path: str
    label: str | None
    size: int
    modified: int


@dataclass(frozen=True)
class FoundPictures:
    """What there is in some folders.

    Attributes:
        pictures: by path, each file once.
        broken: files and folders that cannot be looked at, "path: reason".
        unseen: of these the paths, absolute, at or below which there may be pictures all the same.
    """

    pictures: tuple[FoundPicture, ...]
    broken: tuple[str, ...]
    unseen: tuple[str, ...]


@dataclass(frozen=True)
class ReadPicture:
    """What was read of a file.

    Attributes:
        place: which of the files it is.
        content: hash of its bytes; empty where they could not be read.
        pixels: the square that the network sees; None where the picture is known or cannot be decoded.
        thumbnail: JPEG; empty likewise.
        problem: why it cannot be decoded; empty where it can.
    """

    place: int
    content: str
    pixels: UInt8[Tensor, "3 S S"] | None = None
    thumbnail: bytes = b""
    problem: str = ""


def find_pictures(folders: Sequence[Path], *, label_folder: LabelFolder = "first") -> FoundPictures:
    """The pictures at any depth below some folders, and what there cannot be looked at.

    Links are followed, each folder once. Names that begin with a dot or do not end like an image are left
    out.

    Args:
        folders: at least one.
        label_folder: first: the label is the name of the folder right below the one that was given; last: of
            the folder that the picture lies in; none: no labels. Pictures right inside have none.

    Raises:
        InputError: one of them is no folder, cannot be listed, or has no pictures.
    """
    found: dict[str, FoundPicture] = {}
    broken: list[str] = []
    unseen: list[str] = []
    for folder in folders:
        top = absolute(folder)
        files, unlisted = _image_files(folder, top)
        broken += [f"{inner}: cannot list it ({reason})" for inner, reason in unlisted.items()]
        unseen += unlisted
        for file in files:
            label = None if label_folder == "none" else _label(file, top, label_folder)
            try:
                status = Path(file).stat()
            except OSError as error:
                broken.append(f"{file}: {error.strerror}")
                if error.errno not in _NOT_THERE:
                    unseen.append(file)
                continue
            if not stat.S_ISREG(status.st_mode):  # a link to a pipe or a device can be read for ever
                broken.append(f"{file}: it is no file, but a pipe or a device")
                continue
            modified = min(max(status.st_mtime_ns // 1000, 0), _LATEST)
            picture = FoundPicture(file, label, status.st_size, modified)
            found.setdefault(file, picture)
    return FoundPictures(tuple(found[path] for path in sorted(found)), tuple(broken), tuple(unseen))


def _image_files(folder: Path, top: str) -> tuple[list[str], dict[str, str]]:
    """The files below a folder that are called like images, and why folders there cannot be listed."""
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except OSError as error:
        reason = "does not exist" if error.errno in _NOT_THERE else f"cannot be read ({error.strerror})"
        raise InputError(f"{folder} {reason}; want a folder of pictures") from None
    if not is_folder:
        raise InputError(f"{folder} is a file; want a folder of pictures")
    unlisted: dict[str, str] = {}
    files = [file for file in files_below(top, set(), unlisted) if is_image(file)]
    if not files:
        for inner, reason in unlisted.items():
            raise InputError(f"cannot list {inner}: {reason}; want a folder to read")
        raise InputError(f"{folder} holds no pictures, at any depth; want a folder with some")
    return files, unlisted


def _label(file: str, top: str, label_folder: LabelFolder) -> str | None:
    between = Path(os.path.relpath(file, top)).parts[:-1]
    if not between:
        return None
    return readable(between[0 if label_folder == "first" else -1])


def readable(name: str) -> str:
    """A path or name as text that can be stored: bytes that are no UTF-8 become hexadecimal digits."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


@final
class PictureFiles:
    """Files to be read, by any thread; nothing that is wrong with one raises.

    Args:
        paths: of the files.
        contents: the hash that each is known by, or an empty string; one that has not changed is not decoded.
        transform: makes the square that the network sees.
        min_side: pixels that the short side keeps, see `decode_image`.
    """

    def __init__(
        self, paths: Sequence[str], contents: Sequence[str], transform: Transform, min_side: int
    ) -> None:
        self._paths, self._contents = tuple(paths), tuple(contents)
        self._transform, self._min_side = transform, min_side

    def read(self, place: int) -> ReadPicture:
        """What is in one of the files: its hash, and, unless it is the known one, pixels and thumbnail."""
        file = Path(self._paths[place])
        content = ""
        try:
            content = content_hash(file)
            if content == self._contents[place]:
                return ReadPicture(place, content)
            image = decode_image(file, min_side=self._min_side)
        except UnreadableImageError as error:
            return ReadPicture(place, content, problem=error.reason)
        except OSError as error:
            return ReadPicture(place, content, problem=error.strerror or type(error).__name__)
        return ReadPicture(place, content, self._transform(image), jpeg_thumbnail(image))

    def __len__(self) -> int:
        return len(self._paths)


def jpeg_thumbnail(image: UInt8[Tensor, "3 H W"]) -> bytes:
    """A small copy of an image, JPEG, its longest side at most THUMBNAIL_SIDE.

    Args:
        image: RGB pixels.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


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
            writer.update(_file_row(picture))
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
                self._writer.update(_file_row(work.found))
            else:
                pixels.append(read.pixels)
                pictures.append(read)
        if not pixels:
            return
        vectors = self._embedder.embed(torch.stack(pixels))
        for read, vector in zip(pictures, vectors, strict=True):
            self._writer.add(_row(self._work[read.place].found, read, vector))
            self.added += not self._work[read.place].content
        self.embedded += len(pixels)


def _row(found: FoundPicture, read: ReadPicture, vector: Float32[np.ndarray, " D"]) -> dict[str, Any]:
    row = {**_file_row(found), "path": readable(found.path), "content": read.content}
    return {**row, "vector": vector, "thumbnail": read.thumbnail}


def _file_row(found: FoundPicture) -> dict[str, Any]:
    return {
        "id": picture_id(found.path),
        "label": found.label,
        "size": found.size,
        "modified": found.modified,
    }
