"""Embeddings in Parquet files, by pyarrow, which the extra `tables` installs."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float, Int64, Shaped

from tuplet.data.label_files import Labels, numbered
from tuplet.errors import DataError, MissingExtraError, one_line


def read_columns(file: Path, choose: Callable[[Any], list[str]]) -> Any:
    """Read some columns of a Parquet file, as a pyarrow.Table.

    Args:
        file: an existing file.
        choose: returns the names of the columns to read, given the pyarrow.Schema of all.

    Raises:
        DataError: no Parquet; or what `choose` raises.
        MissingExtraError: pyarrow is not installed.
    """
    arrow, parquet = pyarrow_modules()
    try:
        with parquet.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            twice = (
                sorted({name for name in names if names.count(name) > 1})
                if len(set(names)) < len(names)
                else []
            )
            if twice:
                raise DataError(f"has several columns {', '.join(twice)}; want one of each", given=twice)
            return opened.read(columns=choose(opened.schema_arrow))
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"cannot be read as Parquet ({one_line(error)}); want a whole .parquet file", subject=file
        ) from None


def text_column(column: Any, name: str) -> list[str]:
    """Return the cells of a column as text, "" where one is empty.

    Args:
        column: of strings, integers or booleans, or of finite floats.
        name: of the column, for messages.

    Raises:
        DataError: a column of another type, or NaN or infinity in it.
    """
    import pyarrow as arrow

    kind = column.type.value_type if arrow.types.is_dictionary(column.type) else column.type
    if arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind) or arrow.types.is_nested(kind):
        raise DataError(f"its column {name} holds {kind}; want strings or numbers", given=str(kind))
    cells = column.to_pylist()
    odd = next((cell for cell in cells if isinstance(cell, float) and not math.isfinite(cell)), None)
    if odd is not None:
        raise DataError(f"its column {name} holds {odd}; want a value in every row", given=odd)
    return ["" if cell is None else str(cell) for cell in cells]


def read_parquet(
    file: Path, labels: Labels | None
) -> tuple[Float[np.ndarray, "N D"], Labels, tuple[str, ...] | None]:
    """Read the embeddings, labels and paths in a file's columns (see `read_embeddings`).

    Args:
        file: an existing file.
        labels: what to return as labels; None: the column `label`, which must be there then.

    Raises:
        DataError: no Parquet, a column that is missing (those that are there are named), lists of several
            lengths, or an empty cell (names the first such row).
        MissingExtraError: pyarrow is not installed.
    """
    arrow, _ = pyarrow_modules()
    dimensions: list[str] = []

    def choose(schema: Any) -> list[str]:
        dimensions.extend(_dimensions(arrow, schema))
        if labels is None and "label" not in schema.names:
            raise DataError(f"has no column label, but {_listed(schema.names)}; want one, or --labels FILE")
        return [*dimensions, *(name for name in ("label", "path") if name in schema.names)]

    table = read_columns(file, choose)
    if table.num_rows == 0:
        raise DataError("has no rows; want one an item")
    columns = [_full(table[name], name) for name in dimensions]
    embeddings = (
        _matrix(columns[0])
        if dimensions == ["embedding"]
        else np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1)
    )
    if labels is None:
        labels = numbered(_labels(arrow, _full(table["label"], "label")))
    paths = None
    if "path" in table.column_names:
        cells = table["path"].to_pylist()
        paths = tuple(f"row {row}" if cell is None else str(cell) for row, cell in enumerate(cells))
    return embeddings, labels, paths


def write_parquet(
    stream: BinaryIO,
    embeddings: Float[np.ndarray, "N D"],
    labels: Int64[np.ndarray, " N"],
    class_names: Sequence[str] | None,
    paths: Sequence[str] | None,
) -> None:
    """Write the columns `embedding`, `label` and, where there are any, `path`.

    Args:
        stream: written to, not closed.
        embeddings: one row per item.
        labels: class of each item; 0..C-1 where there are names.
        class_names: what to write as labels; None: the integers.
        paths: of the items, or None.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    arrow, parquet = pyarrow_modules()
    flat = arrow.array(np.ascontiguousarray(embeddings).reshape(-1))
    columns = {
        "embedding": arrow.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]),
        "label": arrow.array(labels)
        if class_names is None
        else arrow.DictionaryArray.from_arrays(arrow.array(labels), arrow.array(_text(class_names))),
    }
    if paths is not None:
        columns["path"] = arrow.array(_text(paths))
    parquet.write_table(arrow.table(columns), stream)


