"""The columns of an index, and what the table says of the model that made its vectors."""

from __future__ import annotations

import pyarrow

from tuplet.errors import InputError
from tuplet.search.embedding import IndexedModel
from tuplet.search.storage import Uri

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
