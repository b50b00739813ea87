"""Pictures in folders, to be indexed: which there are, and what is read of each file."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from tuplet.data.class_folders import files_below, is_image
from tuplet.data.decoding import UnreadableImageError, decode_image
from tuplet.data.transforms import Transform
from tuplet.errors import InputError
from tuplet.inference.encoder import absolute

LabelFolder = Literal["first", "last", "none"]
"""Whose name is a picture's label: the folder right below the one that is indexed, or the picture's own."""

THUMBNAIL_SIDE = 256
"""Longest side of a thumbnail, pixels."""
_HASH_DIGITS = 32
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


def picture_id(path: str) -> str:
    """The name of a picture in every index: the first 32 hexadecimal digits of its path's SHA-256.

    It stays the same as long as the path does, whatever becomes of the file's content.

    Args:
        path: absolute.
    """
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:_HASH_DIGITS]


def content_hash(file: Path) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of a file's bytes; raises OSError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:_HASH_DIGITS]


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
