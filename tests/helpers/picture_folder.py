"""Folders of drawings, an untrained network to embed them, and indexes of vectors without files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
import torch
from PIL import Image

from tuplet.data.glyphs import glyph
from tuplet.inference.encoder import IndexedModel, PictureEmbedder
from tuplet.models.embedder import Embedder
from tuplet.search.index import ImageIndex, picture_id
from tuplet.search.indexing import IndexingReport
from tuplet.search.small_storage import vector_cells
from tuplet.search.writing import RowWriter

DIM = 16


def draw(folder: Path, classes: range, instances: range) -> Path:
    for label in classes:
        (folder / f"class {label}").mkdir(parents=True, exist_ok=True)
        for instance in instances:
            picture = Image.fromarray(glyph(label, instance, seed=0, image_size=24))
            picture.save(folder / f"class {label}" / f"{instance}.png")
    return folder


def save_model(folder: Path, *, seed: int = 0, dim: int = DIM) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Embedder("tuplet_convnet", dim, pretrained=False).save_pretrained(folder)
    return folder


def open_embedder(folder: Path) -> PictureEmbedder:
    return PictureEmbedder.open(folder, image_size=16, accelerator="cpu")


def counts(report: IndexingReport) -> tuple[int, ...]:
    """How many pictures were added, changed, touched, unchanged, dropped and of other folders; none kept."""
    assert not report.kept
    return report.added, report.changed, report.touched, report.unchanged, report.dropped, report.others


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def index_of_vectors(
    uri: Path, vectors: np.ndarray, labels: list[str | None] | None = None, paths: list[str] | None = None
) -> ImageIndex:
    """An index of rows that never were files."""
    model = IndexedModel("/model", "0" * 64, vectors.shape[1], 16, 18, "crop-flip")
    index = ImageIndex.create(str(uri), model)
    add_vectors(index, vectors, labels, paths)
    return index


def stored_index(uri: Path, vectors: np.ndarray, code: str | None = None, *, num_labels: int) -> ImageIndex:
    """An index that holds vectors as `code` says, as indexing writes them; labels 0, 1, ... in turn."""
    model = IndexedModel("/model", "0" * 64, vectors.shape[1], 16, 18, "crop-flip", code)
    writer = RowWriter(ImageIndex.create(str(uri), model))
    for number, cells in enumerate(vector_cells(vectors, model)):
        path, label = f"/{number:04}.png", str(number % num_labels)
        facts = {"id": picture_id(path), "path": path, "label": label, "size": 1, "modified": 0}
        writer.add({**facts, "content": "0" * 32, "thumbnail": b"", **cells})
    writer.commit()
    return ImageIndex(str(uri))


def row_of(path: str) -> int:
    """The row of a path that `add_vectors` made up."""
    return int(Path(path).stem)


def add_vectors(
    index: ImageIndex,
    vectors: np.ndarray,
    labels: list[str | None] | None,
    paths: list[str] | None,
    contents: list[str] | None = None,
) -> None:
    paths = paths or [f"/photos/{number:05d}.jpg" for number in range(len(vectors))]
    rows = [
        {
            "id": picture_id(path),
            "path": path,
            "label": None if labels is None else labels[number],
            "size": number,
            "modified": number,
            "content": path if contents is None else contents[number],
            "vector": vectors[number],
            "thumbnail": b"jpeg of " + path.encode(),
        }
        for number, path in enumerate(paths)
    ]
    index.table.add(pyarrow.Table.from_pylist(rows, schema=index.table.schema))
