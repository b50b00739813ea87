"""Labels in files: .npy, or text with one a line."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64, Shaped

from tuplet.errors import InputError

Labels: TypeAlias = tuple[Int64[np.ndarray, " N"], tuple[str, ...] | None]
"""The class of each item, and the names of the classes where they have names."""


def read_labels(path: str | os.PathLike[str]) -> Labels:
    """The labels in a file, and the names of their classes where they are names.

    Args:
        path: .npy of integers or strings, .txt or .csv with one a line; of a .csv with a heading, the column
            `label`. A text in which every line is an integer as a computer writes it ("7", not "007") holds
            integers.

    Raises:
        InputError: a file that cannot be read so.
    """
    file = Path(path)
    try:
        if file.suffix.lower() == ".npy":
            return numbered(read_array(existing(file)))
        if file.suffix.lower() in (".txt", ".csv"):
            return numbered(np.array(_lines(existing(file))))
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    raise InputError(f"{file} is no file of labels by its name; want .npy, .txt or .csv")


def existing(file: Path) -> Path:
    """The same file, which exists; raises InputError where it does not."""
    if not file.is_file():
        raise InputError("there is no such file; want one that exists")
    return file


def read_array(file: Path) -> Shaped[np.ndarray, "..."]:
    """The array of a .npy file, mapped; never a pickled one."""
    try:
        # Copy on write: torch takes such a map without a copy, and does not take one that is read-only.
        found = np.load(file, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(array_problem(error)) from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise InputError("holds several arrays; want one, or the name to end in .npz")
    return np.asarray(found)


def array_problem(error: Exception) -> str:
    """One line on an array that NumPy cannot read."""
    said = " ".join(str(error).split())
    if "allow_pickle" in said or "Python objects" in said:
        return (
            "holds pickled Python objects or no array, and nothing is ever unpickled; want an array of"
            " numbers, or of strings for labels: convert it with numpy.array(values, dtype=...)"
        )
    return f"cannot be read as NumPy's array ({said}); want a whole file, written by numpy.save or savez"


def numbered(values: Shaped[np.ndarray, "..."]) -> Labels:
    """Labels as numbers, and their names where they are strings, or integers as they are."""
    if values.ndim != 1:
        raise InputError(f"labels have shape {list(values.shape)}; want [N], one an item")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "backslashreplace")
    if values.dtype.kind == "U":
        names, numbers = np.unique(values, return_inverse=True)
        return numbers.astype(np.int64), tuple(names.tolist())
    if values.dtype.kind not in "iu":
        raise InputError(f"labels are {values.dtype}; want integers or strings")
    if values.dtype.kind == "u" and values.size and int(values.max()) >= 2**63:
        raise InputError(f"a label is {values.max()}; want integers below 2^63")
    return values.astype(np.int64), None


def _lines(file: Path) -> list[str] | list[int]:
    """The labels of a text, one a line; integers where all of them are."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows: list[list[str]] = (
                list(csv.reader(stream))
                if file.suffix.lower() == ".csv"
                else [[line.strip()] for line in stream]
            )
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read as text ({error}); want UTF-8, one label a line") from None
    while rows and not any(rows[-1]):
        rows.pop()
    column, start = _column(rows) if file.suffix.lower() == ".csv" and rows else (0, 0)
    values = [row[column].strip() if column < len(row) else "" for row in rows[start:]]
    if not values:
        raise InputError("holds no labels; want one a line")
    if "" in values:
        raise InputError(f"line {values.index('') + start + 1} has no label; want one a line")
    # "007" is a name: as an integer it could not be told from "7".
    if all(value.removeprefix("-").isdecimal() and str(int(value)) == value for value in values):
        return [int(value) for value in values]
    return values


def _column(rows: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Which column of a .csv holds the labels, and the row in which they begin."""
    heading = [cell.strip().lower() for cell in rows[0]]
    if "label" in heading:
        return heading.index("label"), 1
    if len(heading) > 1:
        raise InputError(
            f"has {len(heading)} columns, {', '.join(map(repr, rows[0][:8]))}; want one of labels, or a first"
            " line that calls one of them label"
        )
    return 0, 0
