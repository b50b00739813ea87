"""Images listed in a table: a .csv or .parquet file with a path, a label and perhaps a split a row."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tuplet.data.class_folders import absent_files, without_unreadable
from tuplet.data.image_tables import ClassPaths, Progress
from tuplet.data.label_files import existing
from tuplet.data.parquet import pyarrow_modules
from tuplet.data.splits import Split, halves, split_of_classes
from tuplet.errors import InputError, counted

_COLUMNS = ("path", "label", "split")
_LAYOUTS = (("train", "test"), ("train", "query", "gallery"))
_WANTED = "want columns path and label, and split (train and test, or train, query and gallery) if need be"


def load_table(
    file: Path,
    *,
    train_fraction: float = 0.5,
    split_seed: int | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
    min_side: int | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> Split:
    """The split that a file lists; where it has no column split, its classes are split.

    Args:
        file: .csv, in UTF-8 with a heading, or .parquet; columns `path`, relative to the file's folder or
            absolute, `label` and, if need be, `split`; others are passed over.
        train_fraction: share of the classes that trains, in (0, 1), where there is no column split.
        split_seed: None: the first classes train, by name, or by number where every label is an integer; a
            number >= 0: a random share.
        on_bad_image: stop: nothing is decoded now. skip: all images are decoded once, and those that are
            unreadable or missing left out and listed.
        min_side: see `decode_image`.
        num_workers: threads that decode for `skip`, >= 0; 0 decodes in this one.
        progress: wraps the numbers of the images decoded for `skip`.

    Returns: classes by name or number, images in the order of the file.

    Raises:
        InputError: no such file, no such columns, an empty cell, an image listed twice, a class both trained
            and tested, images that are not on disk, or what `split_of` raises.
    """
    rows, has_split = _rows(file)
    parts = _parts(file, rows, has_split)
    if on_bad_image == "stop":
        _require_files(file, parts)
    skipped: list[str] = []
    if on_bad_image == "skip":
        parts = [without_unreadable(part, skipped, num_workers, progress) for part in parts]
        if not any(parts):
            raise InputError(f"no image of {file} can be read, the first: {skipped[0]}; want paths of images")
    if len(parts) == 1:
        sides = halves(tuple(parts[0]), train_fraction=train_fraction, seed=split_seed)
        parts = [{name: parts[0][name] for name in side} for side in sides]
    return split_of_classes(file, parts, min_side=min_side, skipped=skipped)


def _rows(file: Path) -> tuple[list[tuple[str, ...]], bool]:
    """(path, label and, where the file has it, split) of each row, and whether it has it."""
    kinds = {".csv": _csv_columns, ".parquet": _parquet_columns}
    if file.suffix.lower() not in kinds:
        raise InputError(f"data.root {file} is no table by its name; want a .csv or .parquet file")
    try:
        columns = kinds[file.suffix.lower()](existing(file))
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    for name, values in columns.items():
        empty = next((row for row, value in enumerate(values, 1) if not value), None)
        if empty is not None:
            raise InputError(f"{file}: row {empty} has no {name}; want one in every row")
    rows = list(zip(*columns.values(), strict=True))
    if not rows:
        raise InputError(f"{file} has no rows; want one an image")
    return rows, "split" in columns


def _csv_columns(file: Path) -> dict[str, list[str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            heading, *rows = [row for row in csv.reader(stream) if any(row)] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read as text ({error}); want UTF-8, separated by commas") from None
    names = [cell.strip().lower() for cell in heading]
    _require_columns(names)
    return {
        name: [row[names.index(name)].strip() if names.index(name) < len(row) else "" for row in rows]
        for name in _COLUMNS
        if name in names
    }


def _parquet_columns(file: Path) -> dict[str, list[str]]:
    arrow, parquet = pyarrow_modules()
    try:
        with parquet.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            _require_columns(names)
            read = opened.read(columns=[name for name in _COLUMNS if name in names])
    except (arrow.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"cannot be read as Parquet ({said}); want a whole .parquet file") from None
    return {
        name: ["" if value is None else str(value) for value in read[name].to_pylist()]
        for name in _COLUMNS
        if name in read.column_names
    }


def _require_columns(names: Sequence[str]) -> None:
    if not {"path", "label"} <= set(names):
        listed = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
        raise InputError(f"has the columns {listed or 'none at all'}; {_WANTED}")


def _parts(file: Path, rows: Sequence[tuple[str, ...]], has_split: bool) -> list[ClassPaths]:
    """The classes of each part of the split, or all of them where there is none."""
    layout = _layout(file, rows) if has_split else ("",)
    integers = all(label.isdecimal() and str(int(label)) == label for _, label, *_ in rows)
    labels = sorted({label for _, label, *_ in rows}, key=(lambda label: int(label)) if integers else None)
    parts: dict[str, ClassPaths] = {part: {label: [] for label in labels} for part in layout}
    seen: dict[str, int] = {}
    for at, (path, label, *part) in enumerate(rows, 1):
        full = os.path.normpath(file.parent / path)
        if seen.setdefault(full, at) != at:
            raise InputError(
                f"{file}: rows {seen[full]} and {at} both list {path}; want an image once, for it would find"
                " itself"
            )
        parts["".join(part).lower()][label].append(full)
    kept = [{label: paths for label, paths in part.items() if paths} for part in parts.values()]
    both = [
        label for label in labels if len(kept) > 1 and label in kept[0] and label in {**kept[1], **kept[-1]}
    ]
    if both:
        raise InputError(
            f"{file}: train shares {counted(len(both), 'class')} with another part, such as"
            f" {', '.join(both[:3])}; want none, for the test asks about classes never seen: mend the column"
            " split, or leave it out to have the classes split"
        )
    return kept


def _layout(file: Path, rows: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The parts that the column split names."""
    named = {part.lower() for *_, part in rows}
    for layout in _LAYOUTS:
        if named == set(layout):
            return layout
    known = {part for layout in _LAYOUTS for part in layout}
    at, odd = next(((at, row[2]) for at, row in enumerate(rows, 1) if row[2].lower() not in known), (0, ""))
    said = f"row {at} has the split {odd!r}" if at else f"its splits are {', '.join(sorted(named))}"
    raise InputError(f"{file}: {said}; want train and test, or train, query and gallery")


def _require_files(file: Path, parts: Sequence[ClassPaths]) -> None:
    paths = [path for part in parts for images in part.values() for path in images]
    absent = absent_files(paths)
    if absent:
        first = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise InputError(
            f"{len(absent):,} of the {counted(len(paths), 'image')} of {file} are not on disk: {first}; want"
            f" paths from its folder, {file.parent}, or whole ones; data.on_bad_image=skip leaves such out"
        )
