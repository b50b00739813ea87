"""The index: one row per picture, with its vector and the facts of its file; searched by cosine."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, final

import lancedb
import numpy as np
import pyarrow
import pyarrow.compute
from jaxtyping import Float32, UInt64

from tuplet.errors import RequestError, SearchIndexError
from tuplet.inference.pictures import IndexedModel
from tuplet.metrics.reranking import Reranking
from tuplet.metrics.small_vectors import SmallCode
from tuplet.search.reranking import nearest_reranked
from tuplet.search.small_storage import (
    VECTOR_COLUMNS,
    candidates_of,
    rank_candidates,
    stored_vectors,
    vector_fields,
)
from tuplet.search.storage import (
    TABLE,
    Uri,
    all_of,
    any_of,
    lance_errors,
    make_table,
    no_rows,
    open_table,
    quoted,
)

VECTOR_INDEX = "vector_idx"
"""LanceDB's name of the approximate index of the column `vector`."""
LEAST_PROBES = 20
"""Partitions of the approximate index that every search reads; more if a condition leaves too few hits."""
REFINE_FACTOR = 10
"""Candidates per requested picture that are ranked by their true distance."""

_COLUMNS = ["id", "path", "label", "size", "modified", "content"]
_MODEL_KEY = b"tuplet.model"
_MANY_PICTURES, _MANY_LABELS = 1000, 1000
_HASH_DIGITS = 32
_SPELT_BYTE = re.compile(rb"\\x([0-9a-f]{2})")


def schema_of(model: IndexedModel) -> pyarrow.Schema:
    """Return the columns of an index of this model's vectors."""
    text = pyarrow.string()
    columns = [
        pyarrow.field("id", text, nullable=False),
        pyarrow.field("path", text, nullable=False),
        pyarrow.field("label", text),
        pyarrow.field("size", pyarrow.int64(), nullable=False),
        pyarrow.field("modified", pyarrow.timestamp("us", "UTC"), nullable=False),
        pyarrow.field("content", text, nullable=False),
        *vector_fields(model),
        pyarrow.field("thumbnail", pyarrow.binary(), nullable=False),
    ]
    return pyarrow.schema(columns, metadata={_MODEL_KEY: model.to_json().encode()})


def is_complete(schema: pyarrow.Schema) -> bool:
    """Return whether this version of tuplet can use a table with this schema."""
    try:
        return bool(schema.equals(schema_of(_model_of(schema))))
    except (KeyError, ValueError, TypeError):  # the model's description has more, fewer or other fields
        return False


def _model_of(schema: pyarrow.Schema) -> IndexedModel:
    return IndexedModel.from_json((schema.metadata or {})[_MODEL_KEY])


def picture_id(path: str) -> str:
    """Return the id of a picture in every index: the first 32 hexadecimal digits of its path's SHA-256.

    It depends on the absolute path alone, so it stays when the file's content changes.
    """
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:_HASH_DIGITS]


def content_hash(file: Path) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256 of a file's bytes; raise OSError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:_HASH_DIGITS]


def bytes_hash(content: bytes) -> str:
    """Return what `content_hash` returns for a file with these bytes."""
    return hashlib.sha256(content).hexdigest()[:_HASH_DIGITS]


@dataclass(frozen=True)
class IndexedPicture:
    """The row of a picture in an index, without its vector and thumbnail.

    Attributes:
        id: see `picture_id`; the same after indexing again.
        path: absolute, where it was indexed; bytes that are not UTF-8 in hexadecimal, see `stored_text`.
        label: name of its class; None where it has none.
        size: of the file, bytes.
        modified: modification time of the file when it was indexed.
        content: hash of the file's bytes; equal for exact copies.
    """

    id: str
    path: str
    label: str | None
    size: int
    modified: datetime
    content: str

    @property
    def file(self) -> str:
        """The path to open the file by; that of a name that is not UTF-8 has the bytes that `path` spells."""
        # The same text may also be the name itself; the id is the hash of the true one.
        if "\\x" not in self.path or picture_id(self.path) == self.id:
            return self.path
        return os.fsdecode(_SPELT_BYTE.sub(lambda spelt: bytes([int(spelt[1], 16)]), self.path.encode()))


@dataclass(frozen=True)
class Neighbour:
    """A result of a search: a picture, and its distance 1 - cosine, in [0, 2], to the query vector."""

    picture: IndexedPicture
    distance: float


@dataclass(frozen=True)
class VectorBatch:
    """Some pictures of an index and their vectors, of unit length."""

    pictures: tuple[IndexedPicture, ...]
    vectors: Float32[np.ndarray, "n D"]


