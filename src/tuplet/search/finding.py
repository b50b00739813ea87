"""Find the pictures below some folders: their files, labels, sizes and times."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tuplet.data.walk import LeftOut, images_below
from tuplet.errors import DataError
from tuplet.inference.pictures import absolute
from tuplet.search.index import picture_id
from tuplet.search.storage import stored_text

LabelFolder = Literal["first", "last", "none"]
"""The folder whose name is a picture's label: the one right below the indexed folder, the picture's own, or
none."""

NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""The errors for a path that leads nowhere, such as a link to itself."""
_LATEST = 253_402_214_400_000_000
"""The last day that Python's datetime knows, in microseconds since 1970; file systems can be wrong."""


@dataclass(frozen=True, slots=True)
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

    def only(self, wanted: Callable[[str], bool]) -> FoundPictures:
        """Return a copy with only the pictures whose path is wanted."""
        pictures = {path: picture for path, picture in self.pictures.items() if wanted(path)}
        return replace(self, pictures=pictures)


def find_pictures(folders: Sequence[Path], *, label_folder: LabelFolder = "first") -> FoundPictures:
    """Find the pictures at any depth below some folders, and what cannot be read there.

    Links are followed, each folder once. Hidden files, files whose name is not that of an image, and
    folders that systems make, such as @eaDir, are left out.

    Args:
        folders: at least one.
        label_folder: first: the label is the name of the folder right below the one that was given; last: of
            the folder that the picture lies in; none: no labels. Pictures right inside have none.

    Raises:
        DataError: there is none, or one of them is no folder, cannot be listed, or has no pictures.
    """
    if not folders:
        raise DataError("no folder was given; want one with pictures, or several", subject="folders")
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
                if error.errno not in NOT_THERE:
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
        reason = "does not exist" if error.errno in NOT_THERE else f"cannot be read ({error.strerror})"
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
