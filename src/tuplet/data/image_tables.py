"""Image tables: the contract of every data set, images in files, and tables made from other tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar, final

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional

from tuplet.data.decoding import decode_image
from tuplet.errors import DataError, SettingsError

Progress: TypeAlias = Callable[[Iterable[int]], Iterable[int]]
"""Yields the numbers of `range(n)` unchanged and shows how many are done, such as `rich.progress.track`."""

T = TypeVar("T")


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
            raise DataError(
                f"labels run from {labels.min()} to {labels.max()}; want 0..{len(class_names) - 1},"
                f" one for each of the {len(class_names)} class names",
                subject="labels",
            )
        self.labels = labels
        self.class_names = tuple(class_names)

    @abstractmethod
    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """Return the RGB pixels of one image, upright, of whatever size it has."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what a person would call this image: its path, or how it was generated."""

    @final
    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @final
    @property
    def num_classes(self) -> int:
        """C, including classes without images."""
        return len(self.class_names)


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
        """Decode one file; raise UnreadableImageError where it cannot be decoded."""
        return decode_image(Path(self.paths[index]), min_side=self._min_side)

    def name(self, index: int) -> str:
        """Return the path of one file."""
        return self.paths[index]


class _DerivedImages(ImageTable):
    """Images of another table, one for one, with other labels or pixels."""

    def __init__(
        self, table: ImageTable, labels: Int64[np.ndarray, " M"], class_names: Sequence[str]
    ) -> None:
        super().__init__(labels, class_names)
        self._table = table

    def _row(self, index: int) -> int:
        """Return the row of one image in the other table."""
        return index

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """Return the pixels of one image of the other table."""
        return self._table.image(self._row(index))

    def name(self, index: int) -> str:
        """Return its name in the other table."""
        return self._table.name(self._row(index))


@final
class Subset(_DerivedImages):
    """Some rows of another table; classes left without images vanish, and labels stay 0..C-1 without gaps."""

    def __init__(self, table: ImageTable, rows: Int64[np.ndarray, " M"]) -> None:
        kept, labels = np.unique(table.labels[rows], return_inverse=True)
        super().__init__(table, labels.astype(np.int64), [table.class_names[label] for label in kept])
        self._rows = rows

    def _row(self, index: int) -> int:
        return int(self._rows[index])


