"""Labels that are wrong on purpose: how much of it a loss can bear."""

from __future__ import annotations

from typing import final

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from tuplet.data.table import ImageTable
from tuplet.errors import InputError


def noisy_labels(labels: Int64[np.ndarray, " N"], *, share: float, seed: int) -> Int64[np.ndarray, " N"]:
    """The labels with some replaced, each by that of another class.

    Args:
        labels: class of each image, >= 0.
        share: of the images, in [0, 1): round(share * N) of them, drawn without replacement.
        seed: which images, and which classes, >= 0; the same on every machine. With the same seed, the images
            of a smaller share are among those of a larger one, and get the same wrong classes.

    Returns: new labels; a wrong one is drawn evenly from all other classes that have images.

    Raises:
        InputError: (a ValueError) all images are of one class.
    """
    present, own = np.unique(labels, return_inverse=True)
    count = round(share * len(labels))
    if count and len(present) < 2:
        raise InputError("data.label_noise wants 2 training classes or more; there is 1: set it to 0")
    # Raw numbers, whose algorithm NumPy does not change between versions.
    order, steps = (np.random.PCG64(child) for child in np.random.SeedSequence([seed, _NOISE]).spawn(2))
    rows = np.argsort(order.random_raw(len(labels)), kind="stable")[:count]
    step = 1 + (steps.random_raw(len(labels)) % np.uint64(max(1, len(present) - 1))).astype(np.int64)
    noisy: Int64[np.ndarray, " N"] = labels.copy()
    noisy[rows] = present[(own[rows] + step[rows]) % len(present)]
    return noisy


_NOISE = 1
"""Sets these random numbers apart from others of the same seed."""


@final
class NoisyLabels(ImageTable):
    """The images of another table, some with the label of another class; arguments of `noisy_labels`.

    Attributes:
        num_wrong: images whose label is not their own.
    """

    def __init__(self, table: ImageTable, *, share: float, seed: int) -> None:
        super().__init__(noisy_labels(table.labels, share=share, seed=seed), table.class_names)
        self.num_wrong = int((self.labels != table.labels).sum())
        self._table = table

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """RGB pixels of one image of the table behind."""
        return self._table.image(index)

    def name(self, index: int) -> str:
        """Name of one image of the table behind, which may tell its true class."""
        return self._table.name(index)
