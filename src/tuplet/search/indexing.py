"""Folders of pictures into an index: find them, read them, embed what is new or has changed."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pyarrow
from jaxtyping import Float32, UInt8
from PIL import Image

from tuplet.data.pixels import UnreadableImageError, decode_pixels
from tuplet.data.walk import LeftOut, images_below
from tuplet.errors import DataError, SearchIndexError
from tuplet.evaluation.sizes import choose_code
from tuplet.inference.pictures import IndexedModel, PictureEncoder, absolute
from tuplet.progress import track
from tuplet.search.approximate import APPROXIMATE_FROM, keep_approximate_index, misses_rows
from tuplet.search.index import ImageIndex, content_hash, picture_id
from tuplet.search.small_storage import vector_cells
from tuplet.search.storage import Uri, lance_errors, locked, open_table, stored_text
from tuplet.search.writing import RowWriter, begin_rebuild, drop_rebuilds, finish_rebuild, tidy

LabelFolder = Literal["first", "last", "none"]
"""Whose name is a picture's label: the folder right below the one that is indexed, or the picture's own."""

THUMBNAIL_SIDE = 256
"""Longest side of a thumbnail, pixels."""
CHOICE_PICTURES = 2000
"""Pictures that are embedded beforehand to choose how to keep vectors in few bytes."""
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""The errors for a path that leads nowhere, such as a link to itself."""
_LATEST = 253_402_214_400_000_000
"""The last day that Python's datetime knows, in microseconds since 1970; file systems can be wrong."""


@dataclass(frozen=True)
class FoundPicture:
    """A file with the name of an image: absolute path, links kept; size in bytes; microseconds since 1970."""

    path: str
    label: str | None
    size: int
    modified: int

    @property
    def row(self) -> dict[str, Any]:
        """Return the columns of its row in an index that need no reading of the file."""
        return {
            "id": picture_id(self.path),
            "label": self.label,
            "size": self.size,
            "modified": self.modified,
        }


