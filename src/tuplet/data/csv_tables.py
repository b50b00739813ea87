"""Images listed in a table: a .csv or .parquet file with a path, a label and perhaps a split a row."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tuplet.data.class_folders import LAYOUTS, part_named, require_files, root_error
from tuplet.data.label_files import column_named, csv_rows, existing, naming
from tuplet.data.parquet import read_columns, text_column
from tuplet.data.shared_images import without_queries
from tuplet.data.splits import ClassPaths, ReadSettings, Split, readable, split_of_classes
from tuplet.errors import DataError, counted, unusable

_COLUMNS = ("path", "label", "split")
_WANTED = "columns path and label, and split (train and test, or train, query and gallery) if need be"


def load_table(file: Path, settings: ReadSettings | None = None) -> Split:
    """Read the split that a file lists; where it has no column split, its classes are split.

    Args:
        file: .csv, in UTF-8 with a heading, or .parquet; columns `path`, relative to the file's folder or
            absolute, `label` and, if need be, `split`; others are ignored.
        settings: how to read the images and split the classes, which come by name, or by number where every
            label is an integer. With `skip`, missing images are left out too.

    Returns: classes by name or number, images in the order of the file.

    Raises:
        DataError: no such file, no such columns, an empty cell, an image listed twice, a class both trained
            and tested, images that are not on disk, or what `split_of_classes` raises.
    """
    settings = settings or ReadSettings()
    rows, has_split = _rows(file)
    parts = _parts(file, rows, has_split)
    if settings.on_bad_image == "stop":
        wanted = f"paths from its folder, {file.parent}, or whole ones"
        require_files(parts, str(file), file, f"{wanted}; data.on_bad_image=skip leaves such out")
    parts, skipped = readable(parts, settings)
    if not any(parts):
        raise unusable(file, f"has no image that can be read, the first: {skipped[0]}", "paths of images")
    notes: list[str] = []
    if len(parts) == 3:
        parts[2], notes = without_queries(parts[2], parts[1], file)
    return split_of_classes(file, parts, settings, skipped=skipped, notes=notes)


def _rows(file: Path) -> tuple[list[tuple[str, ...]], bool]:
    """Return (path, label and, where the file has it, split) of each row, and whether it has it."""
    kinds = {".csv": _csv_columns, ".parquet": _parquet_columns}
    if file.suffix.lower() not in kinds:
        raise root_error(file, "is no table by its name", "a .csv or .parquet file")
    with naming(file):
        columns = kinds[file.suffix.lower()](existing(file))
    for name, values in columns.items():
        if "" in values:
            raise unusable(file, f"has no {name} in row {values.index('') + 1}", "one in every row")
    rows = list(zip(*columns.values(), strict=True))
    if not rows:
        raise unusable(file, "has no rows", "one an image")
    return rows, "split" in columns


def _csv_columns(file: Path) -> dict[str, list[str]]:
    heading, *rows = [row for row in csv_rows(file, "separated by commas") if any(row)] or [[]]
    places = {name: column_named(name, heading) for name in _COLUMNS}
    _require_columns([name for name, place in places.items() if place is not None], heading)
    return {
        name: [row[place].strip() if place < len(row) else "" for row in rows]
        for name, place in places.items()
        if place is not None
    }


def _parquet_columns(file: Path) -> dict[str, list[str]]:
    def wanted(names: list[str]) -> list[str]:
        _require_columns(names, names)
        return [name for name in _COLUMNS if name in names]

    table = read_columns(file, lambda schema: wanted(schema.names))
    return {name: text_column(table[name], name) for name in wanted(table.column_names)}


def _require_columns(names: Sequence[str], heading: Sequence[str]) -> None:
    if not {"path", "label"} <= set(names):
        listed = ", ".join(map(repr, heading[:8])) + (", ..." if len(heading) > 8 else "")
        raise DataError(f"has the columns {listed or 'none at all'}; want {_WANTED}")


def _parts(file: Path, rows: Sequence[tuple[str, ...]], has_split: bool) -> list[ClassPaths]:
    """Return the classes of each part of the split, or all of them where there is none."""
    layout = _layout(file, rows) if has_split else ("",)
    integers = all(label.isdecimal() and str(int(label)) == label for _, label, *_ in rows)
    labels = sorted({label for _, label, *_ in rows}, key=(lambda label: int(label)) if integers else None)
    parts: dict[str, ClassPaths] = {part: {label: [] for label in labels} for part in layout}
    seen: dict[str, int] = {}
    for at, (path, label, *part) in enumerate(rows, 1):
        full = os.path.normpath(file.parent / path)
        absolute = os.path.abspath(full)  # noqa: PTH100  # a path may be given both ways
        if "\0" in path:
            raise unusable(file, f"has a NUL character in the path of row {at}", "a path of an image")
        if seen.setdefault(absolute, at) != at:
            problem = f"lists {path} both in row {seen[absolute]} and in row {at}"
            raise unusable(file, problem, "an image once, because it would find itself")
        parts[_part("".join(part))][label].append(full)
    kept = [{label: paths for label, paths in part.items() if paths} for part in parts.values()]
    both = [label for label in labels if label in kept[0] and any(label in part for part in kept[1:])]
    if both:
        count, such_as = counted(len(both), "class"), ", ".join(both[:3])
        raise unusable(
            file,
            f"has {count} both in train and in another part, such as {such_as}",
            "none, because the test asks about classes never seen: correct the column split, or leave it out"
            " to have the classes split",
        )
    return kept


def _part(name: str) -> str:
    return part_named(name) or name.lower()


def _layout(file: Path, rows: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the parts that the column split names."""
    named = {_part(part) for *_, part in rows}
    for layout in LAYOUTS:
        if named == set(layout):
            return layout
    known = {part for layout in LAYOUTS for part in layout}
    at, odd = next(((at, row[2]) for at, row in enumerate(rows, 1) if _part(row[2]) not in known), (0, ""))
    problem = f"has the split {odd!r} in row {at}" if at else f"has the splits {', '.join(sorted(named))}"
    raise unusable(file, problem, "train and test, or train, query and gallery")
