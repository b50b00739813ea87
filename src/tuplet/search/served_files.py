"""An indexed picture's file as it may be handed out: the very bytes that were indexed, or nothing."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass

from PIL import Image

from tuplet.data.images import open_image
from tuplet.search.index import IndexedPicture

MOST_BYTES = 1 << 26
"""Of a file that is handed out, for it is held in memory."""


class PictureGoneError(Exception):
    """The file is not what was indexed any more; the message says in which way."""


class PictureTooLargeError(Exception):
    """The file is larger than `MOST_BYTES`."""


@dataclass(frozen=True)
class PictureFile:
    """A file to be handed out.

    Attributes:
        content: its bytes.
        media_type: such as image/jpeg, by what the bytes are and not by the file's name.
    """

    content: bytes
    media_type: str


def read_picture_file(picture: IndexedPicture) -> PictureFile:
    """The bytes of an indexed picture; only those whose hash is the indexed one.

    Whatever the path has become, a link, a pipe or another file, nothing else can leave by it.

    Args:
        picture: from the index.

    Raises:
        PictureGoneError: the file is not there, or has other bytes.
        PictureTooLargeError: it is larger than `MOST_BYTES`.
    """
    if picture.size > MOST_BYTES:
        raise PictureTooLargeError(f"{picture.size:,} bytes; {MOST_BYTES:,} are handed out at most")
    try:
        # Without waiting: to open a pipe that nobody writes would never end.
        opened = os.open(picture.path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(opened, "rb") as file:
            status = os.fstat(opened)
            if not stat.S_ISREG(status.st_mode) or status.st_size != picture.size:
                raise PictureGoneError("it was replaced by another file")
            content = file.read(picture.size + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise PictureGoneError((reason or "no such file").lower()) from None
    if not hashlib.sha256(content).hexdigest().startswith(picture.content) or not picture.content:
        raise PictureGoneError("its content has changed")
    return PictureFile(content, _media_type(content))


def _media_type(content: bytes) -> str:
    try:
        with open_image(content) as image:
            kind = image.format or ""
    except Exception:  # corrupt bytes make Pillow raise nearly anything
        raise PictureGoneError("it is no picture") from None
    # A JPEG with further pictures behind the first; no browser knows the name.
    return "image/jpeg" if kind == "MPO" else Image.MIME.get(kind, "application/octet-stream")
