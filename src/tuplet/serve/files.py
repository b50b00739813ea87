"""An indexed picture's file as it may be sent: the very bytes that were indexed, or nothing."""

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
"""Of a file that is sent, because all of it is hashed each time."""

_PART = 1 << 16
_Stamp: TypeAlias = tuple[int, ...]


class PictureGoneError(Exception):
    """The file is no longer what was indexed; the message says in which way."""


class PictureTooLargeError(Exception):
    """The file is larger than `MOST_BYTES`."""


@dataclass(frozen=True)
class PictureFile:
    """A file that may be sent. Nothing of it is held: neither its bytes nor an open file.

    Attributes:
        size: bytes.
        media_type: such as image/jpeg, by what the bytes are and not by the file's name.
        stamp: the size and times by which a changed file is noticed.
    """

    path: str
    size: int
    media_type: str
    stamp: _Stamp

    def parts(self) -> Iterator[bytes]:
        """Yield its bytes, a few at a time, and only those that were hashed; raise PictureGoneError."""
        for start in range(0, self.size, _PART):
            with _opened(self.path) as file:
                file.seek(start)
                part = file.read(min(_PART, self.size - start))
                # After reading, so that what was written before it is noticed.
                if _stamp(os.fstat(file.fileno())) != self.stamp:
                    raise PictureGoneError("it was changed while it was sent")
            yield part


def picture_file(picture: IndexedPicture) -> PictureFile:
    """Return the file of an indexed picture, if the hash of its bytes is the indexed one.

    Whatever the path has become, a link, a pipe or another file, nothing else is ever sent.

    Raises:
        PictureGoneError: the file is not there, or has other bytes.
        PictureTooLargeError: it is larger than `MOST_BYTES`.
    """
    if picture.size > MOST_BYTES:
        raise PictureTooLargeError(f"{picture.size:,} bytes, more than the {MOST_BYTES:,} that are sent")
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
        # Without waiting: opening a pipe that nobody writes would never end.
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(opened, "rb") as file:
            yield file
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise PictureGoneError((reason or "no such file").lower()) from None


def _stamp(status: os.stat_result) -> _Stamp:
    # Without the inode, which network file systems may number anew each time that a file is opened.
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _media_type(file: BinaryIO) -> str:
    try:
        with open_image(file) as image:
            kind = image.format or ""
    except Exception:  # corrupt bytes make Pillow raise nearly anything
        raise PictureGoneError("it is no picture") from None
    # A JPEG with further pictures after the first; browsers do not know the name.
    return "image/jpeg" if kind == "MPO" else Image.MIME.get(kind, "application/octet-stream")
