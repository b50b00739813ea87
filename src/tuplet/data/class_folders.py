"""Class folders on disk: one folder per class, its images at any depth, split by the user or by us."""

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
_PARTS = {
    **{name: name for name in ("train", "test", "query", "gallery")},
    **{"training": "train", "testing": "test", "queries": "query"},
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}

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
    sides = _layout(root, notes)
    parts = [class_images(side, notes) for side in sides]
    for side, classes in zip(sides, parts, strict=True):
        _require_level(side, classes, notes, is_root=len(sides) == 1, is_split=True)
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
        folder: holds a folder per class.
        settings: how to read the images; how many were skipped is among the notes.

    Raises:
        DataError: no such folder, no images, or one that holds train or test folders itself.
    """
    settings, notes = settings or ReadSettings(), list[str]()
    wanted = "a folder of class folders, FOLDER/<class>/*"
    if not folder.is_dir():
        raise unusable(folder, "is a file" if folder.exists() else "does not exist", wanted)
    sides = list(_sides(folder).values())
    if sides:
        names = " and ".join(side.name for side in sides)
        such_as = f"one of them, such as {sides[min(1, len(sides) - 1)]}"
        raise unusable(folder, f"holds {names}, which would be taken for classes", such_as)
    classes = class_images(folder, notes)
    _require_level(folder, classes, notes, is_root=True)
    (classes,), skipped = readable([classes], settings)
    if not classes:
        raise unusable(folder, _NO_IMAGES, wanted)
    if skipped:
        notes.append(f"{counted(len(skipped), 'image')} cannot be read, left out; the first: {skipped[0]}")
    return file_images(classes, settings.min_side), tuple(notes)


def part_named(name: str) -> str:
    """Return the part of a split that a name such as "Training" stands for; "" where it stands for none."""
    return _PARTS.get(name.lower(), "")


def _layout(root: Path, notes: list[str]) -> list[Path]:
    """Return the folders that hold class folders: those of a split, or the root alone."""
    require_folder(root, _WANTED)
    left_out = LeftOut()
    folders, files = entries(root, left_out)
    names = {Path(folder).name: Path(folder) for folder in folders}
    sides = _sides(root)
    for parts in (names, sides):
        for layout in LAYOUTS:
            if parts.keys() >= set(layout):
                chosen = [parts[part] for part in layout]
                *first, last = (path.name for path in chosen)
                others = sorted(names.keys() - {*first, last})
                if others:
                    beside = f"{', '.join(first)} and {last}"
                    notes.append(f"beside {beside}, {', '.join(others)} in {root} is left out")
                loose = sum(map(is_image, files))
                if loose:
                    notes.append(f"{counted(loose, 'image')} right inside {root}, beside {last}, left out")
                notes += left_out.notes(root)
                return chosen
    if sides:
        part = [part for part in sides if part != "validation"][-1]
        layout = next(layout for layout in LAYOUTS if part in layout)
        absent = next(part for part in reversed(layout) if part not in {**names, **sides})
        wanted = _WANTED
        if absent == "test" and "validation" in sides:
            wanted = f"{sides['validation'].name} renamed to test, to be measured on it; or {wanted}"
        raise unusable(root, f"has a folder {sides[part].name} but none called {absent}", wanted)
    if not folders:
        if any(map(is_image, files)):
            # Who has no classes wants to search, which needs a model and no labels.
            wanted = f"{_WANTED}; tuplet index takes images without classes, with a model trained on others"
            raise root_error(root, "has its images right inside", wanted)
        raise root_error(root, "has no folders inside", _WANTED)
    return [root]


def _sides(root: Path) -> dict[str, Path]:
    """Return the folders that are parts of a split, by part: they are called so and hold folders of classes.

    Raises:
        DataError: two folders are the same part, such as Train and training.
    """
    found: dict[str, Path] = {}
    for folder in map(Path, entries(root)[0]):
        part = part_named(folder.name)
        # A folder of this name with images right in it is a class, of vehicles for example.
        if not part or not entries(folder)[0]:
            continue
        other = found.setdefault(part, folder)
        if folder.name == part:
            found[part] = folder
        elif other not in (folder, root / part):
            raise unusable(root, f"has both {other.name} and {folder.name}", f"one folder {part}")
    # A single folder called Training among others may be a class too; two such names are a split.
    is_split = len(found) > 1 or any(folder.name in LAYOUTS[0] + LAYOUTS[1] for folder in found.values())
    return {part: found[part] for part in _PARTS if part in found} if is_split else {}


def _require_level(
    side: Path, classes: ClassPaths, notes: list[str], *, is_root: bool, is_split: bool = False
) -> None:
    """Question class folders that hold only folders: these may be the classes."""
    folders = {name: {os.path.dirname(path) for path in paths} for name, paths in classes.items()}  # noqa: PTH120
    if not classes or any(str(side / name) in inner for name, inner in folders.items()):
        return
    if is_root and is_split and len(classes) == 2:  # too few to be split by class: they are something else
        names = " and ".join(classes)
        raise unusable(side, f"has two folders with images, {names}, which hold only folders", _WANTED)
    if len(classes) > 1:
        notes.append(
            f"the class folders of {side} hold only folders: each is one class, with all images at any depth"
        )
        return
    ((name, inner),) = folders.items()
    level = os.path.commonpath(inner)
    if level not in inner:
        problem = f"has one folder with images, {name}, which holds only folders and would be the only class"
        if is_root:
            raise unusable(side, problem, f"{level}, the folder right above the class folders")
        raise unusable(side, problem, f"the class folders moved up, from {level} to {side}")


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