@final
class InMemoryImages(ImageTable):
    """The images of another table, decoded once and kept in memory, the large ones made smaller.

    All pixels lie in one block of memory, so that workers share it whether they are forked or spawned.
    """

    def __init__(
        self,
        table: ImageTable,
        *,
        short_side: int,
        num_workers: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Decode the whole table.

        Args:
            table: any images; the first that cannot be decoded raises UnreadableImageError.
            short_side: longest short side kept, pixels, >= 1; smaller images stay as they are.
            num_workers: threads that decode, >= 0; 0 decodes in this one.
            progress: wraps the numbers of the images.
        """
        super().__init__(table.labels, table.class_names)
        self._names = tuple(table.name(row) for row in range(len(table)))

        def reduced(row: int) -> UInt8[Tensor, "3 H W"]:
            pixels = table.image(row)
            if min(pixels.shape[1:]) <= short_side:
                return pixels
            smaller: Tensor = functional.resize(pixels, [short_side], antialias=True)
            return smaller

        # A bytearray grows in place, where a list of tensors to concatenate would need the memory twice.
        block = bytearray()
        sizes: list[tuple[int, int]] = []
        for pixels in in_threads(reduced, len(table), num_workers, progress):
            block += pixels.numpy().tobytes()
            sizes.append((pixels.shape[1], pixels.shape[2]))
        self._sizes = tuple(sizes)
        self._ends = np.cumsum([3 * height * width for height, width in sizes], dtype=np.int64)
        self._block = torch.frombuffer(block or bytearray(1), dtype=torch.uint8)

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """Return one image: a view of the memory, to be read only."""
        height, width = self._sizes[index]
        end = int(self._ends[index])
        return self._block[end - 3 * height * width : end].view(3, height, width)

    def name(self, index: int) -> str:
        """Return the name of the image in the table it came from."""
        return self._names[index]


def in_threads(
    work: Callable[[int], T], count: int, num_workers: int, progress: Progress | None
) -> Iterator[T]:
    """Yield work(0), ..., work(count - 1) in order, computed by several threads.

    Threads are enough to decode images, because Pillow's decoders release the interpreter's lock, and unlike
    processes they need not be sent anything.

    Args:
        work: takes the number of an image; the first error it raises ends the iteration.
        count: images, >= 0.
        num_workers: threads, >= 0; 0 is as 1.
        progress: wraps the numbers.
    """
    rows = range(count) if progress is None else progress(range(count))
    pool = ThreadPoolExecutor(max(num_workers, 1))
    try:
        for _, result in zip(rows, pool.map(work, range(count)), strict=True):
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


_NOISE, _TAIL = 1, 2
"""Appended to a seed, so that wrong labels, long tails and other uses of one seed draw different numbers."""


def noisy_labels(labels: Int64[np.ndarray, " N"], *, share: float, seed: int) -> Int64[np.ndarray, " N"]:
    """Replace some labels, each by that of another class.

    Args:
        labels: class of each image, >= 0.
        share: of the images, in [0, 1): round(share * N) of them, drawn without replacement.
        seed: which images, and which classes, >= 0; the same on every machine. With the same seed, the images
            of a smaller share are among those of a larger one, and get the same wrong classes.

    Returns: new labels; a wrong one is drawn evenly from all other classes that have images.

    Raises:
        SettingsError: all images are of one class.
    """
    present, own = np.unique(labels, return_inverse=True)
    count = round(share * len(labels))
    if count and len(present) < 2:
        raise SettingsError(
            "data.label_noise wants 2 training classes or more; there is 1: set it to 0",
            subject="data.label_noise",
            given=share,
            wanted=0,
        )
    # Raw numbers, whose algorithm NumPy does not change between versions.
    order, steps = (np.random.PCG64(child) for child in np.random.SeedSequence([seed, _NOISE]).spawn(2))
    rows = np.argsort(order.random_raw(len(labels)), kind="stable")[:count]
    # A step of 1..C-1 around the circle of classes reaches every class but the image's own.
    step = 1 + (steps.random_raw(len(labels)) % np.uint64(max(1, len(present) - 1))).astype(np.int64)
    noisy: Int64[np.ndarray, " N"] = labels.copy()
    noisy[rows] = present[(own[rows] + step[rows]) % len(present)]
    return noisy


@final
class NoisyLabels(_DerivedImages):
    """The images of another table, some with the label of another class; arguments of `noisy_labels`.

    The names stay, which may tell the true class.

    Attributes:
        num_wrong: images whose label is not their own.
    """

    def __init__(self, table: ImageTable, *, share: float, seed: int) -> None:
        super().__init__(table, noisy_labels(table.labels, share=share, seed=seed), table.class_names)
        self.num_wrong = int((self.labels != table.labels).sum())


LEAST_IMAGES = 2
"""Images that every class keeps that has them: a class of one image has nothing near it to learn."""


def long_tail(table: ImageTable, *, ratio: float, seed: int) -> ImageTable:
    """Drop images so that the sizes of the classes fall off exponentially.

    The classes are put into a random order. Of C classes with images, the one in place k = 0..C-1 keeps a
    share ratio^(-k / (C - 1)) of its images, rounded, at least two. Of classes that were alike, the largest
    is `ratio` times the smallest, as far as two images per class allow.

    Args:
        table: training images.
        ratio: >= 1; 1 keeps all images.
        seed: which order, and which images, >= 0; the same on every machine.

    References:
        Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, for the
        exponential tail.
    """
    return Subset(table, kept_rows(table.labels, ratio=ratio, seed=seed))


def kept_rows(labels: Int64[np.ndarray, " N"], *, ratio: float, seed: int) -> Int64[np.ndarray, " M"]:
    """Return the rows that `long_tail` keeps, ascending; its other arguments."""
    present = np.unique(labels)
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


@final
class QuarterTurns(_DerivedImages):
    """The images of another table, upright and turned by 90, 180 and 270 degrees: four times the classes.

    The upright images and classes come first, then one turn after the other.

    Attributes:
        upright: the other table.

    References:
        Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks", ICML 2016, for Omniglot.
    """

    def __init__(self, table: ImageTable) -> None:
        labels = [table.labels + turns * table.num_classes for turns in range(4)]
        names = [f"{name}, turned {90 * turns}°" for turns in range(1, 4) for name in table.class_names]
        super().__init__(table, np.concatenate(labels), [*table.class_names, *names])
        self.upright = table

    def _row(self, index: int) -> int:
        return index % len(self.upright)

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """Return one image, turned counterclockwise."""
        return torch.rot90(super().image(index), index // len(self.upright), dims=(1, 2))

    def name(self, index: int) -> str:
        """Return the name of the upright image, and its turn."""
        turns = index // len(self.upright)
        return super().name(index) + (f", turned {90 * turns}°" if turns else "")
