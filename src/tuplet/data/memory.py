"""Images decoded once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import final

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional

from tuplet.data.table import ImageTable


@final
class InMemoryImages(ImageTable):
    """The images of another table in memory, the large ones made smaller.

    All pixels lie in one block of memory, so that workers share it whether they are forked or spawned.
    """

    def __init__(
        self,
        table: ImageTable,
        *,
        short_side: int,
        num_workers: int = 0,
        progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
    ) -> None:
        """Decodes the whole table.

        Args:
            table: any images.
            short_side: longest short side kept, pixels, >= 1; smaller images stay as they are.
            num_workers: threads that decode, >= 0; 0 decodes in this one.
            progress: wraps the numbers of the images, to show how far it has come.

        Raises:
            UnreadableImageError: the first image that cannot be decoded.
        """
        super().__init__(table.labels, table.class_names)
        self._names = tuple(table.name(row) for row in range(len(table)))
        # A bytearray grows in place, where a list of tensors to concatenate would need the memory twice.
        block = bytearray()
        sizes: list[tuple[int, int]] = []
        for pixels in _decoded(table, short_side, max(num_workers, 1), progress):
            block += pixels.numpy().tobytes()
            sizes.append((pixels.shape[1], pixels.shape[2]))
        self._sizes = tuple(sizes)
        self._ends = np.cumsum([3 * height * width for height, width in sizes], dtype=np.int64)
        self._block = (
            torch.frombuffer(block, dtype=torch.uint8) if block else torch.empty(0, dtype=torch.uint8)
        )

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """RGB pixels of one image: a view of the memory, to be read only."""
        height, width = self._sizes[index]
        end = int(self._ends[index])
        return self._block[end - 3 * height * width : end].view(3, height, width)

    def name(self, index: int) -> str:
        """Name of the image in the table it came from."""
        return self._names[index]


def _decoded(
    table: ImageTable,
    short_side: int,
    num_threads: int,
    progress: Callable[[Iterable[int]], Iterable[int]] | None,
) -> Iterable[UInt8[Tensor, "3 H W"]]:
    rows = range(len(table)) if progress is None else progress(range(len(table)))

    def reduced(row: int) -> UInt8[Tensor, "3 H W"]:
        pixels = table.image(row)
        if min(pixels.shape[1:]) <= short_side:
            return pixels
        smaller: Tensor = functional.resize(pixels, [short_side], antialias=True)
        return smaller

    pool = ThreadPoolExecutor(num_threads)
    try:
        for _, pixels in zip(rows, pool.map(reduced, range(len(table))), strict=True):
            yield pixels
    finally:
        pool.shutdown(cancel_futures=True)