@final
class ImageIndex:
    """The pictures of an index, as they were when it was opened or last refreshed.

    Several threads may search one index at the same time, also while another process writes it. Methods that
    read it raise SearchIndexError if that fails.

    Args:
        uri: a folder, or s3://bucket/path; see `open_table`.
        name: of the table: the one that is searched, or one that will replace it.

    Attributes:
        table: LanceDB's table (`lancedb.table.Table`), another object after `refresh`.

    Raises:
        SearchIndexError: there is no index, or it cannot be read.
    """

    def __init__(self, uri: Uri, name: str = TABLE) -> None:
        self.uri, self.name = uri, name
        self._session = lancedb.Session()
        self.table: Any = self._latest()
        self._opened_with = self.model

    @classmethod
    def create(cls, uri: Uri, model: IndexedModel, name: str = TABLE) -> ImageIndex:
        """Make an empty index in place of what there was; raise SearchIndexError where that fails."""
        make_table(uri, no_rows(schema_of(model)), name)
        return cls(uri, name)

    @property
    def model(self) -> IndexedModel:
        """Return the description of the model that made the vectors."""
        return _model_of(self.table.schema)

    @property
    def version(self) -> int:
        """Return the number of the version that is read; every commit makes a new one."""
        return int(self.table.version)

    @property
    def is_approximate(self) -> bool:
        """Return whether there is an approximate index, so that a search need not compare every vector."""
        return any(index.name == VECTOR_INDEX for index in self.table.list_indices())

    def refresh(self) -> None:
        """Switch to the latest version, with all that other processes have committed."""
        # A new table object, so that a search that runs in another thread keeps one version and its model.
        self.table = self._latest()

    def _latest(self) -> Any:
        table = open_table(self.uri, self.name, self._session)
        if table is None:
            wanted = f"tuplet index PHOTOS --model RUN --index {self.uri}"
            raise self._error(f"there is no index in {self.uri}; want one: {wanted}")
        if _MODEL_KEY not in (table.schema.metadata or {}):
            raise self._error(
                f"the table in {self.uri} was not made by tuplet; want an index that tuplet index made"
            )
        if not is_complete(table.schema):
            raise self._error(
                f"the index {self.uri} was made by another version of tuplet; want that version, or the index"
                " made again with tuplet index --model RUN --rebuild"
            )
        return table

    def nearest(
        self,
        vector: Float32[np.ndarray, " D"],
        top: int = 10,
        *,
        where: str | None = None,
        exclude: Collection[str] = (),
        exact: bool = False,
        rerank: Reranking | None = None,
    ) -> list[Neighbour]:
        """Return the nearest pictures, nearest first, equally near ones by path.

        Args:
            vector: of unit length, of the index's model.
            top: how many, >= 1; fewer come back where there are fewer.
            where: an SQL condition, see `count`; only pictures that meet it are searched.
            exclude: ids of pictures to leave out.
            exact: compare every vector even where there is an approximate index.
            rerank: order the results anew, see `nearest_reranked`; None: by distance.

        Raises:
            RequestError: a vector of another width or of no direction (NaN, infinity or zeros), `top` out of
                range, or a condition or re-ranking that cannot be used.
            SearchIndexError: the index was rebuilt with another model since it was opened.
        """
        table = self.table
        model = _model_of(table.schema)
        self._require_request(model, vector, top)
        if rerank is not None:
            # A copy keeps this version: `refresh` in another thread may remove what the first search finds.
            version = copy.copy(self)
            version.table = table
            find = partial(version.nearest, where=where, exclude=exclude, exact=exact)
            return nearest_reranked(version, find, vector, top, rerank)
        if top > _MANY_PICTURES:  # LanceDB allocates for all that are asked for, and aborts where it cannot
            top = min(top, max(self.count(), 1))
        condition = all_of(where, f"NOT {any_of('id', exclude)}" if exclude else None)
        if model.small is not None:
            return self._nearest_small(table, vector, model.small, top, where, condition, exact=exact)
        with self._reading(where):
            search = table.search(vector).distance_type("cosine").limit(top)
            search = search.minimum_nprobes(LEAST_PROBES).maximum_nprobes(0).refine_factor(REFINE_FACTOR)
            if condition is not None:
                search = search.where(condition)
            if exact:
                search = search.bypass_vector_index()
            rows = search.select([*_COLUMNS, "_distance"]).to_arrow().to_pylist()
        # Rounding may make the distance of a vector to itself negative.
        neighbours = [Neighbour(_picture(row), max(0.0, row["_distance"])) for row in rows]
        return sorted(neighbours, key=lambda neighbour: (neighbour.distance, neighbour.picture.path))

    def _require_request(self, model: IndexedModel, vector: Float32[np.ndarray, " D"], top: int) -> None:
        """Raise an error unless the index still has its model, and the vector is of it."""
        difference = self._opened_with.difference(model)
        if difference:
            raise self._error(
                f"{self.uri} was rebuilt with another model ({difference}); want it opened again"
            )
        if vector.shape != (model.dim,):
            raise RequestError(
                f"the vector has shape {list(vector.shape)}; want [{model.dim}], as in {self.uri}",
                subject="vector",
                given=vector.shape,
                wanted=(model.dim,),
            )
        length = float(np.linalg.norm(vector.astype(np.float64)))
        if not 0 < length < np.inf:  # LanceDB would find nothing
            raise RequestError(
                f"the vector has length {length:g}; want one of unit length", subject="vector", given=length
            )
        if top < 1:
            raise RequestError(f"top is {top}; want 1 or more", subject="top", given=top)

    def _nearest_small(
        self,
        table: Any,
        vector: Float32[np.ndarray, " D"],
        small: SmallCode,
        top: int,
        where: str | None,
        condition: str | None,
        *,
        exact: bool,
    ) -> list[Neighbour]:
        """Return the results of `nearest` for an index that stores vectors in few bytes."""
        with self._reading(where):
            num_rows = max(int(table.count_rows()), 1)
            search = candidates_of(table, vector, small, num_rows if exact else top, num_rows)
            if condition is not None:
                search = search.where(condition)
            rows = search.select([*_COLUMNS, *VECTOR_COLUMNS[small.kind], "_distance"]).to_arrow()
        # Rounding may make the distance of a vector to itself negative.
        distances = rank_candidates(rows, vector, small).clip(min=0.0).tolist()
        pictures = map(_picture, rows.select(_COLUMNS).to_pylist())
        neighbours = [Neighbour(*pair) for pair in zip(pictures, distances, strict=True)]
        return sorted(neighbours, key=lambda neighbour: (neighbour.distance, neighbour.picture.path))[:top]

    def row(self, picture: str) -> IndexedPicture:
        """Return the row of a picture by its id; raise RequestError if there is no such picture."""
        return _picture(self._row(picture, _COLUMNS))

    def thumbnail(self, picture: str) -> bytes:
        """Return a small JPEG of a picture, by its id; raise RequestError where there is no such picture."""
        return bytes(self._row(picture, ["thumbnail"])["thumbnail"])

    def vector(self, picture: str) -> Float32[np.ndarray, " D"]:
        """Return the unit vector of a picture, by its id; raise RequestError where there is no such one."""
        table = self.table
        model = _model_of(table.schema)
        with self._reading():
            search = table.search().where(f"id = {quoted(picture)}")
            rows = search.select(_vector_columns(model)).limit(1).to_arrow()
        if rows.num_rows == 0:
            raise self._no_picture(picture)
        vector: Float32[np.ndarray, " D"] = stored_vectors(rows, model)[0]
        return vector

    def thumbnails(self, pictures: Collection[str]) -> dict[str, bytes]:
        """Return the thumbnails (JPEG) of some pictures by id; ids that do not exist are left out."""
        batches = self._batches(self.table, ["id", "thumbnail"], own=any_of("id", pictures))
        return {row["id"]: row["thumbnail"] for batch in batches for row in batch.to_pylist()}

    def copies(self, content: str) -> list[IndexedPicture]:
        """Return the pictures with this hash of their bytes, by path."""
        batches = self._batches(self.table, _COLUMNS, own=f"content = {quoted(content)}")
        pictures = [_picture(row) for batch in batches for row in batch.to_pylist()]
        return sorted(pictures, key=lambda picture: picture.path)

    def count(self, where: str | None = None) -> int:
        """Count the pictures.

        Args:
            where: an SQL condition on id, path, label, size, modified or content.

        Raises:
            RequestError: a condition that cannot be used.
        """
        with self._reading(where):
            return int(self.table.count_rows(all_of(where)))

    def labels(self) -> dict[str, int]:
        """Count the pictures of each label; pictures without one are left out."""
        with self._reading():
            column = self.table.search().select(["label"]).to_arrow()["label"]
        counts = pyarrow.compute.value_counts(column.drop_null())
        return dict(sorted(zip(*(counts.field(name).to_pylist() for name in (0, 1)), strict=True)))

    def pictures(self, where: str | None = None) -> Iterator[IndexedPicture]:
        """Yield every picture, in no order, read in batches; `where` as in `count`."""
        for batch in self._batches(self.table, _COLUMNS, where):
            yield from map(_picture, batch.to_pylist())

    def vectors(self, *, batch_size: int = 8192, where: str | None = None) -> Iterator[VectorBatch]:
        """Yield every picture with its vector, in no order, in batches; `where` as in `count`."""
        table = self.table
        model = _model_of(table.schema)
        for batch in self._batches(table, [*_COLUMNS, *_vector_columns(model)], where, batch_size):
            yield _vectors(batch, model)

    def sample(self, count: int, seed: int, *, labels: Collection[str] | None = None) -> VectorBatch:
        """Draw pictures at random without repetition, and return them by id; fewer where there are fewer.

        Args:
            count: >= 1.
            seed: >= 0; the same pictures come from the same version of the index.
            labels: draw among pictures with these only; None: among all.
        """
        random, table = np.random.default_rng(seed), self.table
        model = _model_of(table.schema)
        with self._reading():
            if labels is None:
                places = random.choice(rows := table.count_rows(), min(count, rows), replace=False)
                drawn = table.take_offsets(places.tolist())
            else:
                numbers = _row_numbers(table, labels)
                places = random.choice(numbers, min(count, len(numbers)), replace=False)
                drawn = table.take_row_ids(places.tolist())
            columns = [*_COLUMNS, *_vector_columns(model)]
            return _vectors(drawn.select(columns).to_arrow().sort_by("id"), model)

    def _row(self, picture: str, columns: list[str]) -> dict[str, Any]:
        with self._reading():
            rows = self.table.search().where(f"id = {quoted(picture)}").select(columns).limit(1).to_arrow()
        if rows.num_rows == 0:
            raise self._no_picture(picture)
        row: dict[str, Any] = rows.to_pylist()[0]
        return row

    def _no_picture(self, picture: str) -> RequestError:
        return RequestError(
            f"there is no picture {picture!r} in {self.uri}; want the id of one that is",
            subject="id",
            given=picture,
        )

    def _batches(
        self,
        table: Any,
        columns: list[str],
        where: str | None = None,
        size: int | None = None,
        own: str | None = None,
    ) -> Iterator[pyarrow.RecordBatch]:
        """Yield rows that meet both conditions; an error is blamed on the caller's `where`, not on `own`."""
        with self._reading(where):
            search = table.search().select(columns)
            condition = all_of(where, own)
            if condition is not None:
                search = search.where(condition)
            yield from (batch for batch in search.to_batches(size) if batch.num_rows)

    def _reading(self, where: str | None = None) -> AbstractContextManager[None]:
        if where is None:
            wanted = "want it whole, or made again with tuplet index --model RUN --rebuild"
            return lance_errors(f"cannot read the index {self.uri}", wanted, subject=self.uri)
        wanted = f"want SQL on {', '.join(_COLUMNS)}, such as \"label = 'oak' AND size > 10000\""
        what = f"the condition {where!r} cannot be used"
        return lance_errors(what, wanted, subject="where", kind=RequestError)

    def _error(self, message: str) -> SearchIndexError:
        return SearchIndexError(message, subject=self.uri)


