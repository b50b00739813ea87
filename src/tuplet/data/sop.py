"""Stanford Online Products as it is downloaded: 22,634 products of an online shop, split by its own lists."""

from __future__ import annotations

from pathlib import Path

from tuplet.data.class_folders import Classes
from tuplet.data.listing import Listing, by_class, folder_holding, list_rows, whole_number
from tuplet.errors import InputError

_TRAIN, _TEST = "Ebay_train.txt", "Ebay_test.txt"
_HEADING = "image_id class_id super_class_id path"
_WANTED = "want the folder Stanford_Online_Products or the one that it lies in"


def read_sop(root: Path) -> Listing:
    """The images that Ebay_train.txt and Ebay_test.txt list; classes are called by their class_id.

    Args:
        root: Stanford_Online_Products, or the folder that it lies in.

    Raises:
        InputError: the lists are not there or cannot be used.

    Source: Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016.
    """
    folder = folder_holding(root, [_TRAIN, _TEST], _WANTED)
    parts = {"train": _listed(folder, _TRAIN), "test": _listed(folder, _TEST)}
    return Listing(folder / _TRAIN, parts)


def _listed(folder: Path, name: str) -> Classes:
    file = folder / name
    if not file.is_file():
        raise InputError(f"{folder} has no {name}; {_WANTED}, with both {_TRAIN} and {_TEST}")
    rows = list_rows(file, 4, _HEADING)
    if not rows or rows[0][1] != _HEADING.split():
        first = " ".join(rows[0][1]) if rows else ""
        raise InputError(f"{file} begins with {first!r}; want the line {_HEADING!r} first, as downloaded")
    images = []
    for at, (_, label, _, path) in rows[1:]:
        number = whole_number(label, file, at, "class_id")
        images.append((number, str(number), f"{folder}/{path}"))
    return by_class(images)
