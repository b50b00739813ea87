"""The index: one row a picture, its vector, and what was found about its file; searched by cosine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import lancedb
import numpy as np
import pyarrow
import pyarrow.compute
from jaxtyping import Float32, UInt64

from tuplet.errors import InputError
from tuplet.inference.encoder import IndexedModel
from tuplet.search.storage import (
    TABLE,
    Uri,
    all_of,
    any_of,
    errors_in_a_line,
    make_table,
    no_rows,
    open_table,
    quoted,
)

COLUMNS = ("id", "path", "label", "size", "modified", "content")
"""What is known of a picture, but for its vector and thumbnail."""
_MODEL_KEY = b"tuplet.model"


def schema_of(model: IndexedModel) -> pyarrow.Schema:
    """The columns of an index of this model's vectors."""
    text = pyarrow.string()
    columns = [
        pyarrow.field("id", text, nullable=False),
        pyarrow.field("path", text, nullable=False),
        pyarrow.field("label", text),
        pyarrow.field("size", pyarrow.int64(), nullable=False),
        pyarrow.field("modified", pyarrow.timestamp("us", "UTC"), nullable=False),
        pyarrow.field("content", text, nullable=False),
        pyarrow.field("vector", pyarrow.list_(pyarrow.float32(), model.dim), nullable=False),
        pyarrow.field("thumbnail", pyarrow.binary(), nullable=False),
    ]
    return pyarrow.schema(columns, metadata={_MODEL_KEY: model.to_json().encode()})


def model_of(schema: pyarrow.Schema) -> IndexedModel:
    """The model whose vectors are in a table with this schema, which `require_complete` has seen."""
    return IndexedModel.from_json((schema.metadata or {})[_MODEL_KEY])


def is_complete(schema: pyarrow.Schema) -> bool:
    """Whether this version of tuplet can use a table with this schema."""
    try:
        return bool(schema.equals(schema_of(model_of(schema))))
    except (KeyError, ValueError, TypeError):  # what is said of the model is more, less or something else
        return False


def require_complete(schema: pyarrow.Schema, uri: Uri) -> None:
    """Nothing; raises InputError where this version of tuplet cannot use the table.

    Args:
        schema: of the table.
        uri: where it lies.
    """
    if _MODEL_KEY not in (schema.metadata or {}):
        raise InputError(f"the table in {uri} is none of tuplet's; want an index that tuplet index made")
    if not is_complete(schema):
        raise InputError(
            f"the index {uri} was made by another version of tuplet; want that version, or the index made"
            " anew with tuplet index --model RUN --rebuild"
        )


VECTOR_INDEX = "vector_idx"
"""LanceDB's name of the approximate index of the column `vector`."""
LEAST_PROBES = 20
"""Parts of the approximate index that every search looks into; more, where a condition leaves too little."""
REFINE_FACTOR = 10
"""So many times as many candidates as asked for are ranked by their true distance."""

_MANY = 1000
_HASH_DIGITS = 32
_COLUMNS = list(COLUMNS)


def picture_id(path: str) -> str:
    """The name of a picture in every index: the first 32 hexadecimal digits of its path's SHA-256.

    It stays the same as long as the path does, whatever becomes of the file's content.

    Args:
        path: absolute.
    """
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:_HASH_DIGITS]


def content_hash(file: Path) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of a file's bytes; raises OSError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:_HASH_DIGITS]


@dataclass(frozen=True)
class IndexedPicture:
    """What an index knows of a picture, but for its vector and thumbnail.

    Attributes:
        id: see `picture_id`; the same after indexing again.
        path: absolute, where it was indexed.
        label: name of its class; None where it has none.
        size: of the file, bytes.
        modified: when the file was, as far as the index knows.
        content: hash of the file's bytes; equal for exact copies.
    """

    id: str
    path: str
    label: str | None
    size: int
    modified: datetime
    content: str


@dataclass(frozen=True)
class Neighbour:
    """A picture that was found.

    Attributes:
        picture: which.
        distance: 1 - cosine, in [0, 2], to the vector that was looked up.
    """

    picture: IndexedPicture
    distance: float


@dataclass(frozen=True)
class VectorBatch:
    """Some rows of an index.

    Attributes:
        pictures: which.
        vectors: of unit length, `[n, D]`.
    """

    pictures: tuple[IndexedPicture, ...]
    vectors: Float32[np.ndarray, "n D"]