@dataclass
class FoundPictures:
    """The pictures in some folders.

    Attributes:
        pictures: each file once, by its path, sorted.
        broken: files and folders that cannot be read, "path: reason".
        unseen: the absolute paths among these at or below which there may still be pictures.
        notes: a line for each kind of file and folder that was left out.
    """

    pictures: dict[str, FoundPicture] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_pictures(folders: Sequence[Path], *, label_folder: LabelFolder = "first") -> FoundPictures:
    """Find the pictures at any depth below some folders, and what cannot be read there.

    Links are followed, each folder once. Hidden files, files whose name is not that of an image, and
    folders that systems make, such as @eaDir, are left out.

    Args:
        folders: at least one.
        label_folder: first: the label is the name of the folder right below the one that was given; last: of
            the folder that the picture lies in; none: no labels. Pictures right inside have none.

    Raises:
        DataError: one of them is no folder, cannot be listed, or has no pictures.
    """
    found = FoundPictures()
    for folder in folders:
        top = absolute(folder)
        left_out, unlisted = LeftOut(), dict[str, str]()
        files = _image_files(folder, top, left_out, unlisted)
        found.notes += left_out.notes(folder)
        found.broken += [f"{inner}: cannot list it ({reason})" for inner, reason in unlisted.items()]
        found.unseen += unlisted
        for file in files:
            try:
                status = Path(file).stat()
            except OSError as error:
                found.broken.append(f"{file}: {error.strerror}")
                if error.errno not in _NOT_THERE:
                    found.unseen.append(file)
                continue
            if not stat.S_ISREG(status.st_mode):  # reading a link to a pipe or a device may never end
                found.broken.append(f"{file}: it is no file, but a pipe or a device")
                continue
            modified = min(max(status.st_mtime_ns // 1000, 0), _LATEST)
            label = _label(file, top, label_folder)
            found.pictures.setdefault(file, FoundPicture(file, label, status.st_size, modified))
    found.pictures = dict(sorted(found.pictures.items()))
    return found


def _image_files(folder: Path, top: str, left_out: LeftOut, unlisted: dict[str, str]) -> list[str]:
    """Return the files below a folder with names of images; add to the others what is left out."""
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except OSError as error:
        reason = "does not exist" if error.errno in _NOT_THERE else f"cannot be read ({error.strerror})"
        raise DataError(f"{folder} {reason}; want a folder of pictures", subject=folder) from None
    if not is_folder:
        raise DataError(f"{folder} is a file; want a folder of pictures", subject=folder)
    files = images_below(top, left_out, unlisted=unlisted)
    if not files:
        for inner, reason in unlisted.items():
            raise DataError(f"cannot list {inner}: {reason}; want a folder to read", subject=inner)
        notes = "".join(f" ({note})" for note in left_out.notes(folder))
        problem = f"{folder} holds no pictures, at any depth{notes}; want a folder with some"
        raise DataError(problem, subject=folder)
    return files


def _label(file: str, top: str, label_folder: LabelFolder) -> str | None:
    between = Path(os.path.relpath(file, top)).parts[:-1]
    if label_folder == "none" or not between:
        return None
    return stored_text(between[0 if label_folder == "first" else -1])


@dataclass(frozen=True)
class _Entry:
    """A file, and the hash of the content that the index knows of it; empty where it is new."""

    picture: FoundPicture
    content: str


@dataclass(frozen=True)
class _ReadPicture:
    """What was read of a file.

    Attributes:
        content: hash of its bytes; empty where they could not be read.
        pixels: the square that the network sees; None where the content is known or cannot be decoded.
        thumbnail: JPEG; empty likewise.
        problem: why it cannot be decoded; empty where it can.
    """

    entry: _Entry
    content: str
    pixels: UInt8[np.ndarray, "3 S S"] | None = None
    thumbnail: bytes = b""
    problem: str = ""


def read_picture(entry: _Entry, embedder: PictureEncoder) -> _ReadPicture:
    """Read a file in any thread; return what is wrong with it. Content that is known is not decoded."""
    file, content = Path(entry.picture.path), ""
    try:
        content = content_hash(file)
        if content == entry.content:
            return _ReadPicture(entry, content)
        image = decode_pixels(file, min_side=embedder.min_side)
    except UnreadableImageError as error:
        return _ReadPicture(entry, content, problem=error.reason)
    except OSError as error:
        return _ReadPicture(entry, content, problem=error.strerror or type(error).__name__)
    return _ReadPicture(entry, content, embedder.square(image), jpeg_thumbnail(image))


def jpeg_thumbnail(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Return a small copy of an image, RGB, as a JPEG whose longest side is at most THUMBNAIL_SIDE."""
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


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
) -> IndexingReport:
    """Make an index hold the pictures below some folders, and return what was done.

    It is written in commits of a thousand pictures, or every 20 s. A process that is killed leaves the last
    commit; the next one goes on from there. A file of the same size and time is not read; one with the same
    content is not embedded. A rebuild becomes visible in one step at its end, see `finish_rebuild`.

    Args:
        uri: the index; made where there is none.
        folders: at least one; pictures of other folders stay as they are.
        embedder: of the model that made the index.
        label_folder: see `find_pictures`.
        only: drop the pictures of other folders.
        rebuild: start again, perhaps with another model, or go on with such a rebuild that was killed; left
            out: drop the rest of a killed one.
        batch_size: pictures that are embedded at a time, >= 1.
        num_workers: threads that decode, >= 0; 0 and 1 are the same.
        approximate_from: pictures from which on there is an approximate index, >= 1.
        num_bytes: the most that the vector of a picture takes, >= 1, see `choose_code`; for a new index, or
            with `rebuild`. None: float32, all dimensions.

    Raises:
        DataError: no folder, or one without pictures.
        SearchIndexError: another model, or an index that cannot be written or that another process writes.
    """
    found = find_pictures(folders, label_folder=label_folder)
    with locked(uri):
        new = rebuild or open_table(uri) is None
        model = _model_in_bytes(embedder, found, num_bytes) if new else embedder.model
        index = begin_rebuild(uri, model) if rebuild else _open_or_create(uri, model, num_bytes)
        dropped_rebuilds = not rebuild and drop_rebuilds(uri)
        known, twice = _known(index)
        gone, kept = _missing(known, found, None if only or rebuild else folders)
        writer = RowWriter(index)
        writer.delete(twice)
        embedding = _Embedding(embedder, writer)
        embedding.run(_compare(found, known, writer), batch_size, num_workers)
        writer.commit()
        lost = {picture_id(path) for path in embedding.problems} & known.keys()
        # Last: the pictures of a renamed folder can be searched as they were until they are embedded again.
        writer.delete(gone | lost)
        if rebuild:
            index = finish_rebuild(index, model)
        if rebuild or dropped_rebuilds or writer.commits or misses_rows(index):
            tidy(index)
        keep_approximate_index(index, approximate_from)
        total, num_pictures = index.count(), len(found.pictures) - len(embedding.problems)
        problems = [f"{path}: {reason}" for path, reason in embedding.problems.items()]
        return IndexingReport(
            added=embedding.num_added,
            changed=embedding.num_embedded - embedding.num_added,
            touched=writer.updated,
            unchanged=num_pictures - embedding.num_embedded - writer.updated,
            dropped=len(gone) + len(lost),
            kept=len(kept),
            others=total - num_pictures - len(kept),
            unreadable=(*found.broken, *problems),
            notes=(*found.notes, *_elsewhere(known, found, gone | kept)),
            total=total,
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


def _open_or_create(uri: Uri, model: IndexedModel, num_bytes: int | None) -> ImageIndex:
    if open_table(uri) is None:
        return ImageIndex.create(uri, model)
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


def _known(index: ImageIndex) -> tuple[dict[str, _Entry], set[str]]:
    """Return the rows of an index by id, and the ids that occur twice, as after two writers at once."""
    columns = ["id", "path", "label", "size", "modified", "content"]
    with lance_errors(f"cannot read the index {index.uri}", subject=index.uri):
        rows = index.table.search().select(columns).to_arrow().select(columns)
    microseconds = rows["modified"].cast(pyarrow.int64())
    rows = rows.set_column(columns.index("modified"), "modified", microseconds)
    known: dict[str, _Entry] = {}
    twice: set[str] = set()
    for name, *facts, content in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        if name in known:
            twice.add(name)
        known[name] = _Entry(FoundPicture(*facts), content)
    return {name: entry for name, entry in known.items() if name not in twice}, twice


def _missing(
    known: dict[str, _Entry], found: FoundPictures, folders: Sequence[Path] | None
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


def _elsewhere(known: dict[str, _Entry], found: FoundPictures, looked_for: set[str]) -> list[str]:
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


def _compare(found: FoundPictures, known: dict[str, _Entry], writer: RowWriter) -> list[_Entry]:
    """Return the files that have to be read; write the other labels of those that need not be."""
    work = []
    for picture in found.pictures.values():
        entry = known.get(picture_id(picture.path))
        if entry is None:
            work.append(_Entry(picture, ""))
        elif (entry.picture.size, entry.picture.modified) != (picture.size, picture.modified):
            work.append(_Entry(picture, entry.content))
        elif entry.picture.label != picture.label:
            writer.update(picture.row)
    return work


@final
class _Embedding:
    """Files on their way into the index: read in threads, embedded in batches, written by the writer.

    Attributes:
        problems: why files cannot be read, by path.
        num_embedded: pictures so far, of which `num_added` are new.
    """

    def __init__(self, embedder: PictureEncoder, writer: RowWriter) -> None:
        self._embedder, self._writer = embedder, writer
        self.problems: dict[str, str] = {}
        self.num_embedded = self.num_added = 0

    def run(self, work: Sequence[_Entry], batch_size: int, num_workers: int) -> None:
        """Read every file, embed what is new, and give it to the writer."""
        if not work:
            return
        # Threads: LanceDB's own do not survive a fork, and Pillow's decoders release the lock.
        pool = ThreadPoolExecutor(max(num_workers, 1))

        def submit(start: int) -> list[Future[_ReadPicture]]:
            batch = work[start : start + batch_size]
            return [pool.submit(read_picture, one, self._embedder) for one in batch]

        try:
            ahead = submit(0)
            for start in track(range(0, len(work), batch_size), "embedding"):
                reading, ahead = ahead, submit(start + batch_size)
                self._take([future.result() for future in reading])
        finally:
            pool.shutdown(cancel_futures=True)

    def _take(self, batch: Sequence[_ReadPicture]) -> None:
        new = []
        for read in batch:
            picture = read.entry.picture
            if read.problem:
                self.problems[picture.path] = read.problem
            elif read.pixels is None:
                self._writer.update(picture.row)
            else:
                new.append((read, read.pixels))
        if not new:
            return
        vectors = self._embedder.embed(np.stack([pixels for _, pixels in new]))
        for (read, _), cells in zip(new, vector_cells(vectors, self._writer.model), strict=True):
            picture = read.entry.picture
            row = {**picture.row, "path": stored_text(picture.path), "content": read.content}
            self._writer.add({**row, **cells, "thumbnail": read.thumbnail})
            self.num_added += not read.entry.content
        self.num_embedded += len(new)
