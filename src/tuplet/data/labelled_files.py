"""Image files with labels: a table that decodes them, and the split that lists of them make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from tuplet.data.class_folders import Classes
from tuplet.data.decoding import decode_image
from tuplet.data.table import ImageTable, Split
from tuplet.errors import InputError, counted


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


def split_of(
    source: Path,
    parts: Sequence[Classes],
    *,
    min_side: int | None = None,
    skipped: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Split:
    """The split that these classes make, with notes of what is odd about it.

    Args:
        source: where they were found, for messages.
        parts: training and test classes, or training, query and gallery classes; in the order of the labels.
        min_side: see `decode_image`.
        skipped: images left out, as "path: reason".
        notes: what is known already, a line each.

    Raises:
        InputError: fewer than two training classes, a class both trained and tested, no test class with two
            images, or no query with an image of its class in the gallery.
    """
    train, test, *gallery = parts
    _require_enough(source, train, test, *gallery)
    more = _notes(train, test, *gallery)
    queries, *searched = _tables([test, *gallery], min_side)
    return Split(table_of(train, min_side), queries, tuple(skipped), (*notes, *more), *searched)


def table_of(classes: Classes, min_side: int | None) -> FileImages:
    """All images of these classes, class by class, labelled in their order.

    Args:
        classes: paths of the images of each class.
        min_side: see `decode_image`.
    """
    sizes = [len(images) for images in classes.values()]
    labels = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    paths = [path for images in classes.values() for path in images]
    return FileImages(paths, labels, tuple(classes), min_side=min_side)


def _require_enough(source: Path, train: Classes, test: Classes, gallery: Classes | None = None) -> None:
    if len(train) < 2:
        raise InputError(
            f"{counted(len(train), 'training class')} with images in {source}; want 2 or more, for the loss"
            " tells classes apart: add classes or raise data.train_fraction"
        )
    if gallery is not None:
        if not test.keys() & gallery.keys():
            raise InputError(
                f"none of the {len(test)} query classes of {source} is among the {len(gallery)} of the"
                " gallery; want one that is, for a query looks for images of its class there"
            )
    elif not any(len(images) > 1 for images in test.values()):
        raise InputError(
            f"none of the {len(test)} test classes of {source} has two images; want one that has, for a query"
            " looks for another image of its class"
        )


def _notes(train: Classes, test: Classes, gallery: Classes | None = None) -> list[str]:
    notes: list[str] = []
    lonely = sum(len(images) == 1 for images in train.values())
    if lonely:
        notes.append(
            f"{counted(lonely, 'training class')} with one image: nothing shows what varies within it"
        )
    if gallery is not None:
        missing = len(test.keys() - gallery.keys())
        if missing:
            notes.append(
                f"{counted(missing, 'query class')} without an image in the gallery: left out of Recall"
            )
        return notes
    single = sum(len(images) == 1 for images in test.values())
    if single:
        notes.append(
            f"{counted(single, 'test class')} with one image: no query can find it, left out of Recall"
        )
    if len(test) == 1:
        notes.append("there is one test class: every neighbour is right, and every measure perfect")
    return notes


def _tables(parts: Sequence[Classes], min_side: int | None) -> list[FileImages]:
    """Tables that number their classes alike, those without images in one of them included."""
    names = sorted({name for part in parts for name in part}) if len(parts) > 1 else list(parts[0])
    return [table_of({name: part.get(name, []) for name in names}, min_side) for part in parts]
