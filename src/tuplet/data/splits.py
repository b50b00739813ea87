"""Splits by class: no class of the one side is ever on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuplet.data.image_tables import ClassPaths, FileImages, ImageTable, QuarterTurns, Subset, file_images
from tuplet.errors import InputError, counted


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


def split_of_classes(
    source: Path,
    parts: Sequence[ClassPaths],
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
    return Split(file_images(train, min_side), queries, tuple(skipped), (*notes, *more), *searched)


def _require_enough(
    source: Path, train: ClassPaths, test: ClassPaths, gallery: ClassPaths | None = None
) -> None:
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


def _notes(train: ClassPaths, test: ClassPaths, gallery: ClassPaths | None = None) -> list[str]:
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


def _tables(parts: Sequence[ClassPaths], min_side: int | None) -> list[FileImages]:
    """Tables that number their classes alike, those without images in one of them included."""
    names = sorted({name for part in parts for name in part}) if len(parts) > 1 else list(parts[0])
    return [file_images({name: part.get(name, []) for name in names}, min_side) for part in parts]


def halves(
    class_names: Sequence[str], *, train_fraction: float, seed: int | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes to train on and the classes to query, each in the order given.

    Args:
        class_names: C unique names, in the order that decides which come first.
        train_fraction: share that trains, in (0, 1), rounded to whole classes; each side gets at least one.
        seed: None takes the first classes; a number >= 0 a random share, the same on every machine.

    Returns: (train names, test names).

    Raises:
        InputError: C < 2, or a fraction outside (0, 1).
    """
    num_classes = len(class_names)
    if num_classes < 2:
        raise InputError(
            f"there {'is 1 class' if num_classes == 1 else 'are no classes'} to split; want 2 or more: each"
            " needs a folder of its own"
        )
    if not 0 < train_fraction < 1:
        raise InputError(f"data.train_fraction is {train_fraction}; want a share in (0, 1)")
    num_train = min(max(_rounded(num_classes * train_fraction), 1), num_classes - 1)
    ranks = np.arange(num_classes) if seed is None else _shuffled(num_classes, seed)
    trains = ranks < num_train
    return (
        tuple(name for name, train in zip(class_names, trains, strict=True) if train),
        tuple(name for name, train in zip(class_names, trains, strict=True) if not train),
    )


def hold_out(table: ImageTable, *, fold: int, num_folds: int, seed: int) -> tuple[ImageTable, ImageTable]:
    """A training table without one fold of its classes, and those classes for validation.

    Args:
        table: the training images.
        fold: which part is held out, in 0..num_folds-1; the parts of one seed share no class.
        num_folds: parts, >= 2, as equal as can be.
        seed: which classes make up each part, >= 0; the same on every machine.

    Returns: (training table, validation table), which share no class.

    Raises:
        InputError: fewer than two classes with images for each fold.
    """
    present = np.unique(table.labels)
    if len(present) < 2 * num_folds:
        raise InputError(
            f"{len(present)} training classes; want {2 * num_folds} or more, 2 for each of"
            f" evaluation.validation_folds = {num_folds}: add classes or lower it"
        )
    part_of_rank = np.arange(len(present)) * num_folds // len(present)
    held = np.isin(table.labels, present[part_of_rank[_shuffled(len(present), seed)] == fold])
    return Subset(table, np.flatnonzero(~held)), Subset(table, np.flatnonzero(held))


def describe(split: Split, *, measured: str = "test") -> str:
    """The counts of a split as a few aligned lines: images, classes, images a class, skipped, notes.

    Training images are counted as they lie on disk; that they are turned by quarters is a note.

    Args:
        split: what to count.
        measured: what the part that is not trained on is called, "test" or "validation".
    """
    lines = [f"{'':<10}{'images':>9}{'classes':>9}  images a class (min / median / max)"]
    train, notes = split.train, split.notes
    if isinstance(train, QuarterTurns):
        turned = f"{len(train):,} images of {train.num_classes:,} classes"
        notes += (f"turned by quarters, each training class is four: {turned} train (data.quarter_turns)",)
        train = train.upright
    tables = [("train", train), (measured, split.test)]
    if split.gallery is not None:
        tables = [("train", train), ("query", split.test), ("gallery", split.gallery)]
    for title, table in tables:
        sizes = np.unique(table.labels, return_counts=True)[1]
        least, median, most = (sizes.min(), np.median(sizes), sizes.max()) if sizes.size else (0, 0.0, 0)
        spread = f"{least:,} / {median:,.10g} / {most:,}"
        lines.append(f"{title:<10}{len(table):>9,}{len(sizes):>9,}  {spread}")
    if split.skipped:
        lines.append(f"{'skipped':<10}{len(split.skipped):>9,}{'':>9}  the first: {split.skipped[0]}")
    return "\n".join(lines + [f"note: {note}" for note in notes])


def _rounded(count: float) -> int:
    return int(count + 0.5)


def _shuffled(count: int, seed: int) -> np.ndarray:
    """Rank of each of `count` things in a random order."""
    # Sorted raw numbers and no Generator.permutation, whose algorithm NumPy may change between versions.
    raw = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(np.argsort(raw, kind="stable"), kind="stable")
