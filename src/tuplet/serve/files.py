"""An indexed picture's file as it may be handed out: the very bytes that were indexed, or nothing."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

from PIL import Image

from tuplet.data.decoding import open_image
from tuplet.search.index import IndexedPicture

MOST_BYTES = 1 << 26
"""Of a file that is handed out, for all of it is hashed each time."""

_PART = 1 << 16
_Stamp: TypeAlias = tuple[int, ...]


class PictureGoneError(Exception):
    """The file is not what was indexed any more; the message says in which way."""


class PictureTooLargeError(Exception):
    """The file is larger than `MOST_BYTES`."""


@dataclass(frozen=True)
class PictureFile:
    """A file that may be handed out. Nothing of it is held: neither its bytes nor an open file.

    Attributes:
        path: where it lies.
        size: bytes.
        media_type: such as image/jpeg, by what the bytes are and not by the file's name.
        stamp: by which the file is known again, as long as nobody writes it.
    """

    path: str
    size: int
    media_type: str
    stamp: _Stamp

    def parts(self) -> Iterator[bytes]:
        """Its bytes, a few at a time, and only those that were hashed; raises PictureGoneError."""
        for start in range(0, self.size, _PART):
            with _opened(self.path) as file:
                file.seek(start)
                part = file.read(min(_PART, self.size - start))
                # Behind the reading: what was written before it would be seen.
                if _stamp(os.fstat(file.fileno())) != self.stamp:
                    raise PictureGoneError("it was changed while it was handed out")
            yield part


def picture_file(picture: IndexedPicture) -> PictureFile:
    """The file of an indexed picture; only if the hash of its bytes is the indexed one.

    Whatever the path has become, a link, a pipe or another file, nothing else can leave by it.

    Args:
        picture: from the index.

    Raises:
        PictureGoneError: the file is not there, or has other bytes.
        PictureTooLargeError: it is larger than `MOST_BYTES`.
    """
    if picture.size > MOST_BYTES:
        raise PictureTooLargeError(f"{picture.size:,} bytes; {MOST_BYTES:,} are handed out at most")
    with _opened(picture.path) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size != picture.size:
            raise PictureGoneError("it was replaced by another file")
        digest, left = hashlib.sha256(), picture.size
        while left and (part := file.read(min(_PART, left))):
            digest.update(part)
            left -= len(part)
        if not picture.content or not digest.hexdigest().startswith(picture.content):
            raise PictureGoneError("its content has changed")
        file.seek(0)
        return PictureFile(picture.path, picture.size, _media_type(file), _stamp(status))


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    try:
        # Without waiting: to open a pipe that nobody writes would never end.
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(opened, "rb") as file:
            yield file
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise PictureGoneError((reason or "no such file").lower()) from None


def _stamp(status: os.stat_result) -> _Stamp:
    # Without the inode, which file systems of networks may number anew each time that a file is opened.
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _media_type(file: BinaryIO) -> str:
    try:
        with open_image(file) as image:
            kind = image.format or ""
    except Exception:  # corrupt bytes make Pillow raise nearly anything
        raise PictureGoneError("it is no picture") from None
    # A JPEG with further pictures behind the first; no browser knows the name.
    return "image/jpeg" if kind == "MPO" else Image.MIME.get(kind, "application/octet-stream")