def _picture(row: dict[str, Any]) -> IndexedPicture:
    modified = row["modified"].astimezone(UTC)
    return IndexedPicture(row["id"], row["path"], row["label"], row["size"], modified, row["content"])


def _vector_columns(model: IndexedModel) -> list[str]:
    small = model.small
    return list(VECTOR_COLUMNS["float32" if small is None else small.kind])


def _vectors(rows: pyarrow.RecordBatch | pyarrow.Table, model: IndexedModel) -> VectorBatch:
    pictures = tuple(map(_picture, rows.select(_COLUMNS).to_pylist()))
    return VectorBatch(pictures, stored_vectors(rows, model))


def _row_numbers(table: Any, labels: Collection[str]) -> UInt64[np.ndarray, " n"]:
    """Return LanceDB's numbers of the rows with one of some labels."""
    search = table.search().select(["label"]).with_row_id(True)
    if len(labels) <= _MANY_LABELS:  # quicker than to read all of them
        search = search.where(any_of("label", labels))
    rows = search.to_arrow()
    # Filter in Arrow: a Python loop would create an object per row and hold the interpreter lock.
    wanted = pyarrow.compute.is_in(rows["label"], pyarrow.array(list(labels), pyarrow.string()))
    numbers: UInt64[np.ndarray, " n"] = rows["_rowid"].filter(wanted).to_numpy()
    return numbers