@final
class ImageIndex:
    """The pictures of an index, as they were when it was opened or last refreshed.

    Many threads may search one index at the same time, and while another process writes it.

    Args:
        uri: a folder, or s3://bucket/path; see `open_table`.
        name: of the table: the one that answers, or one that is to take its place.

    Attributes:
        uri: where it lies.
        name: of the table.
        table: LanceDB's table (`lancedb.table.Table`), another object after `refresh`.

    Raises:
        InputError: there is no index, or it cannot be read.
    """

    def __init__(self, uri: Uri, name: str = TABLE) -> None:
        self.uri, self.name = uri, name
        self._session = lancedb.Session()
        self.table: Any = self._latest()
        self._opened_with = self.model

    @classmethod
    def create(cls, uri: Uri, model: IndexedModel, name: str = TABLE) -> ImageIndex:
        """An empty index in place of what there was; raises InputError where it cannot be written."""
        make_table(uri, no_rows(schema_of(model)), name)
        return cls(uri, name)

    @property
    def model(self) -> IndexedModel:
        """What made the vectors."""
        return model_of(self.table.schema)

    @property
    def version(self) -> int:
        """Number of the version that is read; every commit makes a new one."""
        return int(self.table.version)

    def refresh(self) -> None:
        """Nothing; what others have written until now can be seen then."""
        # A new object, for a search in another thread must see one version only, with its model.
        self.table = self._latest()

    def _latest(self) -> Any:
        table = open_table(self.uri, self.name, self._session)
        if table is None:
            wanted = f"tuplet index PHOTOS --model RUN --index {self.uri}"
            raise InputError(f"there is no index in {self.uri}; want one: {wanted}")
        require_complete(table.schema, self.uri)
        return table

    def count(self, where: str | None = None) -> int:
        """How many pictures there are.

        Args:
            where: an SQL condition on id, path, label, size, modified or content.

        Raises:
            InputError: a condition that cannot be used.
        """
        with self._reading(where):
            return int(self.table.count_rows(all_of(where)))

    @property
    def is_approximate(self) -> bool:
        """Whether there is an approximate index, so that a search need not look at every vector."""
        return any(one.name == VECTOR_INDEX for one in self.table.list_indices())

    def nearest(
        self,
        vector: Float32[np.ndarray, " D"],
        top: int = 10,
        *,
        where: str | None = None,
        exclude: Collection[str] = (),
        exact: bool = False,
    ) -> list[Neighbour]:
        """The nearest pictures, nearest first, equally near ones by path.

        Args:
            vector: of unit length, of the index's model.
            top: how many, >= 1; fewer come back where there are fewer.
            where: an SQL condition, see `count`; only pictures that meet it are looked at.
            exclude: ids of pictures to pass over.
            exact: look at every vector even where there is an approximate index.

        Raises:
            InputError: a vector of another width, a condition that cannot be used, or an index that was made
                anew with another model since it was opened.
        """
        table = self.table
        model = model_of(table.schema)
        difference = self._opened_with.difference(model)
        if difference:
            raise InputError(
                f"{self.uri} was made anew with another model ({difference}); want this started again"
            )
        if vector.shape != (model.dim,):
            raise InputError(
                f"the vector has shape {list(vector.shape)}; want [{model.dim}], as in {self.uri}"
            )
        if top < 1:
            raise InputError(f"top is {top}; want 1 or more")
        if top > _MANY:  # LanceDB makes room for all that are asked for, and aborts where there is none
            top = min(top, max(self.count(), 1))
        others = f"NOT {any_of('id', exclude)}" if exclude else None
        with self._reading(where):
            search = table.search(vector).distance_type("cosine").limit(top)
            search = search.minimum_nprobes(LEAST_PROBES).maximum_nprobes(0).refine_factor(REFINE_FACTOR)
            condition = all_of(where, others)
            if condition is not None:
                search = search.where(condition)
            if exact:
                search = search.bypass_vector_index()
            rows = search.select([*_COLUMNS, "_distance"]).to_arrow().to_pylist()
        # Rounding takes the distance of a vector to itself below zero.
        found = [Neighbour(_picture(row), max(0.0, row["_distance"])) for row in rows]
        return sorted(found, key=lambda one: (one.distance, one.picture.path))

    def row(self, picture: str) -> IndexedPicture:
        """What is known of a picture, by its id; raises InputError where there is none of this id."""
        return _picture(self._row(picture, _COLUMNS))

    def thumbnail(self, picture: str) -> bytes:
        """A small JPEG of a picture, by its id; raises InputError where there is none of this id."""
        return bytes(self._row(picture, ["thumbnail"])["thumbnail"])

    def thumbnails(self, pictures: Collection[str]) -> dict[str, bytes]:
        """Small JPEGs by id, as far as there are such pictures."""
        with self._reading():
            search = self.table.search().where(any_of("id", pictures)).select(["id", "thumbnail"])
            return {row["id"]: row["thumbnail"] for row in search.to_arrow().to_pylist()}

    def vector(self, picture: str) -> Float32[np.ndarray, " D"]:
        """The unit vector of a picture, by its id; raises InputError where there is none of this id."""
        return np.asarray(self._row(picture, ["vector"])["vector"], dtype=np.float32)

    def copies(self, content: str) -> list[IndexedPicture]:
        """The pictures with this hash of their bytes, by path."""
        with self._reading():
            search = self.table.search().where(f"content = {quoted(content)}").select(_COLUMNS)
            rows = search.to_arrow().to_pylist()
        return sorted(map(_picture, rows), key=lambda one: one.path)

    def labels(self) -> dict[str, int]:
        """How many pictures each label has, by label; pictures without one are not counted."""
        with self._reading():
            column = self.table.search().select(["label"]).to_arrow()["label"]
        counts = pyarrow.compute.value_counts(column.drop_null())
        return dict(sorted(zip(*(counts.field(name).to_pylist() for name in (0, 1)), strict=True)))

    def pictures(self, where: str | None = None) -> Iterator[IndexedPicture]:
        """Every picture, in no order, read in batches; `where` as in `count`."""
        for batch in self._batches(_COLUMNS, where, None):
            yield from map(_picture, batch.to_pylist())

    def vectors(self, *, batch_size: int = 8192, where: str | None = None) -> Iterator[VectorBatch]:
        """Every picture with its vector, in no order.

        Args:
            batch_size: rows at a time, at most.
            where: as in `count`.
        """
        for batch in self._batches([*_COLUMNS, "vector"], where, batch_size):
            yield _vectors(batch)

    def sample(self, count: int, seed: int, *, labels: Collection[str] | None = None) -> VectorBatch:
        """Some pictures drawn at random without repetition, by id; fewer where there are fewer.

        Args:
            count: >= 1.
            seed: >= 0.
            labels: draw among pictures with these only; None: among all.
        """
        with self._reading():
            return _vectors(drawn_rows(self.table, [*_COLUMNS, "vector"], count, seed, labels))

    def _row(self, picture: str, columns: list[str]) -> dict[str, Any]:
        with self._reading():
            rows = self.table.search().where(f"id = {quoted(picture)}").select(columns).limit(1).to_arrow()
        if rows.num_rows == 0:
            raise InputError(f"there is no picture {picture!r} in {self.uri}; want the id of one that is")
        row: dict[str, Any] = rows.to_pylist()[0]
        return row

    def _batches(
        self, columns: list[str], where: str | None, size: int | None
    ) -> Iterator[pyarrow.RecordBatch]:
        with self._reading(where):
            search = self.table.search().select(columns)
            condition = all_of(where)
            if condition is not None:
                search = search.where(condition)
            yield from (batch for batch in search.to_batches(size) if batch.num_rows)

    def _reading(self, where: str | None = None) -> Any:
        if where is None:
            anew = "want it whole, or made anew with tuplet index --model RUN --rebuild"
            return errors_in_a_line(f"cannot read the index {self.uri}", anew)
        wanted = f"want SQL on {', '.join(_COLUMNS)}, such as \"label = 'oak' AND size > 10000\""
        return errors_in_a_line(f"the condition {where!r} cannot be used", wanted)