def pyarrow_modules() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet; raise a `MissingExtraError` unless they are there."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "tables", purpose="a Parquet file") from None
    return pyarrow, pyarrow.parquet


def _dimensions(arrow: Any, schema: Any) -> list[str]:
    """Return `embedding`, or the numeric columns that are called by one prefix and a number, in order."""
    if "embedding" in schema.names:
        kind = schema.field("embedding").type
        lists = arrow.types.is_list, arrow.types.is_large_list, arrow.types.is_fixed_size_list
        if any(is_kind(kind) for is_kind in lists) and arrow.types.is_floating(kind.value_type):
            return ["embedding"]
        raise DataError(f"its column embedding holds {kind}; want lists of float16, float32 or float64")
    groups: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for field in schema:
        numbered = re.fullmatch(r"(.*?)(\d+)", field.name)
        if numbered and arrow.types.is_floating(field.type):
            other = groups[numbered[1]].setdefault(int(numbered[2]), field.name)
            if other != field.name:
                raise DataError(f"has columns {other} and {field.name}; want one for each dimension")
    wanted = "want a column embedding of lists, or one of floats for each dimension, such as e0, e1, e2"
    if len(groups) != 1:
        raise DataError(f"has no column embedding, but {_listed(schema.names)}; {wanted}")
    ((prefix, columns),) = groups.items()
    numbers = sorted(columns)
    gaps = [number for number in range(numbers[0], numbers[-1]) if number not in columns]
    if gaps or numbers[0] > 1:
        missing = gaps[0] if gaps else 0
        raise DataError(
            f"has columns {prefix}{numbers[0]} to {prefix}{numbers[-1]} without {prefix}{missing}; {wanted}"
        )
    return [columns[number] for number in numbers]


def _full(column: Any, name: str) -> Any:
    """Return a column without empty cells as one array."""
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"column {name} is empty in row {row}; want a value in every row: drop such rows")
    return column.combine_chunks()


def _matrix(lists: Any) -> Float[np.ndarray, "N D"]:
    import pyarrow.compute as compute

    lengths = compute.list_value_length(lists).to_numpy(zero_copy_only=False)
    uneven = np.flatnonzero(lengths != lengths[0])
    if uneven.size:
        row = int(uneven[0])
        raise DataError(
            f"the embedding in row {row} has {lengths[row]} numbers and that in row 0 {lengths[0]}; want one"
            " length"
        )
    values = lists.flatten()
    if values.null_count:
        place = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"the embedding in row {place // int(lengths[0])} lacks a number; want {lengths[0]}")
    matrix: Float[np.ndarray, "N D"] = values.to_numpy(zero_copy_only=False).reshape(len(lists), -1)
    return matrix


def _labels(arrow: Any, column: Any) -> Shaped[np.ndarray, " N"]:
    if arrow.types.is_dictionary(column.type):
        column = _full(arrow.chunked_array([column.dictionary_decode()]), "label")
    kind = column.type
    if arrow.types.is_integer(kind):
        integers: Shaped[np.ndarray, " N"] = column.to_numpy(zero_copy_only=False)
        return integers
    if not (
        arrow.types.is_string(kind) or arrow.types.is_large_string(kind) or arrow.types.is_string_view(kind)
    ):
        raise DataError(f"its column label holds {kind}; want integers or strings")
    return np.array(column.to_pylist(), dtype=np.str_)


def _text(values: Sequence[str]) -> list[str]:
    # The name of a file may be no text; Parquet's strings are.
    return [value.encode("utf-8", "backslashreplace").decode() for value in values]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none at all") + more
