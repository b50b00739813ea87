"""Send the file of an indexed picture: the bytes that were indexed, a range of them, or nothing."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

from fastapi import HTTPException
from PIL import Image
from starlette.datastructures import Headers

from tuplet.data.pixels import open_image
from tuplet.errors import RequestError
from tuplet.search.index import IndexedPicture

MOST_BYTES = 1 << 26
"""Of a file that is sent, because all of it is hashed each time."""

_PART = 1 << 16
_Stamp: TypeAlias = tuple[int, ...]


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

    def parts(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a range, in parts, and none that were not hashed; raise HTTPException 410."""
        for place in range(start, end, _PART):
            with _opened(self.path) as file:
                file.seek(place)
                part = file.read(min(_PART, end - place))
                # After reading, so that what was written before it is noticed.
                if _stamp(os.fstat(file.fileno())) != self.stamp:
                    raise _gone("it was changed while it was sent")
            yield part


def picture_file(picture: IndexedPicture) -> PictureFile:
    """Return the file of an indexed picture, if the hash of its bytes is the indexed one.

    Whatever the path has become, a link, a pipe or another file, nothing else is ever sent.

    Raises:
        HTTPException: 410: the file is not there, or has other bytes; 413: more than `MOST_BYTES`.
    """
    if picture.size > MOST_BYTES:
        raise HTTPException(
            413,
            f"the picture's file has {picture.size:,} bytes, more than the {MOST_BYTES:,} that are sent; want"
            f" /thumbnails/{picture.id}",
        )
    with _opened(picture.file) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size != picture.size:
            raise _gone("it was replaced by another file")
        digest, left = hashlib.sha256(), picture.size
        while left and (part := file.read(min(_PART, left))):
            digest.update(part)
            left -= len(part)
        if not picture.content or not digest.hexdigest().startswith(picture.content):
            raise _gone("its content has changed")
        file.seek(0)
        return PictureFile(picture.file, picture.size, _media_type(file), _stamp(status))


def unmet_condition(headers: Headers, tag: str) -> int | None:
    """Return the status 412 or 304 where a condition of a GET or HEAD fails; None where all hold.

    Args:
        headers: of the request. Dates are ignored, as they are for what has none (RFC 9110, 13.1.3).
        tag: the strong ETag of the answer, in quotes.
    """
    if "if-match" in headers and not _tags(headers, "if-match") & {"*", tag}:
        return 412
    # A weak tag, W/"x", is as good as a strong one for a cache.
    tags = {one.removeprefix("W/") for one in _tags(headers, "if-none-match")}
    return 304 if tags & {"*", tag} else None


def _tags(headers: Headers, name: str) -> set[str]:
    return set(re.findall(r'\*|(?:W/)?"[^"]*"', ",".join(headers.getlist(name))))


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the start and end, exclusive, of the range that a header Range asks for.

    Args:
        header: of another unit, of several ranges or malformed, it is ignored, as a server may: None.
        size: of the whole, bytes.

    Raises:
        RequestError: there is no byte in the range.
    """
    match = re.fullmatch(r"bytes=[ \t]*(\d{0,4000})-(\d{0,4000})[ \t]*", header, re.IGNORECASE | re.ASCII)
    first, last = match.groups() if match else ("", "")
    if first + last == "" or (first and last and int(first) > int(last)):
        return None
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        raise RequestError(
            f"the picture has {size:,} bytes, none in {header[:60]!r}; want a range in it", subject="range"
        )
    return start, end


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    try:
        # Without waiting: opening a pipe that nobody writes would never end.
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(opened, "rb") as file:
            yield file
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise _gone((reason or "no such file").lower()) from None


def _gone(reason: str) -> HTTPException:
    return HTTPException(410, f"the picture's file is gone: {reason}; want the folder indexed again")


def _stamp(status: os.stat_result) -> _Stamp:
    # Without the inode, which network file systems may number anew each time that a file is opened.
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _media_type(file: BinaryIO) -> str:
    try:
        with open_image(file) as image:
            kind = image.format or ""
    except Exception:  # corrupt bytes make Pillow raise nearly anything
        raise _gone("it is no picture") from None
    # A JPEG with further pictures after the first; browsers do not know the name.
    return "image/jpeg" if kind == "MPO" else Image.MIME.get(kind, "application/octet-stream")
