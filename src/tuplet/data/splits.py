"""Splits by class: training and test share no class."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from tuplet.data.decoding import UnreadableImageError, decode_image
from tuplet.data.image_tables import FileImages, ImageTable, Progress, QuarterTurns, Subset, in_threads
from tuplet.errors import DataError, SettingsError, counted, unusable

ClassPaths: TypeAlias = dict[str, list[str]]
"""Paths of the images of each class, both by name."""


@dataclass(frozen=True)
class Split:
    """Two tables that share no class: one to train on, one to test on.

    Attributes:
        train: images to train on.
        test: images of other classes, each a query against the rest, or against the gallery.
        skipped: images that could not be read and were left out, as "path: reason".
        notes: warnings about these data that do not prevent training, one line each.
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
            classes = f"{counted(len(shared), 'class')} {'stands' if len(shared) == 1 else 'stand'}"
            raise DataError(
                f"{classes} in both splits, such as {', '.join(shared[:3])}; want none, because the test asks"
                " about classes never seen: move them, or put all class folders side by side in one folder to"
                " have them split by class",
                subject="train and test classes",
                given=shared,
            )
        if self.gallery is not None and self.gallery.class_names != self.test.class_names:
            raise DataError(
                f"the gallery numbers {self.gallery.num_classes} classes and the queries"
                f" {self.test.num_classes}; want the same class names in both, images or not",
                subject="gallery classes",
                given=self.gallery.num_classes,
                wanted=self.test.num_classes,
            )


@dataclass(frozen=True)
class ReadSettings:
    """How images on disk are read, and how their classes are split where no split is given.

    Attributes:
        train_fraction: share of the classes to train on, in (0, 1).
        split_seed: None: train on the first classes in their order; a number >= 0: on a random share.
        on_bad_image: stop: nothing is decoded now, and an unreadable image raises when it is asked for.
            skip: all are decoded once now, and the unreadable ones left out and listed.
        min_side: see `decode_image`.
        num_workers: threads that decode for `skip`, >= 0; 0 decodes in this one.
        progress: wraps the numbers of the images that are opened now.
    """

    train_fraction: float = 0.5
    split_seed: int | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"
    min_side: int | None = None
    num_workers: int = 0
    progress: Progress | None = None


def readable(parts: Sequence[ClassPaths], settings: ReadSettings) -> tuple[list[ClassPaths], list[str]]:
    """Leave out the images that cannot be decoded, if the settings say `skip`.

    Returns: the parts without them and without classes that have no others; "path: reason" of each.
    """
    if settings.on_bad_image == "stop":
        return list(parts), []
    kept, skipped = list[ClassPaths](), list[str]()
    for part in parts:
        paths = [path for images in part.values() for path in images]

        def unreadable(row: int, paths: list[str] = paths) -> str:
            try:
                decode_image(Path(paths[row]), min_side=settings.min_side)  # as training decodes it
            except UnreadableImageError as error:
                return error.reason
            return ""

        reasons = in_threads(unreadable, len(paths), settings.num_workers, settings.progress)
        bad = {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}
        skipped += [f"{path}: {reason}" for path, reason in bad.items()]
        left = {name: [path for path in images if path not in bad] for name, images in part.items()}
        kept.append({name: images for name, images in left.items() if images})
    return kept, skipped


def file_images(classes: ClassPaths, min_side: int | None) -> FileImages:
    """Return all images of these classes, class by class, labelled in their order.

    Args:
        classes: paths of the images of each class.
        min_side: see `decode_image`.
    """
    sizes = [len(images) for images in classes.values()]
    labels = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    paths = [path for images in classes.values() for path in images]
    return FileImages(paths, labels, tuple(classes), min_side=min_side)


