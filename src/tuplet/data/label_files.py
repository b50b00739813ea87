"""Labels in files: .npy, or text with one per line."""

from __future__ import annotations

import csv
import io
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64, Shaped

from tuplet.errors import DataError, counted, one_line, unusable

_HEADER = 1 << 16
"""Bytes read of an array to learn its type; the header of a .npy file is mostly 128 bytes long."""

Labels: TypeAlias = tuple[Int64[np.ndarray, " N"], tuple[str, ...] | None]
"""The class of each item, and the names of the classes where they have names."""


def read_labels(path: str | os.PathLike[str]) -> Labels:
    """Read the labels in a file, and the names of their classes where they are names.

    Args:
        path: .npy of integers or strings, .txt or .csv with one per line; of a .csv with a header, the column
            `label`. A text in which every line is an integer as a computer writes it ("7", not "007") holds
            integers.

    Raises:
        DataError: a file that cannot be read so.
    """
    file = Path(path)
    kind = file.suffix.lower()
    if kind not in (".npy", ".txt", ".csv"):
        raise unusable(file, "is no file of labels by its name", ".npy, .txt or .csv")
    with naming(file):
        values = read_array(existing(file)) if kind == ".npy" else np.array(_lines(existing(file), kind))
        return numbered(values)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Put a file's name before the message of a DataError raised inside, and make it the subject."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{file}: {error}", subject=file, given=error.given, wanted=error.wanted) from None


def existing(file: Path) -> Path:
    """Return the same file; raise DataError where it does not exist."""
    if not file.is_file():
        raise DataError("there is no such file; want one that exists", subject=file)
    return file


def read_array(file: Path) -> Shaped[np.ndarray, "..."]:
    """Map the array of a .npy file into memory; never unpickle one.

    Raises:
        DataError: no such file, or one that holds anything but one array.
    """
    try:
        # Copy on write: torch takes such a map without a copy, and does not take one that is read-only.
        array = np.load(file, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(array_problem(error, file), subject=file) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError("holds several arrays; want one, or the name to end in .npz")
    return np.asarray(array)


def array_problem(error: Exception, file: Path) -> str:
    """Return one line on a .npy or .npz file that NumPy cannot read without unpickling."""
    if _wants_unpickling(file):
        return (
            "holds pickled Python objects or no array, and nothing is ever unpickled; want an array of"
            " numbers, or of strings for labels: convert it with numpy.array(values, dtype=...)"
        )
    return (
        f"cannot be read as NumPy's array ({one_line(error, None)}); want a whole file, written by numpy.save"
        " or savez"
    )


def _wants_unpickling(file: Path) -> bool:
    """Return whether NumPy would unpickle the file, or an array in it."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(_is_pickle(archive.open(name).read(_HEADER)) for name in archive.namelist())
    except zipfile.BadZipFile:
        with file.open("rb") as stream:
            return _is_pickle(stream.read(_HEADER))
    except (OSError, zlib.error):
        return False


def _is_pickle(start: bytes) -> bool:
    """Return whether a file that starts so holds objects, or is no .npy file, which is to NumPy a pickle."""
    if not start.startswith(np.lib.format.MAGIC_PREFIX):
        return bool(start)
    stream = io.BytesIO(start)
    try:
        is_first = np.lib.format.read_magic(stream) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        return bool(read(stream)[2].hasobject)
    except ValueError:  # cut off, or a later version of the format
        return False


def numbered(values: Shaped[np.ndarray, "..."]) -> Labels:
    """Number the labels and return their names where they are strings; return integers as they are.

    Raises:
        DataError: not one-dimensional, neither strings nor integers, or an integer of 2^63 or more.
    """
    if values.ndim != 1:
        shape = list(values.shape)
        raise DataError(f"labels have shape {shape}; want [N], one an item", subject="labels", given=shape)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "backslashreplace")
    if values.dtype.kind == "U":
        names, numbers = np.unique(values, return_inverse=True)
        return numbers.astype(np.int64), tuple(names.tolist())
    if values.dtype.kind not in "iu":
        given = str(values.dtype)
        raise DataError(f"labels are {given}; want integers or strings", subject="labels", given=given)
    if values.dtype.kind == "u" and values.size and int(values.max()) >= 2**63:
        greatest = int(values.max())
        raise DataError(f"a label is {greatest}; want integers below 2^63", subject="labels", given=greatest)
    return values.astype(np.int64), None


def csv_rows(file: Path, wanted: str) -> list[list[str]]:
    """Read the cells of a .csv file, row by row.

    Args:
        file: UTF-8, with or without a byte order mark.
        wanted: what the text should be, for the message.

    Raises:
        DataError: no UTF-8, an open quote, or a row with more cells than the first.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            # Strict: a quote that is never closed would otherwise swallow the rows after it.
            rows = list(csv.reader(stream, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read as text ({error}); want UTF-8, {wanted}", subject=file) from None
    # A row with more cells than the heading mostly has a comma in a name: its cells are in wrong columns.
    width = len(rows[0]) if rows else 0
    at = next((at for at, row in enumerate(rows, 1) if any(row[width:])), None)
    if at is not None:
        cells = counted(len(rows[at - 1]), "cell")
        raise DataError(
            f"has {cells} in line {at}, and {width} in the first; want names with commas in double quotes",
            given=len(rows[at - 1]),
            wanted=width,
        )
    return rows


def column_named(name: str, heading: Sequence[str]) -> int | None:
    """Return the place of a column, in whatever case its name is written; None where there is none.

    Raises:
        DataError: there are several.
    """
    places = [at for at, cell in enumerate(heading) if cell.strip().lower() == name]
    if len(places) > 1:
        raise DataError(f"has {len(places)} columns {name}; want one", given=len(places), wanted=1)
    return places[0] if places else None


def _lines(file: Path, kind: str) -> list[str] | list[int]:
    """Return the labels of a text, one per line; integers where all of them are."""
    wanted, column, start = "one label a line", 0, 0
    if kind == ".csv":
        rows = csv_rows(file, wanted)
    else:
        try:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                rows = [[line.strip()] for line in stream]
        except UnicodeDecodeError as error:
            raise DataError(f"cannot be read as text ({error}); want UTF-8, {wanted}") from None
    while rows and not any(rows[-1]):
        rows.pop()
    if kind == ".csv" and rows:
        column, start = _column(rows[0])
    values = [row[column].strip() if column < len(row) else "" for row in rows[start:]]
    if not values:
        raise DataError("holds no labels; want one a line", subject=file, given=0)
    if "" in values:
        line = values.index("") + start + 1
        raise DataError(f"line {line} has no label; want one a line", subject=file, given=line)
    # "007" is a name: as an integer it could not be told from "7".
    if all(value.removeprefix("-").isdecimal() and str(int(value)) == value for value in values):
        return [int(value) for value in values]
    return values


def _column(first: Sequence[str]) -> tuple[int, int]:
    """Return which column of a .csv holds the labels, and the row in which they begin."""
    place = column_named("label", first)
    if place is not None:
        return place, 1
    if len(first) > 1:
        raise DataError(
            f"has {len(first)} columns, {', '.join(map(repr, first[:8]))}; want one of labels, or a first"
            " line that calls one of them label",
            given=first,
            wanted="label",
        )
    return 0, 0
