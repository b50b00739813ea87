"""CUB-200-2011 as it is downloaded: 200 species of birds, the first 100 for training."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tuplet.data.class_folders import class_images, entries
from tuplet.data.listing import Listing, by_class, folder_holding, list_rows, require_folder, whole_number
from tuplet.errors import InputError

_NUM_CLASSES = 200
_WANTED = "want the folder CUB_200_2011, the one that it lies in, or its folder images alone"


def read_cub(root: Path) -> Listing:
    """The images of the classes 1..100 to train on and 101..200 to be tested on.

    Args:
        root: CUB_200_2011, the folder that it lies in, or a folder of its class folders 001.* to 200.* alone.

    Raises:
        InputError: neither is there, or images.txt and image_class_labels.txt cannot be used.

    Source: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", CNS-TR-2011-001, 2011.
    """
    images = _folder_of_images(root)
    if images is not None and not (images.parent / "images.txt").is_file():
        notes: list[str] = []
        found = class_images(images, notes)
        named = {name: paths for name, paths in found.items() if _number(name) is not None}
        others = sorted(found.keys() - named.keys())
        if others:
            notes.append(f"beside the class folders, {', '.join(others)} in {images} is left out")
        rows = ((_number(name) or 0, name, path) for name, paths in named.items() for path in paths)
        return _listing(images, rows, notes)
    folder = images.parent if images is not None else folder_holding(root, ["images.txt"], _WANTED)
    return _listing(folder / "images.txt", _listed(folder))


def _folder_of_images(root: Path) -> Path | None:
    """The folder that holds the class folders, where there is one."""
    require_folder(root, _WANTED)
    for folder in (root, *map(Path, entries(root)[0])):
        for images in (folder, folder / "images"):
            if images.is_dir() and any(_number(Path(one).name) is not None for one in entries(images)[0]):
                return images
    return None


def _listed(folder: Path) -> list[tuple[int, str, str]]:
    """(class, name of its folder, path) of each image of images.txt."""
    file, labels = folder / "images.txt", folder / "image_class_labels.txt"
    classes = {}
    if labels.is_file():
        for at, (image, label) in list_rows(labels, 2, "1 1"):
            classes[image] = whole_number(label, labels, at, "class")
    rows = []
    for at, (image, path) in list_rows(file, 2, "1 001.Black_footed_Albatross/NAME.jpg"):
        name = path.partition("/")[0]
        number = _number(name)
        if number is None or "/" not in path:
            raise InputError(f"{file}, line {at} has {path!r}; want 001.CLASS/NAME.jpg, of a class in 1..200")
        if classes and classes.get(image) != number:
            said = f"says {classes[image]}" if image in classes else "has no line of it"
            raise InputError(
                f"{file}, line {at} puts image {image} into class {number}, while {labels} {said}; want both"
                " files of one whole download"
            )
        rows.append((number, name, str(folder / "images") + "/" + path))
    return rows


def _listing(source: Path, rows: Iterable[tuple[int, str, str]], notes: Iterable[str] = ()) -> Listing:
    rows = list(rows)
    half = _NUM_CLASSES // 2
    parts = {
        "train": by_class(row for row in rows if row[0] <= half),
        "test": by_class(row for row in rows if row[0] > half),
    }
    return Listing(source, parts, tuple(notes))


def _number(name: str) -> int | None:
    """The number of a class folder such as 001.Black_footed_Albatross."""
    found = re.match(r"(\d{3})\.", name)
    number = int(found[1]) if found else 0
    return number if 1 <= number <= _NUM_CLASSES else None