def split_of_classes(
    source: Path,
    parts: Sequence[ClassPaths],
    settings: ReadSettings,
    *,
    skipped: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Split:
    """Build a split from classes, with notes about anything unusual in it.

    Args:
        source: the file or folder they come from, for messages.
        parts: training and test classes, or training, query and gallery classes; or all classes, which are
            then split in two. The labels follow their order.
        settings: `train_fraction`, `split_seed` and `min_side` are read.
        skipped: images left out, as "path: reason".
        notes: lines to put before the notes on these classes.

    Raises:
        DataError: fewer than two training classes, a class both trained and tested, no test class with two
            images, or no query with an image of its class in the gallery.
    """
    if len(parts) == 1:
        sides = halves(tuple(parts[0]), train_fraction=settings.train_fraction, seed=settings.split_seed)
        parts = [{name: parts[0][name] for name in side} for side in sides]
    train, test, *gallery = parts
    _require_enough(source, train, test, *gallery)
    # Queries and gallery number their classes alike, including those without images in one of them.
    names = sorted(test.keys() | gallery[0].keys()) if gallery else list(test)
    queries, *searched = (
        file_images({name: part.get(name, []) for name in names}, settings.min_side)
        for part in (test, *gallery)
    )
    notes = (*notes, *_notes(train, test, *gallery))
    return Split(file_images(train, settings.min_side), queries, tuple(skipped), notes, *searched)


def _require_enough(
    source: Path, train: ClassPaths, test: ClassPaths, gallery: ClassPaths | None = None
) -> None:
    if len(train) < 2:
        raise unusable(
            source,
            f"has {counted(len(train), 'training class')} with images",
            "2 or more, because the loss tells classes apart: add classes or raise data.train_fraction",
        )
    if gallery is None and not any(len(images) > 1 for images in test.values()):
        raise unusable(
            source,
            f"has {counted(len(test), 'test class')}, none with two images",
            "one that has, because a query looks for another image of its class",
        )
    if gallery is not None and not test.keys() & gallery.keys():
        raise unusable(
            source,
            f"has {counted(len(test), 'query class')}, none among the {len(gallery)} of the gallery",
            "one that is, because a query looks for images of its class there",
        )


def _notes(train: ClassPaths, test: ClassPaths, gallery: ClassPaths | None = None) -> list[str]:
    def single(classes: ClassPaths) -> int:
        return sum(len(images) == 1 for images in classes.values())

    missing = 0 if gallery is None else len(test.keys() - gallery.keys())
    counts = [
        (single(train), "training class", "with one image: nothing shows what varies within it"),
        (missing, "query class", "without an image in the gallery: left out of Recall"),
        (
            single(test) if gallery is None else 0,
            "test class",
            "with one image: no query can find it, left out of Recall",
        ),
    ]
    notes = [f"{counted(count, noun)} {what}" for count, noun, what in counts if count]
    alike = _alike({**train, **test, **(gallery or {})})
    if alike:
        notes.append(f"classes whose names differ only in case, blanks or accents are apart: {alike}")
    if gallery is None and len(test) == 1:
        notes.append("there is one test class: every neighbour is right, and every measure perfect")
    return notes


def _alike(names: Iterable[str]) -> str:
    """Return, as text, the first groups of names that differ in case, blanks or accents only; else ""."""
    groups: dict[str, list[str]] = {}
    for name in names:
        # macOS stores an accented letter as two characters (NFD), other systems as one (NFC).
        groups.setdefault(unicodedata.normalize("NFC", name).casefold().strip(), []).append(name)
    several = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    return ", ".join(several[:3]) + (", ..." if len(several) > 3 else "")


def halves(
    class_names: Sequence[str], *, train_fraction: float, seed: int | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide classes into training classes and test classes, each in the order given.

    Args:
        class_names: C unique names, in the order that decides which come first.
        train_fraction: share that trains, in (0, 1), rounded to whole classes; each side gets at least one.
        seed: None takes the first classes; a number >= 0 a random share, the same on every machine.

    Returns: (train names, test names).

    Raises:
        DataError: C < 2.
        SettingsError: a fraction outside (0, 1).
    """
    num_classes = len(class_names)
    if num_classes < 2:
        classes = "is 1 class" if num_classes == 1 else "are no classes"
        wanted = "want 2 or more: each needs a folder of its own"
        raise DataError(f"there {classes} to split; {wanted}", subject="classes", given=num_classes)
    if not 0 < train_fraction < 1:
        raise SettingsError(
            f"data.train_fraction is {train_fraction}; want a share in (0, 1)",
            subject="data.train_fraction",
            given=train_fraction,
        )
    num_train = min(max(int(num_classes * train_fraction + 0.5), 1), num_classes - 1)
    ranks = np.arange(num_classes) if seed is None else _shuffled(num_classes, seed)
    train = [name for name, rank in zip(class_names, ranks, strict=True) if rank < num_train]
    test = [name for name, rank in zip(class_names, ranks, strict=True) if rank >= num_train]
    return tuple(train), tuple(test)


def hold_out(table: ImageTable, *, fold: int, num_folds: int, seed: int) -> tuple[ImageTable, ImageTable]:
    """Split one fold of the classes off a training table, for validation.

    Args:
        table: the training images.
        fold: which part is held out, in 0..num_folds-1; the parts of one seed share no class.
        num_folds: parts, >= 2, as equal as can be.
        seed: which classes make up each part, >= 0; the same on every machine.

    Returns: (training table, validation table), which share no class.

    Raises:
        DataError: fewer than two classes with images for each fold.
    """
    present = np.unique(table.labels)
    if len(present) < 2 * num_folds:
        raise unusable(
            f"{len(present)} training classes",
            f"are too few for evaluation.validation_folds = {num_folds}",
            f"{2 * num_folds} or more, 2 for each fold: add classes or lower it",
        )
    part_of_rank = np.arange(len(present)) * num_folds // len(present)
    held = np.isin(table.labels, present[part_of_rank[_shuffled(len(present), seed)] == fold])
    return Subset(table, np.flatnonzero(~held)), Subset(table, np.flatnonzero(held))


def notes_of(split: Split) -> tuple[str, ...]:
    """Return the notes of a split; the last one counts the images that cannot be read."""
    if not split.skipped:
        return split.notes
    images = counted(len(split.skipped), "image")
    return (*split.notes, f"{images} cannot be read, left out; the first: {split.skipped[0]}")


def describe(split: Split, *, measured: str = "test") -> str:
    """Return the counts of a split as a few aligned lines: images, classes, images per class, skipped, notes.

    Training images are counted as on disk; if `data.quarter_turns` turns them, a note gives those counts.

    Args:
        split: what to count.
        measured: name of the part that is not trained on, "test" or "validation".
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
    # The name of a folder may hold the end of a line.
    return "\n".join(line.replace("\n", "\\n") for line in lines + [f"note: {note}" for note in notes])


def _shuffled(count: int, seed: int) -> np.ndarray:
    """Return a random permutation of 0..count-1, the same on every machine."""
    # Not Generator.permutation: NumPy may change its algorithm between versions.
    raw = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(np.argsort(raw, kind="stable"), kind="stable")
