"""The vector columns of an index, as float32 or in few bytes, and the search in vectors of few bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from jaxtyping import Float32, Float64

from tuplet.inference.pictures import IndexedModel
from tuplet.metrics.small_vectors import CodeKind, SmallCode

RESCORED = 20
"""Candidates per requested picture: selected by their bits, then ranked by their bytes, or by their bits with
the float query."""
LEAST_RESCORED = 400

VECTOR_COLUMNS: dict[CodeKind, tuple[str, ...]] = {
    "float32": ("vector",),
    "int8": ("vector", "code"),
    "bits": ("vector",),
}
"""The columns of each kind; LanceDB searches `vector`, floats by cosine or bits by Hamming distance."""


def vector_fields(model: IndexedModel) -> list[pyarrow.Field]:
    """Return the columns that hold the vectors of a model."""
    small = model.small
    if small is None or small.kind == "float32":
        width = model.dim if small is None else small.width
        return [pyarrow.field("vector", pyarrow.list_(pyarrow.float32(), width), nullable=False)]
    bits = pyarrow.field("vector", pyarrow.list_(pyarrow.uint8(), small.width // 8), nullable=False)
    if small.kind == "bits":
        return [bits]
    return [bits, pyarrow.field("code", pyarrow.list_(pyarrow.int8(), small.width), nullable=False)]


def vector_cells(vectors: Float32[np.ndarray, "N D"], model: IndexedModel) -> list[dict[str, Any]]:
    """Return the values of the vector columns for each unit vector."""
    small = model.small
    if small is None:
        return [{"vector": vector} for vector in vectors]
    projected = small.project(vectors)
    if small.kind == "float32":
        return [{"vector": vector} for vector in projected]
    cells: list[dict[str, Any]] = [{"vector": bits} for bits in small.bits(projected)]
    if small.kind == "int8":
        for cell, code in zip(cells, small.bytes(projected), strict=True):
            cell["code"] = code
    return cells


def stored_vectors(
    rows: pyarrow.RecordBatch | pyarrow.Table, model: IndexedModel
) -> Float32[np.ndarray, "N D"]:
    """Return the unit vectors of rows, as wide as the model's."""
    small = model.small
    if small is None:
        return _matrix(rows, "vector").astype(np.float32, copy=False)
    return small.lift(_kept(rows, small))


def _kept(rows: pyarrow.RecordBatch | pyarrow.Table, small: SmallCode) -> Float32[np.ndarray, "N w"]:
    """Return the unit vectors of rows in the directions that are kept."""
    if small.kind == "int8":
        return small.from_bytes(_matrix(rows, "code"))
    stored = _matrix(rows, "vector")
    return stored if small.kind == "float32" else small.from_bits(stored)


def candidates_of(
    table: Any, vector: Float32[np.ndarray, " D"], small: SmallCode, top: int, num_rows: int
) -> Any:
    """Return LanceDB's search for the rows that may be among the nearest to a unit vector.

    Args:
        table: with `num_rows` rows, all of which are candidates where `top` is as many.
        vector: looked up.
        small: how the table holds vectors.
        top: how many are wanted.
        num_rows: of the table, >= 1.
    """
    query = small.project(vector[None])
    if small.kind == "float32":
        return table.search(query[0]).distance_type("cosine").limit(top)
    search = table.search(small.bits(query)[0]).distance_type("hamming")
    return search.limit(min(max(RESCORED * top, LEAST_RESCORED), num_rows))


def rank_candidates(
    rows: pyarrow.Table, vector: Float32[np.ndarray, " D"], small: SmallCode
) -> Float64[np.ndarray, " n"]:
    """Return the distance, 1 - cosine, of each candidate to the float query."""
    cosines = _kept(rows, small).astype(np.float64) @ small.project(vector[None])[0].astype(np.float64)
    distances: Float64[np.ndarray, " n"] = 1.0 - cosines
    return distances


def _matrix(rows: pyarrow.RecordBatch | pyarrow.Table, column: str) -> np.ndarray:
    dim = rows.schema.field(column).type.list_size
    flat: np.ndarray = pyarrow.compute.list_flatten(rows[column]).to_numpy(zero_copy_only=False)
    return flat.reshape(-1, dim)
