"""Image tables: the contract of every data set, images in files, and tables made from other tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional

from tuplet.data.decoding import decode_image
from tuplet.errors import InputError

Progress: TypeAlias = Callable[[Iterable[int]], Iterable[int]]
"""Hands on `range(n)` unchanged and shows how far it has come, such as `rich.progress.track`."""

ClassPaths: TypeAlias = dict[str, list[str]]
"""Paths of the images of each class, both by name."""


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


def file_images(classes: ClassPaths, min_side: int | None) -> FileImages:
    """All images of these classes, class by class, labelled in their order.

    Args:
        classes: paths of the images of each class.
        min_side: see `decode_image`.
    """
    sizes = [len(images) for images in classes.values()]
    labels = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    paths = [path for images in classes.values() for path in images]
    return FileImages(paths, labels, tuple(classes), min_side=min_side)


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


LEAST_IMAGES = 2
"""Images that every class keeps that has them: a class of one image has nothing near it to learn."""


def long_tail(table: ImageTable, *, ratio: float, seed: int) -> ImageTable:
    """The table with fewer images, in classes whose sizes fall off exponentially.

    The classes are put into a random order. Of C classes with images, the one in place k = 0..C-1 keeps a
    share ratio^(-k / (C - 1)) of its images, rounded, at least two. Of classes that were alike, the largest
    is `ratio` times the smallest, as far as two images a class allow.

    Args:
        table: training images.
        ratio: >= 1; 1 keeps all images.
        seed: which order, and which images, >= 0; the same on every machine.

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, for the
        exponential tail.
    """
    return Subset(table, kept_rows(table.labels, ratio=ratio, seed=seed))


def kept_rows(labels: Int64[np.ndarray, " N"], *, ratio: float, seed: int) -> Int64[np.ndarray, " M"]:
    """The rows that `long_tail` keeps, ascending; its other arguments."""
    present = np.unique(labels)
    # Raw numbers, whose algorithm NumPy does not change between versions.
    order, images = (np.random.PCG64(child) for child in np.random.SeedSequence([seed, _TAIL]).spawn(2))
    places = np.argsort(order.random_raw(len(present)), kind="stable")
    drawn = images.random_raw(len(labels))
    kept = []
    for place, label in zip(places.tolist(), present.tolist(), strict=True):
        rows = np.flatnonzero(labels == label)
        share = ratio ** (-place / max(1, len(present) - 1))
        size = max(int(share * len(rows) + 0.5), min(len(rows), LEAST_IMAGES))
        kept.append(rows[np.argsort(drawn[rows], kind="stable")[:size]])
    return np.sort(np.concatenate(kept))


_TAIL = 2
"""Sets these random numbers apart from others of the same seed."""


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