def _picture(row: dict[str, Any]) -> IndexedPicture:
    modified = row["modified"].astimezone(UTC)
    return IndexedPicture(row["id"], row["path"], row["label"], row["size"], modified, row["content"])


def _vectors(rows: pyarrow.RecordBatch | pyarrow.Table) -> VectorBatch:
    pictures = tuple(map(_picture, rows.select(_COLUMNS).to_pylist()))
    dim = rows.schema.field("vector").type.list_size
    flat = pyarrow.compute.list_flatten(rows["vector"]).to_numpy(zero_copy_only=False)
    return VectorBatch(pictures, flat.reshape(-1, dim))


_FEW = 1000


def drawn_rows(
    table: Any, columns: Sequence[str], count: int, seed: int, labels: Collection[str] | None
) -> pyarrow.Table:
    """Some rows drawn at random without repetition, by id; fewer where there are fewer.

    Args:
        table: LanceDB's, of an index.
        columns: what is read of them; id is one.
        count: >= 1.
        seed: >= 0; the same rows come from the same version of the table.
        labels: draw among rows with these only; None: among all.
    """
    random = np.random.default_rng(seed)
    if labels is None:
        places = random.choice(rows := table.count_rows(), min(count, rows), replace=False)
        found = table.take_offsets(places.tolist())
    else:
        numbers = _numbers(table, labels)
        found = table.take_row_ids(random.choice(numbers, min(count, len(numbers)), replace=False).tolist())
    return found.select(list(columns)).to_arrow().sort_by("id")


def _numbers(table: Any, labels: Collection[str]) -> UInt64[np.ndarray, " n"]:
    """LanceDB's numbers of the rows with one of some labels."""
    search = table.search().select(["label"]).with_row_id(True)
    if len(labels) <= _FEW:  # quicker than to read all of them
        search = search.where(any_of("label", labels))
    rows = search.to_arrow()
    # Python would make an object of every row, and let no other thread in meanwhile.
    wanted = pyarrow.compute.is_in(rows["label"], pyarrow.array(list(labels), pyarrow.string()))
    numbers: UInt64[np.ndarray, " n"] = rows["_rowid"].filter(wanted).to_numpy()
    return numbers
