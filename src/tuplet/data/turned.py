"""More classes from the same images: a character on its side is another character."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tuplet.data.table import ImageTable


@final
class QuarterTurns(ImageTable):
    """The images of another table, upright and turned by 90, 180 and 270 degrees: four times the classes.

    The upright images and classes come first, then one turn after the other.

    Attributes:
        upright: the other table.

    Source: Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks", ICML 2016, for Omniglot.
    """

    def __init__(self, table: ImageTable) -> None:
        labels = [table.labels + turns * table.num_classes for turns in range(4)]
        names = [f"{name}, turned {90 * turns}°" for turns in range(1, 4) for name in table.class_names]
        super().__init__(np.concatenate(labels), [*table.class_names, *names])
        self.upright = table

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """RGB pixels of one image, turned counterclockwise."""
        turns, row = divmod(index, len(self.upright))
        return torch.rot90(self.upright.image(row), turns, dims=(1, 2))

    def name(self, index: int) -> str:
        """Name of the upright image, and its turn."""
        turns, row = divmod(index, len(self.upright))
        return self.upright.name(row) + (f", turned {90 * turns}°" if turns else "")
