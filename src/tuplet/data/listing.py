"""What the lists of a downloaded data set say, and whether the listed files are there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuplet.data.class_folders import Classes, entries
from tuplet.errors import InputError


@dataclass(frozen=True)
class Listing:
    """Classes and images by part, as a data set's own lists have them.

    Attributes:
        source: the file or folder that lists them, for messages.
        parts: train and test, or train, query and gallery: paths of the images of each class, in its order.
        notes: what a user should know of them, a line each.
    """

    source: Path
    parts: dict[str, Classes]
    notes: tuple[str, ...] = ()


def folder_holding(root: Path, names: Sequence[str], wanted: str) -> Path:
    """The folder that holds one of these: the root, or else a folder right below it.

    Args:
        root: what the user calls the data set's folder.
        names: files or folders, relative to the folder that is looked for.
        wanted: what the root must be, for the message: "want ...".

    Raises:
        InputError: no such root, or none of the names in it.
    """
    require_folder(root, wanted)
    for folder in (root, *map(Path, entries(root)[0])):
        if any((folder / name).exists() for name in names):
            return folder
    found = f"neither {', '.join(names[:-1])} nor {names[-1]}" if len(names) > 1 else f"no {names[0]}"
    raise InputError(f"data.root {root} holds {found}, nor does a folder in it; {wanted}")


def require_folder(root: Path, wanted: str) -> None:
    """Nothing; raises InputError where the root is no folder."""
    if not root.is_dir():
        raise InputError(f"data.root {root} {'is a file' if root.exists() else 'does not exist'}; {wanted}")


def list_rows(file: Path, num_fields: int, heading: str) -> list[tuple[int, list[str]]]:
    """The rows of a text file with blanks between its fields, each with the number of its line.

    Args:
        file: UTF-8, line ends of any system; empty lines are passed over.
        num_fields: fields of a row; further blanks belong to the last.
        heading: what a row looks like, for messages.

    Raises:
        InputError: the file cannot be read, or a row has fewer fields.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InputError(f"cannot read {file}: {said}; want the file as it was downloaded") from None
    rows = [(at, line.strip().split(None, num_fields - 1)) for at, line in enumerate(lines, 1)]
    rows = [row for row in rows if row[1]]
    for at, fields in rows:
        if len(fields) < num_fields:
            raise InputError(f"{file}, line {at} is {lines[at - 1].strip()!r}; want {heading!r}")
    return rows


def whole_number(text: str, file: Path, at: int, what: str) -> int:
    """A number, 1 or more, in a line of a list; raises InputError where it is none."""
    if not (text.isdecimal() and int(text) >= 1):
        raise InputError(f"{file}, line {at} has {what} {text!r}; want a number, 1 or more")
    return int(text)


def by_class(images: Iterable[tuple[int, str, str]]) -> Classes:
    """The images of each class, classes by their number, images in the order given.

    Args:
        images: (number of the class, name of the class, path) of each.
    """
    classes: dict[tuple[int, str], list[str]] = {}
    for number, name, path in images:
        classes.setdefault((number, name), []).append(path)
    return {name: paths for (_, name), paths in sorted(classes.items())}


def absent_files(paths: Iterable[str]) -> list[str]:
    """Those of the paths that are not on disk; each folder is read once and no file is looked at."""
    names: dict[str, frozenset[str]] = {}
    absent = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in names:
            names[folder] = _names(folder)
        if name not in names[folder]:
            absent.append(path)
    return absent


def _names(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder or os.curdir) as found:
            return frozenset(entry.name for entry in found)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}; want a folder to read") from error
