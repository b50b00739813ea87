"""Embeddings with the class of each, in files: .npy, .npz and .parquet, from tuplet or from anywhere."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, Int64

from tuplet.data.files import replacing
from tuplet.data.label_files import Labels, array_problem, existing, naming, numbered, read_array, read_labels
from tuplet.data.parquet import pyarrow_modules, read_parquet, write_parquet
from tuplet.errors import DataError, SettingsError, unusable

_BLOCK_BYTES = 2**24


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embeddings, the class of each, and what people call them.

    Attributes:
        embeddings: one row per item, `[N, D]`, float16, float32 or float64.
        labels: class of each item, `[N]`; any integers, or 0..C-1 where there are `class_names`.
        names: of the items, such as the paths of their images; None where they have none.
        class_names: the C names in the order of the labels; None where classes are numbers only.

    Raises:
        DataError: shapes, types or lengths that do not fit each other.
    """

    embeddings: Float[np.ndarray, "N D"]
    labels: Int64[np.ndarray, " N"]
    names: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        shape, kind, labels = list(self.embeddings.shape), self.embeddings.dtype, self.labels
        if len(shape) != 2 or 0 in shape:
            raise unusable("embeddings", f"have shape {shape}", "[N, D], one row an item, at least one")
        if kind.kind != "f" or kind.itemsize > 8:
            raise unusable("embeddings", f"are {kind}", "float16, float32 or float64: convert them")
        if labels.shape != (shape[0],):
            problem = f"have shape {list(labels.shape)} for {shape[0]} embeddings"
            raise unusable("labels", problem, "one for each")
        if self.names is not None and len(self.names) != shape[0]:
            raise unusable("names", f"are {len(self.names)} for {shape[0]} embeddings", "one an embedding")
        num_classes = None if self.class_names is None else len(self.class_names)
        if num_classes is not None and not (labels.min() >= 0 and labels.max() < num_classes):
            problem = f"run from {labels.min()} to {labels.max()}"
            wanted = f"0..{num_classes - 1}, one for each of the {num_classes} class names"
            raise unusable("labels", problem, wanted)


def read_embeddings(
    path: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None
) -> LabelledEmbeddings:
    """Read the embeddings of a file, with the class of each.

    Args:
        path: .npy: an array `[N, D]`, mapped from the file, not read into memory. .npz: arrays `embeddings`
            and `labels`, and if need be `names` and `class_names`. .parquet: a column `embedding` of lists
            of one length, or one numeric column per dimension with names like e0, e1, ..; a column `label` of
            integers or strings, and if need be `path`.
        labels: a file of one label per item: .npy, or .txt or .csv with one per line (of a .csv with a
            header, the column `label`); integers, or class names. It replaces those in `path`; .npy needs
            it.
    Returns: all items, in the order of the file. Classes that have names are numbered by their sorted names.
    Raises:
        DataError: a file that cannot be read so, or NaN or infinity (names the first row).
    """
    file = Path(path)
    readers: dict[str, Callable[[Path, Labels | None], LabelledEmbeddings]] = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".parquet": _read_parquet,
    }
    if file.suffix.lower() not in readers:
        raise unusable(file, "is no file of embeddings by its name", ".npy, .npz or .parquet")
    given = None if labels is None else read_labels(labels)
    with naming(file):
        found = readers[file.suffix.lower()](existing(file), given)
        _require_finite(found.embeddings)
    return found


def write_embeddings(path: str | os.PathLike[str], content: LabelledEmbeddings) -> None:
    """Write embeddings to a file, as `read_embeddings` reads them.

    Args:
        path: .npz or .parquet, in a folder that exists; replaced whole or not at all.
        content: what to write.
    Raises:
        InputError: as `require_writable` does.
    """
    file = Path(path)
    require_writable(file)
    with replacing(file) as stream:
        if file.suffix.lower() == ".npz":
            _write_npz(stream, content)
        else:
            classes, names = content.class_names, content.names
            write_parquet(stream, content.embeddings, content.labels, classes, names)


