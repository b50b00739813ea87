"""The contract of every data set: a table of labelled images, and a split by class into two such tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from tuplet.errors import InputError, counted


class ImageTable(ABC):
    """Labelled images of one split, read one at a time.

    Attributes:
        labels: class of each image, `[N]`, in 0..C-1.
        class_names: the C names, in the order of the labels; unique.
    """

    labels: Int64[np.ndarray, " N"]
    class_names: tuple[str, ...]

    def __init__(self, labels: Int64[np.ndarray, " N"], class_names: Sequence[str]) -> None:
        if labels.size and not (labels.min() >= 0 and labels.max() < len(class_names)):
            raise InputError(
                f"labels run from {labels.min()} to {labels.max()}; want 0..{len(class_names) - 1},"
                f" one for each of the {len(class_names)} class names"
            )
        self.labels = labels
        self.class_names = tuple(class_names)

    @abstractmethod
    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """RGB pixels of one image, upright, of whatever size it has."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What a person would call this image: its path, or how it was generated."""

    @final
    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @final
    @property
    def num_classes(self) -> int:
        """C, classes without images included."""
        return len(self.class_names)


@final
class Subset(ImageTable):
    """Some rows of another table; classes left without images vanish and labels close up."""

    def __init__(self, table: ImageTable, rows: Int64[np.ndarray, " M"]) -> None:
        kept, labels = np.unique(table.labels[rows], return_inverse=True)
        super().__init__(labels.astype(np.int64), [table.class_names[label] for label in kept])
        self._table, self._rows = table, rows

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """RGB pixels of one image of the table behind."""
        return self._table.image(int(self._rows[index]))

    def name(self, index: int) -> str:
        """Name of one image of the table behind."""
        return self._table.name(int(self._rows[index]))


@dataclass(frozen=True)
class Split:
    """Two tables that share no class: one to train on, one that is only ever queried.

    Attributes:
        train: images the loss sees.
        test: images of other classes, each a query against the rest, or against the gallery.
        skipped: images that could not be read and were left out, as "path: reason".
        notes: what a user should know of these data though training can go on, one line each.
        gallery: images that the test images search, with the same class names as theirs; None where they
            search among themselves.
    """

    train: ImageTable
    test: ImageTable
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    gallery: ImageTable | None = None

    def __post_init__(self) -> None:
        shared = sorted(set(self.train.class_names) & set(self.test.class_names))
        if shared:
            raise InputError(
                f"{counted(len(shared), 'class')} {'stands' if len(shared) == 1 else 'stand'} in both splits,"
                f" such as {', '.join(shared[:3])}; want none, for the test asks about classes never seen:"
                " move them, or put all class folders side by side in one folder to have them split by class"
            )
        if self.gallery is not None and self.gallery.class_names != self.test.class_names:
            raise InputError(
                f"the gallery numbers {self.gallery.num_classes} classes and the queries"
                f" {self.test.num_classes}; want the same class names in both, images or not"
            )
