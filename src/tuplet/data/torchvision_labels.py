"""The labels of a data set of torchvision, without opening its images where it keeps them in an attribute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from tuplet.data.class_folders import Progress
from tuplet.data.images import UnreadableImageError
from tuplet.errors import InputError

_LABELS = (
    "targets",
    "_labels",
    "labels",
    "identity",
    "y",
    "_samples",
    "samples",
    "_flat_character_images",
    "index",
)
_NAMES = ("classes", "categories", "_characters", "all_categories")


def labels_of(dataset: str, part: Any, progress: Progress | None) -> Int64[np.ndarray, " N"]:
    """The label of each image: from an attribute, where one agrees with what is handed out, or one by one.

    Args:
        dataset: what the data set is called, for messages.
        part: an object of torchvision's class.
        progress: wraps the numbers of the images where each has to be opened.

    Raises:
        InputError: its images have not one label each, or cannot be read.
    """
    size = _size(dataset, part)
    handed = _some_labels(dataset, part, sorted({0, size // 2, size - 1}))
    for name in _LABELS:
        found = _integers(getattr(part, name, None), size)
        if found is not None and all(found[row] == label for row, label in handed.items()):
            return found
    rows: Iterable[int] = range(size) if progress is None else progress(range(size))
    return np.array([_label(dataset, part, row) for row in rows], dtype=np.int64)


def _size(dataset: str, part: Any) -> int:
    try:
        size = len(part)
    except (TypeError, NotImplementedError):
        size = 0
    if size == 0:
        raise unlabelled(dataset, "it has no images that can be counted")
    return size


def _some_labels(dataset: str, part: Any, rows: Sequence[int]) -> dict[int, int]:
    """The labels handed out with those of the images that can be opened, at least one."""
    handed, said = {}, ""
    for row in rows:
        try:
            handed[row] = _label(dataset, part, row)
        except UnreadableImageError as error:
            said = said or str(error)
    if not handed:
        raise InputError(said)
    return handed


def _label(dataset: str, part: Any, row: int) -> int:
    try:
        item = part[row]
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableImageError(
            f"torchvision cannot read image {row} of {dataset} ({said}); want it whole: download it again"
        ) from None
    for one in item if isinstance(item, tuple) else ():
        if isinstance(one, Image.Image):
            one.close()  # some data sets open the file and leave the reading to whoever wants the pixels
    pair = item if isinstance(item, tuple) and len(item) == 2 else (None, None)
    label = pair[1].item() if isinstance(pair[1], Tensor) and pair[1].numel() == 1 else pair[1]
    if not isinstance(pair[0], Image.Image) or not isinstance(label, int | np.integer):
        kinds = ", ".join(type(one).__name__ for one in (item if isinstance(item, tuple) else (item,)))
        raise unlabelled(dataset, f"what it hands out is {kinds}, not an image and a number")
    if label < 0:
        raise unlabelled(dataset, f"image {row} has the label {label}")
    return int(label)


def _integers(values: Any, size: int) -> Int64[np.ndarray, " N"] | None:
    """An attribute as labels; None where it is something else."""
    if values is None or not isinstance(values, Sequence | np.ndarray | Tensor) or len(values) != size:
        return None
    if isinstance(values[0], tuple | list):
        # Pairs of a path and a label, in either order.
        places = [place for place, value in enumerate(values[0]) if isinstance(value, int | np.integer)]
        if len(places) != 1:
            return None
        values = [pair[places[0]] for pair in values]
    found = np.asarray(values)
    found = found[:, 0] if found.ndim == 2 else found
    return found.astype(np.int64) if found.ndim == 1 and found.dtype.kind in "iu" else None


def names_of(part: Any, labels: Int64[np.ndarray, " N"]) -> list[str]:
    """The name of each label in 0..C-1, or its number where the data set does not name them.

    Args:
        part: an object of torchvision's class.
        labels: of its images.
    """
    count = int(labels.max()) + 1
    for attribute in _NAMES:
        names = getattr(part, attribute, None)
        if isinstance(names, list | tuple) and count <= len(names) == len(set(map(str, names))):
            return [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]
    return [str(label) for label in range(count)]


def unlabelled(dataset: str, why: str) -> InputError:
    """The error that a data set has no class labels.

    Args:
        dataset: what it is called.
        why: what it has instead.
    """
    return InputError(
        f"torchvision's {dataset} cannot be used, for {why}; want one whose images have one label each, such"
        " as Flowers102, Food101 or FGVCAircraft"
    )
