"""Class folders on disk: one folder a class, its images at any depth, split by the user or by us."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from tuplet.data.decoding import UnreadableImageError, decode_image, image_extensions
from tuplet.data.image_tables import ClassPaths, FileImages, Progress, file_images
from tuplet.data.splits import Split, halves, split_of_classes
from tuplet.errors import InputError, counted

_LAYOUTS = (("train", "test"), ("train", "query", "gallery"))
_WANTED = (
    "want root/train/<class>/* and root/test/<class>/*, or train, query and gallery, or root/<class>/* to be"
    " split by class"
)


def load_folder(
    root: Path,
    *,
    train_fraction: float = 0.5,
    split_seed: int | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
    min_side: int | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> Split:
    """The split that lies in a folder: root/train/<class>/* and root/test/<class>/*, or root/<class>/*.

    Or root/train, root/query and root/gallery: then the test images are queries that search the gallery.

    An image may lie at any depth below the folder of its class; links are followed, each folder once. Names
    that begin with a dot or do not end like an image are left out, and counted in the notes unless hidden.

    Args:
        root: the folder.
        train_fraction: share of the classes of root/<class>/* that trains, in (0, 1).
        split_seed: None: the first classes by name train; a number >= 0: a random share.
        on_bad_image: stop: nothing is decoded now, and an unreadable image raises when it is asked for.
            skip: all are decoded once now, and the unreadable ones left out and listed.
        min_side: see `decode_image`.
        num_workers: threads that decode for `skip`, >= 0; 0 decodes in this one.
        progress: wraps the numbers of the images decoded for `skip`.

    Returns: classes and images by name; without empty classes.

    Raises:
        InputError: no such layout, fewer than two training classes, a class both trained and tested, no test
            class with two images, or no query with an image of its class in the gallery.
    """
    notes: list[str] = []
    sides = _layout(Path(root), notes)
    scanned = [class_images(side, notes) for side in sides]
    skipped: list[str] = []
    if on_bad_image == "skip":
        scanned = [without_unreadable(classes, skipped, num_workers, progress) for classes in scanned]
    if not any(scanned):
        raise InputError(f"{root} holds no images that can be read; {_WANTED}")
    if len(scanned) == 1:
        parts = halves(tuple(scanned[0]), train_fraction=train_fraction, seed=split_seed)
        scanned = [{name: scanned[0][name] for name in part} for part in parts]
    return split_of_classes(root, scanned, min_side=min_side, skipped=skipped, notes=notes)


def load_images(
    folder: Path,
    *,
    on_bad_image: Literal["stop", "skip"] = "stop",
    min_side: int | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> tuple[FileImages, tuple[str, ...]]:
    """All images of folder/<class>/*, and what a user should know of them, a line each.

    Args:
        folder: holds a folder a class.
        on_bad_image: as in `load_folder`; how many were skipped is among the lines.
        min_side: see `decode_image`.
        num_workers: as in `load_folder`.
        progress: as in `load_folder`.

    Raises:
        InputError: no such folder, no images, or one that holds train or test folders itself.
    """
    wanted = "want a folder of class folders, FOLDER/<class>/*"
    if not folder.is_dir():
        raise InputError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; {wanted}")
    sides = _sides(folder)
    if sides:
        raise InputError(
            f"{folder} holds {' and '.join(sides)}, which would be taken for classes; want one of them, such"
            f" as {folder / sides[min(1, len(sides) - 1)]}"
        )
    notes: list[str] = []
    skipped: list[str] = []
    classes = class_images(folder, notes)
    if on_bad_image == "skip":
        classes = without_unreadable(classes, skipped, num_workers, progress)
    if not classes:
        raise InputError(f"{folder} holds no images that can be read; {wanted}")
    if skipped:
        notes.append(f"{counted(len(skipped), 'image')} cannot be read, left out; the first: {skipped[0]}")
    return file_images(classes, min_side), tuple(notes)


def _layout(root: Path, notes: list[str]) -> list[Path]:
    """The folders that hold class folders: train and test, or the root alone."""
    if not root.exists():
        raise InputError(f"data.root {root} does not exist; {_WANTED}")
    if not root.is_dir():
        raise InputError(f"data.root {root} is a file; {_WANTED}")
    folders, files = entries(root)
    names = {Path(folder).name: Path(folder) for folder in folders}
    for layout in _LAYOUTS:
        if names.keys() >= set(layout):
            others = sorted(names.keys() - set(layout))
            if others:
                beside = f"{', '.join(layout[:-1])} and {layout[-1]}"
                notes.append(f"beside {beside}, {', '.join(others)} in {root} is left out")
            return [names[side] for side in layout]
    present = _sides(root)
    if present:
        layout = next(layout for layout in _LAYOUTS if present[-1] in layout)
        absent = next(side for side in reversed(layout) if side not in names)
        raise InputError(f"{root} has a folder {present[-1]} but none called {absent}; {_WANTED}")
    if not folders:
        found = "its images right inside" if any(map(is_image, files)) else "no folders inside"
        raise InputError(f"data.root {root} has {found}; {_WANTED}")
    return [root]


def _sides(root: Path) -> list[str]:
    """Folders that are called like a side of a split and hold folders of classes, by layout."""
    # A folder of this name with images right in it is a class, of vehicles for example.
    names = dict.fromkeys(side for layout in _LAYOUTS for side in layout)
    return [name for name in names if (root / name).is_dir() and entries(root / name)[0]]


def class_images(side: Path, notes: list[str]) -> ClassPaths:
    """The images of each class folder below `side`, but of those without any.

    Args:
        side: folder of class folders, each of which may hold images at any depth; links are followed.
        notes: what was left out is added to it, a line each.
    """
    folders, loose = entries(side)
    num_loose = sum(map(is_image, loose))
    if num_loose:
        notes.append(f"{counted(num_loose, 'image')} right inside {side}, without a class folder, left out")
    above = {os.path.realpath(side), os.path.realpath(side.parent)}
    others: Counter[str] = Counter()
    classes: ClassPaths = {}
    for folder in folders:
        files = files_below(folder, set(above))
        images = [file for file in files if is_image(file)]
        others.update(Path(file).suffix.lower() or "no extension" for file in files if not is_image(file))
        if images:
            classes[Path(folder).name] = images
        else:
            notes.append(f"class folder {folder} has no images and is left out")
    if others:
        kinds = ", ".join(f"{end} ({times})" for end, times in sorted(others.items()))
        notes.append(f"{counted(others.total(), 'file')} below {side}, by name no images, left out: {kinds}")
    return classes


def files_below(folder: str, seen: set[str], unlisted: dict[str, str] | None = None) -> list[str]:
    """All files at any depth.

    Args:
        folder: where.
        seen: the folders already entered, which ends loops of links; those that are entered are added.
        unlisted: folders that cannot be listed are added, with the reason; None: they raise InputError.
    """
    real = os.path.realpath(folder)
    if real in seen:
        return []
    seen.add(real)
    try:
        folders, files = _scanned(Path(folder))
    except OSError as error:
        if unlisted is None:
            raise _not_listed(folder, error) from error
        unlisted[folder] = error.strerror or type(error).__name__
        return []
    return files + [file for inner in folders for file in files_below(inner, seen, unlisted)]


def entries(folder: Path) -> tuple[list[str], list[str]]:
    """(folders, files) right inside, sorted, without hidden ones; a broken link counts as a file."""
    try:
        return _scanned(folder)
    except OSError as error:
        raise _not_listed(folder, error) from error


def _scanned(folder: Path) -> tuple[list[str], list[str]]:
    with os.scandir(folder) as found:
        shown = [entry for entry in found if not entry.name.startswith(".") and entry.name != "Thumbs.db"]
    folders = [entry.path for entry in shown if _is_folder(entry)]
    files = [entry.path for entry in shown if not _is_folder(entry) and _is_file(entry)]
    return sorted(folders), sorted(files)


def _not_listed(folder: str | Path, error: OSError) -> InputError:
    return InputError(f"cannot list {folder}: {error.strerror}; want a folder to read")


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


def is_image(file: str) -> bool:
    """Whether a file is called like an image that can be decoded."""
    return Path(file).suffix.lower() in image_extensions()


def without_unreadable(
    classes: ClassPaths, skipped: list[str], num_workers: int, progress: Progress | None
) -> ClassPaths:
    """The images that can be decoded; all are decoded once to see.

    Args:
        classes: as `class_images` found them.
        skipped: the others are added to it, as "path: reason".
        num_workers: threads that decode, >= 0; 0 decodes in this one.
        progress: wraps the numbers of the images.
    """
    paths = [path for images in classes.values() for path in images]
    rows = range(len(paths)) if progress is None else progress(range(len(paths)))
    # Threads, for Pillow's decoders release the interpreter's lock, and none need be sent anything.
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        reasons = [reason for _, reason in zip(rows, pool.map(_unreadable, paths), strict=True)]
    bad = {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}
    skipped += [f"{path}: {reason}" for path, reason in bad.items()]
    kept = {name: [path for path in images if path not in bad] for name, images in classes.items()}
    return {name: images for name, images in kept.items() if images}


def _unreadable(path: str) -> str:
    """Why an image cannot be decoded; empty where it can."""
    try:
        decode_image(Path(path))
    except UnreadableImageError as error:
        return error.reason
    return ""


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
