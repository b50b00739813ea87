"""An image table whose pixels are the number of the image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tuplet.data.image_tables import ImageTable


class Numbered(ImageTable):
    def image(self, index: int) -> Tensor:
        return torch.full((3, 2, 2), index, dtype=torch.uint8)

    def name(self, index: int) -> str:
        return f"{self.class_names[self.labels[index]]}/{index}"


def numbered(*labels: int, names: str = "abcdefghijklmnop") -> Numbered:
    return Numbered(np.array(labels, dtype=np.int64), list(names[: max(labels, default=-1) + 1]))


def names_of(table: ImageTable) -> list[str]:
    return [table.name(row) for row in range(len(table))]
