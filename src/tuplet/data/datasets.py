"""Torch datasets over an image table: training views and evaluation crops."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tuplet.data.sampling import Draw
from tuplet.data.table import ImageTable
from tuplet.data.transforms import Transform


@final
class TransformedImages(Dataset[tuple[Tensor, int, int]]):
    """Training images, addressed by `Draw`: the draw's seed alone decides the augmentation.

    An item is (uint8 pixels `[3, S, S]`, label, index of the image in the table). It is the same in whatever
    process or order it is drawn. The table and the transform must be picklable to be sent to workers.
    """

    def __init__(self, table: ImageTable, transform: Transform) -> None:
        self._table, self._transform = table, transform

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, int]:
        index, seed = draw
        image = self._table.image(index)
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(seed)
        try:
            pixels = self._transform(image)
        finally:
            generator.set_state(state)
        return pixels, int(self._table.labels[index]), index

    def __len__(self) -> int:
        return len(self._table)


@final
class EvaluationImages(Dataset[tuple[Tensor, int, int]]):
    """Images to embed, addressed by their row in the table; items are those of `TransformedImages`."""

    def __init__(self, table: ImageTable, transform: Transform) -> None:
        self._table, self._transform = table, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self._transform(self._table.image(index)), int(self._table.labels[index]), index

    def __len__(self) -> int:
        return len(self._table)
