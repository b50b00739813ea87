"""The pictures on which an exported network is compared with the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tuplet.config import DataConfig
from tuplet.data.class_folders import is_image
from tuplet.data.images import UnreadableImageError, decode_image
from tuplet.data.table import ImageTable
from tuplet.data.transforms import eval_transform, short_side
from tuplet.errors import InputError

NUM_PICTURES = 10
"""So many are compared, a multiple of every batch size of the comparison."""

T = TypeVar("T")


def pictures_of_folder(folder: Path, data: DataConfig) -> UInt8[Tensor, "N 3 S S"]:
    """`NUM_PICTURES` squares of the images at any depth of a folder, evenly spaced by path.

    Unreadable images are passed over. Where there are too few, the first ones come again.

    Args:
        folder: of images, in class folders or not.
        data: how they become squares.

    Raises:
        InputError: no such folder, or no image in it that can be read.
    """
    if not folder.is_dir():
        raise InputError(f"--check {folder} is no folder; want one with images in it")
    files = sorted(path for path in folder.rglob("*") if is_image(path.name) and path.is_file())
    found = _evenly(files, lambda file: decode_image(file, min_side=short_side(data)), data)
    if found is None:
        raise InputError(f"--check {folder} has no images that can be read; want one or more")
    return found


def pictures_of_table(table: ImageTable, data: DataConfig) -> UInt8[Tensor, "N 3 S S"] | None:
    """The same of a table's images, evenly spaced over its rows; None where none can be read.

    Args:
        table: any images.
        data: how they become squares.
    """
    return _evenly(range(len(table)), table.image, data)


def noise(data: DataConfig) -> UInt8[Tensor, "N 3 S S"]:
    """`NUM_PICTURES` squares of noise, always the same.

    Args:
        data: `image_size` is read.
    """
    shape = (NUM_PICTURES, 3, data.image_size, data.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _evenly(
    items: Sequence[T], read: Callable[[T], UInt8[Tensor, "3 H W"]], data: DataConfig
) -> UInt8[Tensor, "N 3 S S"] | None:
    transform = eval_transform(data)
    squares = []
    for row in np.unique(np.linspace(0, len(items) - 1, NUM_PICTURES).round().astype(int)) if items else ():
        try:
            squares.append(transform(read(items[row])))
        except UnreadableImageError:
            continue
    if not squares:
        return None
    return torch.stack([squares[number % len(squares)] for number in range(NUM_PICTURES)])