def require_writable(path: Path) -> None:
    """Raise an error unless `write_embeddings` can write such a file.

    Raises:
        SettingsError: by its name it is neither .npz nor .parquet, or its folder does not exist.
        MissingExtraError: .parquet without pyarrow.
    """
    if path.suffix.lower() not in (".npz", ".parquet"):
        message = f"embeddings cannot be written to {path}; want a name that ends in .npz or .parquet"
        raise SettingsError(message, subject=path, wanted=(".npz", ".parquet"))
    if path.suffix.lower() == ".parquet":
        pyarrow_modules()
    if not path.parent.is_dir():
        message = f"there is no folder {path.parent}; want one that exists, for {path.name}"
        raise SettingsError(message, subject=path.parent)


def with_shared_classes(
    queries: LabelledEmbeddings, gallery: LabelledEmbeddings
) -> tuple[LabelledEmbeddings, LabelledEmbeddings]:
    """Give both one numbering of the classes: those of the same name get the same label.

    Raises:
        DataError: the classes of one have names, and those of the other are numbers only.
    """
    if queries.class_names is None and gallery.class_names is None:
        return queries, gallery
    if queries.class_names is None or gallery.class_names is None:
        named, numbered = ("gallery", "queries") if queries.class_names is None else ("queries", "gallery")
        raise DataError(
            f"the classes of the {named} have names and those of the {numbered} are integers; want the same"
            " in both, so that equal classes can be told",
            subject=numbered,
        )
    names = sorted({*queries.class_names, *gallery.class_names})
    number = {name: place for place, name in enumerate(names)}

    def renumbered(part: LabelledEmbeddings) -> LabelledEmbeddings:
        table = np.array([number[name] for name in part.class_names or ()], dtype=np.int64)
        return replace(part, labels=table[part.labels], class_names=tuple(names))

    return renumbered(queries), renumbered(gallery)


def _require_finite(embeddings: Float[np.ndarray, "N D"]) -> None:
    rows = max(1, _BLOCK_BYTES // (embeddings.shape[1] * embeddings.itemsize))
    for start in range(0, len(embeddings), rows):
        finite = np.isfinite(embeddings[start : start + rows]).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            message = f"NaN or infinity in row {row}; want finite numbers: drop such rows"
            raise DataError(message, given=row)


def _read_npy(file: Path, labels: Labels | None) -> LabelledEmbeddings:
    embeddings = read_array(file)
    if labels is None:
        raise DataError("has no labels; want them in a second file: --labels FILE, .npy, .txt or .csv")
    return LabelledEmbeddings(embeddings, labels[0], None, labels[1])


def _read_npz(file: Path, labels: Labels | None) -> LabelledEmbeddings:
    try:
        # NumPy itself leaves a broken file open.
        with file.open("rb") as stream:
            arrays = np.load(stream, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise DataError("holds one array without a name; want .npz, or the name to end in .npy")
            wanted = ["embeddings"] if labels is not None else ["embeddings", "labels"]
            missing = [name for name in wanted if name not in arrays]
            if missing:
                raise DataError(
                    f"has no array {missing[0]}, but {', '.join(arrays) or 'none at all'}; want"
                    f" {' and '.join(wanted)}"
                )
            embeddings = arrays["embeddings"]
            names, class_names = (
                tuple(map(str, arrays[key].tolist())) if key in arrays else None
                for key in ("names", "class_names")
            )
            numbers, read = numbered(arrays["labels"]) if labels is None else labels
    except DataError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(array_problem(error, file)) from None
    return LabelledEmbeddings(
        embeddings, numbers, names, class_names if labels is None and read is None else read
    )


def _read_parquet(file: Path, labels: Labels | None) -> LabelledEmbeddings:
    embeddings, (numbers, class_names), paths = read_parquet(file, labels)
    return LabelledEmbeddings(embeddings, numbers, paths, class_names)


def _write_npz(stream: BinaryIO, content: LabelledEmbeddings) -> None:
    arrays = {"embeddings": content.embeddings, "labels": content.labels}
    for name, texts in (("names", content.names), ("class_names", content.class_names)):
        if texts is not None:
            arrays[name] = np.array(texts, dtype=np.str_)
    np.savez(stream, allow_pickle=False, **arrays)
