"""Image folders: one folder a class, split by the user or by us."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tuplet.data.class_folders import Progress, class_images, entries, is_image, without_unreadable
from tuplet.data.labelled_files import FileImages, split_of, table_of
from tuplet.data.splits import halves
from tuplet.data.table import Split
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
    return split_of(root, scanned, min_side=min_side, skipped=skipped, notes=notes)


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
    return table_of(classes, min_side), tuple(notes)


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
