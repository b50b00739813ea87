"""Class folders on disk: one folder a class, its images at any depth, split by the user or by us."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tuplet.data.image_tables import FileImages
from tuplet.data.shared_images import without_queries
from tuplet.data.splits import ClassPaths, ReadSettings, Split, file_images, readable, split_of_classes
from tuplet.data.walk import LeftOut, entries, images_below, is_image, not_listed
from tuplet.errors import DataError, counted, unusable

LAYOUTS = (("train", "test"), ("train", "query", "gallery"))
"""The parts that a user may split images into."""

_NO_IMAGES = "holds no images that can be read"
_WANTED = (
    "root/train/<class>/* and root/test/<class>/*, or train, query and gallery, or root/<class>/* to be"
    " split by class"
)


def load_folder(root: Path, settings: ReadSettings | None = None) -> Split:
    """Read the split in a folder: root/train/<class>/* and root/test/<class>/*, or root/<class>/*.

    Or root/train, root/query and root/gallery: then the test images are queries that search the gallery.

    An image may lie at any depth below the folder of its class; links are followed, each folder once. Names
    that begin with a dot or do not end like an image are left out, and counted in the notes unless hidden.

    Args:
        root: the folder.
        settings: how to read the images, and how to split the classes of root/<class>/*.

    Returns: classes and images by name; without empty classes.

    Raises:
        DataError: no such layout, or what `split_of_classes` raises.
    """
    settings, notes = settings or ReadSettings(), list[str]()
    parts = [class_images(side, notes) for side in _layout(root, notes)]
    parts, skipped = readable(parts, settings)
    if not any(parts):
        raise unusable(root, _NO_IMAGES, _WANTED)
    if len(parts) == 3:
        parts[2], left_out = without_queries(parts[2], parts[1], root)
        notes += left_out
    return split_of_classes(root, parts, settings, skipped=skipped, notes=notes)


def load_images(folder: Path, settings: ReadSettings | None = None) -> tuple[FileImages, tuple[str, ...]]:
    """Read all images of folder/<class>/*, and return them with notes of what a user should know of them.

    Args:
        folder: holds a folder a class.
        settings: how to read the images; how many were skipped is among the notes.

    Raises:
        DataError: no such folder, no images, or one that holds train or test folders itself.
    """
    settings, notes = settings or ReadSettings(), list[str]()
    wanted = "a folder of class folders, FOLDER/<class>/*"
    if not folder.is_dir():
        raise unusable(folder, "is a file" if folder.exists() else "does not exist", wanted)
    sides = _sides(folder)
    if sides:
        raise unusable(
            folder,
            f"holds {' and '.join(sides)}, which would be taken for classes",
            f"one of them, such as {folder / sides[min(1, len(sides) - 1)]}",
        )
    (classes,), skipped = readable([class_images(folder, notes)], settings)
    if not classes:
        raise unusable(folder, _NO_IMAGES, wanted)
    if skipped:
        notes.append(f"{counted(len(skipped), 'image')} cannot be read, left out; the first: {skipped[0]}")
    return file_images(classes, settings.min_side), tuple(notes)


def _layout(root: Path, notes: list[str]) -> list[Path]:
    """Return the folders that hold class folders: those of a split, or the root alone."""
    require_folder(root, _WANTED)
    left_out = LeftOut()
    folders, files = entries(root, left_out)
    names = {Path(folder).name: Path(folder) for folder in folders}
    for layout in LAYOUTS:
        if names.keys() >= set(layout):
            others = sorted(names.keys() - set(layout))
            if others:
                beside = f"{', '.join(layout[:-1])} and {layout[-1]}"
                notes.append(f"beside {beside}, {', '.join(others)} in {root} is left out")
            notes += left_out.notes(root)
            return [names[side] for side in layout]
    present = _sides(root)
    if present:
        layout = next(layout for layout in LAYOUTS if present[-1] in layout)
        absent = next(side for side in reversed(layout) if side not in names)
        raise unusable(root, f"has a folder {present[-1]} but none called {absent}", _WANTED)
    if not folders:
        found = "its images right inside" if any(map(is_image, files)) else "no folders inside"
        raise root_error(root, f"has {found}", _WANTED)
    return [root]


def _sides(root: Path) -> list[str]:
    """Return the folders that are called like a side of a split and hold folders of classes, by layout."""
    # A folder of this name with images right in it is a class, of vehicles for example.
    names = dict.fromkeys(side for layout in LAYOUTS for side in layout)
    return [name for name in names if (root / name).is_dir() and entries(root / name)[0]]


def require_folder(root: Path, wanted: str) -> None:
    """Raise DataError unless the root of the data is a folder."""
    if not root.is_dir():
        raise root_error(root, "is a file" if root.exists() else "does not exist", wanted)


def root_error(root: Path, problem: str, wanted: str) -> DataError:
    """Return the error that data.root is not what is wanted."""
    return DataError(f"data.root {root} {problem}; want {wanted}", subject="data.root", given=root)


def class_images(side: Path, notes: list[str]) -> ClassPaths:
    """Return the images of each class folder below `side`, without the folders that have none.

    Args:
        side: folder of class folders, each of which may hold images at any depth; links are followed.
        notes: what was left out is added to it, a line each.
    """
    left_out = LeftOut()
    folders, loose = entries(side, left_out)
    num_loose = sum(map(is_image, loose))
    if num_loose:
        notes.append(f"{counted(num_loose, 'image')} right inside {side}, without a class folder, left out")
    above = {os.path.realpath(side), os.path.realpath(side.parent)}
    classes: ClassPaths = {}
    for folder in folders:
        images = images_below(folder, left_out, entered=set(above))
        if images:
            classes[Path(folder).name] = images
        else:
            notes.append(f"class folder {folder} has no images and is left out")
    notes += left_out.notes(side)
    return classes


def require_files(parts: Sequence[ClassPaths], title: str, source: Path, wanted: str) -> None:
    """Raise DataError where listed images are not on disk; each folder is listed once and no file is opened.

    Args:
        parts: the images, by part and class.
        title: what they are the images of.
        source: the file or folder that lists them.
        wanted: what to do, for the message.
    """
    paths = [path for part in parts for images in part.values() for path in images]
    names: dict[str, frozenset[str]] = {}
    absent = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in names:
            try:
                names[folder] = frozenset(os.listdir(folder or os.curdir))  # noqa: PTH208
            except (FileNotFoundError, NotADirectoryError):
                names[folder] = frozenset()
            except OSError as error:
                raise not_listed(folder, error) from error
        if name not in names[folder]:
            absent.append(path)
    if absent:
        first = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        images = f"{len(absent):,} of the {counted(len(paths), 'image')} of {title}"
        raise DataError(f"{images} are not on disk: {first}; want {wanted}", subject=source, given=absent)
