"""Turn picture files into rows of an index: read in threads, embedded in batches."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tuplet.data.pixels import UnreadableImageError, decode_pixels
from tuplet.inference.pictures import PictureEncoder
from tuplet.progress import track
from tuplet.search.finding import NOT_THERE, FoundPicture
from tuplet.search.index import content_hash
from tuplet.search.small_storage import vector_cells
from tuplet.search.storage import stored_text
from tuplet.search.writing import RowWriter

THUMBNAIL_SIDE = 256
"""Longest side of a thumbnail, pixels."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, and the hash of the content that the index knows of it; empty where it is new."""

    picture: FoundPicture
    content: str


@dataclass(frozen=True)
class ReadPicture:
    """What was read of a file.

    Attributes:
        content: hash of its bytes; empty where they could not be read.
        pixels: the square that the network sees; None where the content is known or cannot be decoded.
        thumbnail: JPEG; empty likewise.
        problem: why it cannot be decoded; empty where it can.
        temporary: the problem is one of the drive or of permissions, and says nothing about the picture.
    """

    entry: Entry
    content: str
    pixels: UInt8[np.ndarray, "3 S S"] | None = None
    thumbnail: bytes = b""
    problem: str = ""
    temporary: bool = False


def read_picture(entry: Entry, embedder: PictureEncoder) -> ReadPicture:
    """Read a file in any thread; return what is wrong with it. Content that is known is not decoded."""
    file, content = Path(entry.picture.path), ""
    try:
        content = content_hash(file)
        if content == entry.content:
            return ReadPicture(entry, content)
        image = decode_pixels(file, min_side=embedder.min_side)
    except UnreadableImageError as error:
        return ReadPicture(entry, content, problem=error.reason, temporary=_is_temporary(error.__cause__))
    except OSError as error:
        problem = error.strerror or type(error).__name__
        return ReadPicture(entry, content, problem=problem, temporary=_is_temporary(error))
    return ReadPicture(entry, content, embedder.square(image), jpeg_thumbnail(image))


def _is_temporary(error: BaseException | None) -> bool:
    """Return whether the system refused to read a file that is there; Pillow's own errors have no number."""
    return isinstance(error, OSError) and error.errno is not None and error.errno not in NOT_THERE


def jpeg_thumbnail(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Return a small copy of an image, RGB, as a JPEG whose longest side is at most THUMBNAIL_SIDE."""
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


@dataclass(frozen=True)
class ReadingSettings:
    """How files are read and embedded.

    Attributes:
        batch_size: pictures that are embedded at a time, >= 1.
        num_threads: that decode, >= 0; 0 and 1 are the same.
    """

    batch_size: int = 64
    num_threads: int = 0


@dataclass
class Embedded:
    """What was done with some files.

    Attributes:
        problems: why files cannot be read, by path.
        kept: paths among these where the problem may pass, and what the index holds stays.
        num_embedded: pictures, of which `num_added` are new.
        num_added: see there.
        num_updated: pictures whose content was known, with other facts.
    """

    problems: dict[str, str] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    num_embedded: int = 0
    num_added: int = 0
    num_updated: int = 0

    @classmethod
    def total(cls, parts: Iterable[Embedded]) -> Embedded:
        """Return what was done with all files, each of which is in one part."""
        whole = cls()
        for part in parts:
            whole.problems |= part.problems
            whole.kept |= part.kept
            whole.num_embedded += part.num_embedded
            whole.num_added += part.num_added
            whole.num_updated += part.num_updated
        whole.problems = dict(sorted(whole.problems.items()))
        return whole


def embed_entries(
    work: Sequence[Entry], embedder: PictureEncoder, writer: RowWriter, settings: ReadingSettings
) -> Embedded:
    """Read every file, embed what is new, and write it; the last rows are committed too.

    Args:
        work: files, no id twice.
        embedder: of the index's model.
        writer: of the index.
        settings: how.
    """
    done = Embedded()
    # Threads: LanceDB's own do not survive a fork, and Pillow's decoders release the lock.
    pool = ThreadPoolExecutor(max(settings.num_threads, 1))

    def submit(start: int) -> list[Future[ReadPicture]]:
        batch = work[start : start + settings.batch_size]
        return [pool.submit(read_picture, one, embedder) for one in batch]

    try:
        ahead = submit(0)
        starts = range(0, len(work), settings.batch_size)
        for start in track(starts, "embedding") if work else ():
            reading, ahead = ahead, submit(start + settings.batch_size)
            _take([future.result() for future in reading], embedder, writer, done)
    finally:
        pool.shutdown(cancel_futures=True)
    writer.commit()
    return done


def _take(batch: Sequence[ReadPicture], embedder: PictureEncoder, writer: RowWriter, done: Embedded) -> None:
    """Embed what is new in a batch that was read, and give its rows to the writer."""
    new = []
    for read in batch:
        picture = read.entry.picture
        if read.problem:
            done.problems[picture.path] = read.problem
            if read.temporary:
                done.kept.add(picture.path)
        elif read.pixels is None:
            writer.update(picture.row)
            done.num_updated += 1
        else:
            new.append((read, read.pixels))
    if not new:
        return
    vectors = embedder.embed(np.stack([pixels for _, pixels in new]))
    for (read, _), cells in zip(new, vector_cells(vectors, writer.model), strict=True):
        picture = read.entry.picture
        row = {**picture.row, "path": stored_text(picture.path), "content": read.content}
        writer.add({**row, **cells, "thumbnail": read.thumbnail})
        done.num_added += not read.entry.content
    done.num_embedded += len(new)
