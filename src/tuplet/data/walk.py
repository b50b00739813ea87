"""Walk folders for images: every command finds the same files and says what it left out in the same words."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tuplet.data.pixels import HEIC_EXTENSIONS, image_extensions
from tuplet.errors import DataError, counted, unusable

SYSTEM_FOLDERS = frozenset(
    {
        "@eadir",  # Synology: thumbnails, a second copy of every image
        "@recycle",
        "@recently-snapshot",
        "@sharebin",
        "@tmp",
        "@__thumb",  # QNAP: thumbnails again
        "#recycle",
        "#snapshot",
        "~snapshot",
        "$recycle.bin",
        "system volume information",
        "found.000",
        "network trash folder",
        "temporary items",
        "lost+found",
        "__macosx",
    }
)
"""Names, in lower case, of folders that operating systems and network storage make on their own."""

_SYSTEM_FILES = frozenset(
    {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r"}
)
"""Names, in lower case, of files that they make; no more is said of them than of hidden files."""


@dataclass
class LeftOut:
    """What walks through folders left out, apart from hidden names and files of the system.

    Attributes:
        others: files that are not called like an image, by the ends of their names.
        system: folders in `SYSTEM_FOLDERS`, by name.
    """

    others: Counter[str] = field(default_factory=Counter)
    system: Counter[str] = field(default_factory=Counter)

    def notes(self, where: str | Path) -> list[str]:
        """Return a line for each kind of thing that was left out.

        Args:
            where: the folder that was walked.
        """
        notes = []
        if self.others:
            count, kinds = counted(self.others.total(), "file"), _listed(self.others)
            heic = [end for end in self.others if end in HEIC_EXTENSIONS]
            how = "; pip install 'tuplet[heic]' to read HEIC" if heic else ""
            notes.append(f"{count} below {where}, by name no images, left out: {kinds}{how}")
        if self.system:
            count = counted(self.system.total(), "folder")
            notes.append(f"{count} below {where}, made by the system, left out: {_listed(self.system)}")
        return notes


def is_image(file: str) -> bool:
    """Return whether a file is called like an image that can be decoded."""
    return Path(file).suffix.lower() in image_extensions()


def images_below(
    folder: str | Path,
    left_out: LeftOut,
    *,
    entered: set[str] | None = None,
    unlisted: dict[str, str] | None = None,
) -> list[str]:
    """Return all files at any depth that are called like images; links are followed, each folder once.

    Args:
        folder: where.
        left_out: what is left out is added to it.
        entered: real paths of folders that are not to be entered, which ends loops of links; those that are
            entered are added.
        unlisted: folders that cannot be listed are added, with the reason; None: they raise DataError.
    """
    entered, real = set() if entered is None else entered, os.path.realpath(folder)
    if real in entered:
        return []
    entered.add(real)
    try:
        folders, files = _scanned(folder, left_out)
    except OSError as error:
        if unlisted is None:
            raise not_listed(folder, error) from error
        unlisted[str(folder)] = error.strerror or type(error).__name__
        return []
    images = []
    for file in files:
        if is_image(file):
            images.append(file)
        else:
            left_out.others[Path(file).suffix.lower() or "no extension"] += 1
    for inner in folders:
        images += images_below(inner, left_out, entered=entered, unlisted=unlisted)
    return images


def entries(folder: Path, left_out: LeftOut | None = None) -> tuple[list[str], list[str]]:
    """Return (folders, files) right inside, sorted; a broken link counts as a file.

    Args:
        folder: where.
        left_out: the folders of the system are added to it.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        return _scanned(folder, left_out or LeftOut())
    except OSError as error:
        raise not_listed(folder, error) from error


def not_listed(folder: str | Path, error: OSError) -> DataError:
    """Return the error that a folder cannot be listed."""
    return unusable(folder, f"cannot be listed ({error.strerror})", "a folder to read")


def _scanned(folder: str | Path, left_out: LeftOut) -> tuple[list[str], list[str]]:
    folders, files = [], []
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                is_data = entry.name.lower() not in _SYSTEM_FILES and _is_file(entry)
                files += [entry.path] if is_data else []
            elif entry.name.lower() in SYSTEM_FOLDERS:
                left_out.system[entry.name] += 1
            else:
                folders.append(entry.path)
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # what cannot be looked at is what its name says; a link to itself is no folder
        return error.errno != errno.ELOOP and not is_image(entry.path)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() or entry.is_file()
    except OSError:
        return True


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({times})" for name, times in sorted(counts.items()))
