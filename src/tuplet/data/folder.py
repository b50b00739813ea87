"""Image folders: one folder a class, split by the user or by us."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias, final

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from tuplet.data.images import UnreadableImageError, decode_image, image_extensions
from tuplet.data.splits import halves
from tuplet.data.table import ImageTable, Split
from tuplet.errors import InputError

Progress: TypeAlias = Callable[[Iterable[int]], Iterable[int]]
"""Hands on `range(n)` unchanged and shows how far it has come, such as `rich.progress.track`."""

_Classes: TypeAlias = dict[str, list[str]]
_WANTED = "want root/train/<class>/* and root/test/<class>/*, or root/<class>/* to be split by class"


@final
class FileImages(ImageTable):
    """Images that are decoded from their files whenever they are asked for.

    Attributes:
        paths: file of each image.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Int64[np.ndarray, " N"],
        class_names: Sequence[str],
        *,
        min_side: int | None = None,
    ) -> None:
        """Args are those of `ImageTable` and `decode_image`."""
        super().__init__(labels, class_names)
        self.paths = tuple(paths)
        self._min_side = min_side

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """RGB pixels of one file; raises UnreadableImageError where it cannot be decoded."""
        return decode_image(Path(self.paths[index]), min_side=self._min_side)

    def name(self, index: int) -> str:
        """Path of one file."""
        return self.paths[index]


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
        InputError: no such layout, fewer than two training classes, a class in both splits, or no test class
            with two images.
    """
    notes: list[str] = []
    sides = _layout(Path(root), notes)
    scanned = [_class_images(side, notes) for side in sides]
    skipped: list[str] = []
    if on_bad_image == "skip":
        scanned = [_without_unreadable(classes, skipped, num_workers, progress) for classes in scanned]
    if not any(scanned):
        raise InputError(f"{root} holds no images that can be read; {_WANTED}")
    if len(scanned) == 1:
        parts = halves(tuple(scanned[0]), train_fraction=train_fraction, seed=split_seed)
        scanned = [{name: scanned[0][name] for name in part} for part in parts]
    train, test = scanned
    _require_enough(root, train, test)
    notes += _notes(train, test)
    return Split(_table(train, min_side), _table(test, min_side), tuple(skipped), tuple(notes))


def _layout(root: Path, notes: list[str]) -> list[Path]:
    """The folders that hold class folders: train and test, or the root alone."""
    if not root.exists():
        raise InputError(f"data.root {root} does not exist; {_WANTED}")
    if not root.is_dir():
        raise InputError(f"data.root {root} is a file; {_WANTED}")
    folders, files = _entries(root)
    names = {Path(folder).name: Path(folder) for folder in folders}
    if "train" in names and "test" in names:
        others = sorted(names.keys() - {"train", "test"})
        if others:
            notes.append(f"beside train and test, {', '.join(others)} in {root} is left out")
        return [names["train"], names["test"]]
    for present, absent in (("train", "test"), ("test", "train")):
        # A folder of this name with images right in it is a class, of vehicles for example.
        if present in names and _entries(names[present])[0]:
            raise InputError(f"{root} has a folder {present} but none called {absent}; {_WANTED}")
    if not folders:
        found = "its images right inside" if any(map(_is_image, files)) else "no folders inside"
        raise InputError(f"data.root {root} has {found}; {_WANTED}")
    return [root]


def _class_images(side: Path, notes: list[str]) -> _Classes:
    """Paths of the images of each class folder below `side`, both by name."""
    folders, loose = _entries(side)
    num_loose = sum(map(_is_image, loose))
    if num_loose:
        notes.append(f"{_count(num_loose, 'image')} right inside {side}, without a class folder, left out")
    above = {os.path.realpath(side), os.path.realpath(side.parent)}
    others: Counter[str] = Counter()
    classes: _Classes = {}
    for folder in folders:
        files = _files_below(folder, set(above))
        images = [file for file in files if _is_image(file)]
        others.update(Path(file).suffix.lower() or "no extension" for file in files if not _is_image(file))
        if images:
            classes[Path(folder).name] = images
        else:
            notes.append(f"class folder {folder} has no images and is left out")
    if others:
        kinds = ", ".join(f"{end} ({count})" for end, count in sorted(others.items()))
        notes.append(f"{_count(others.total(), 'file')} below {side}, by name no images, left out: {kinds}")
    return classes


def _files_below(folder: str, seen: set[str]) -> list[str]:
    """All files at any depth; `seen`, the folders already entered, ends loops of links."""
    real = os.path.realpath(folder)
    if real in seen:
        return []
    seen.add(real)
    folders, files = _entries(Path(folder))
    return files + [file for inner in folders for file in _files_below(inner, seen)]


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """(folders, files) right inside, sorted, without hidden ones; a broken link counts as a file."""
    try:
        with os.scandir(folder) as entries:
            shown = [
                entry for entry in entries if not entry.name.startswith(".") and entry.name != "Thumbs.db"
            ]
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}; want a folder to read") from error
    folders = [entry.path for entry in shown if _is_folder(entry)]
    files = [
        entry.path for entry in shown if not _is_folder(entry) and (entry.is_symlink() or entry.is_file())
    ]
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(file: str) -> bool:
    return Path(file).suffix.lower() in image_extensions()


def _without_unreadable(
    classes: _Classes, skipped: list[str], num_workers: int, progress: Progress | None
) -> _Classes:
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


def _require_enough(root: Path, train: _Classes, test: _Classes) -> None:
    if len(train) < 2:
        raise InputError(
            f"{_count(len(train), 'training class')} with images in {root}; want 2 or more, for the loss"
            " tells classes apart: add class folders or raise data.train_fraction"
        )
    if not any(len(images) > 1 for images in test.values()):
        raise InputError(
            f"none of the {len(test)} test classes of {root} has two images; want one that has, for a query"
            " looks for another image of its class"
        )


def _notes(train: _Classes, test: _Classes) -> list[str]:
    notes = []
    lonely = sum(len(images) == 1 for images in train.values())
    if lonely:
        notes.append(
            f"{_count(lonely, 'training class')} with one image: nothing shows what varies within it"
        )
    single = sum(len(images) == 1 for images in test.values())
    if single:
        notes.append(
            f"{_count(single, 'test class')} with one image: no query can find it, left out of Recall"
        )
    if len(test) == 1:
        notes.append("there is one test class: every neighbour is right, and every measure perfect")
    return notes


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def _table(classes: _Classes, min_side: int | None) -> FileImages:
    sizes = [len(images) for images in classes.values()]
    labels = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    paths = [path for images in classes.values() for path in images]
    return FileImages(paths, labels, tuple(classes), min_side=min_side)
