"""An index whose vectors are kept in few bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from picture_folder import stored_index, unit

from tuplet.errors import SearchIndexError
from tuplet.inference.encoder import PictureEmbedder
from tuplet.metrics.small_vectors import CodeKind, Directions
from tuplet.search import indexing, small_storage
from tuplet.search.index import ImageIndex, picture_id
from tuplet.search.indexing import index_pictures

DIM = 32


def small_index(uri: Path, vectors: np.ndarray, kind: CodeKind, width: int) -> ImageIndex:
    code = Directions(vectors).code(kind, width)
    return stored_index(uri, vectors, code.to_json(), num_labels=5)


@pytest.mark.parametrize(("kind", "width"), [("float32", 16), ("int8", 24), ("bits", 32)])
def test_neighbours_are_those_of_the_stored_vectors(
    kind: CodeKind, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(300, DIM)))
    index = small_index(tmp_path / "index", vectors, kind, width)
    code = index.model.small
    assert code is not None
    query = unit(np.random.default_rng(1).normal(size=(1, DIM)))
    cosines = code.stored(code.project(vectors)) @ code.project(query)[0]
    wanted = np.argsort(-cosines, kind="stable")[:10]
    found = index.nearest(query[0], 10, exact=True)
    assert [one.picture.path for one in found] == [f"/{number:04}.png" for number in wanted]
    np.testing.assert_allclose([one.distance for one in found], 1 - cosines[wanted], atol=1e-5)
    # Bits alone choose the candidates: with few of them some neighbours are missed, but none is made up.
    monkeypatch.setattr(small_storage, "LEAST_RESCORED", 10)
    fewer = index.nearest(query[0], 10)
    assert len({one.picture.id for one in fewer} & {one.picture.id for one in found}) >= 8
    labelled = index.nearest(query[0], 10, where="label = '3'", exclude={found[0].picture.id})
    assert {one.picture.label for one in labelled} == {"3"}
    assert len(labelled) == 10


@pytest.mark.parametrize(("kind", "width"), [("float32", 16), ("int8", 24), ("bits", 32)])
def test_stored_vectors_find_themselves(kind: CodeKind, width: int, tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(60, DIM)))
    index = small_index(tmp_path / "index", vectors, kind, width)
    one = index.vector(picture_id("/0007.png"))
    assert one.shape == (DIM,)
    assert index.nearest(one, 1)[0].picture.path == "/0007.png"
    assert index.nearest(one, 1)[0].distance == pytest.approx(0, abs=1e-5)
    batches = list(index.vectors())
    assert sum(len(batch.pictures) for batch in batches) == 60
    assert all(batch.vectors.shape[1] == DIM for batch in batches)
    np.testing.assert_allclose(np.linalg.norm(batches[0].vectors, axis=1), 1, atol=1e-5)
    assert index.sample(5, 0).vectors.shape == (5, DIM)


def test_indexing_chooses_keeps_and_checks_the_bytes(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "index")
    report = index_pictures(uri, [photos], embedder, num_bytes=18, approximate_from=1)
    assert (report.total, report.approximate) == (12, False)
    small = ImageIndex(uri).model.small
    assert small is not None
    assert small.num_bytes <= 18
    (photos / "class 0" / "0.png").unlink()
    again = index_pictures(uri, [photos], embedder)  # the index knows how it keeps vectors
    assert (again.dropped, again.added) == (1, 0)
    index_pictures(uri, [photos], embedder, num_bytes=18)
    with pytest.raises(SearchIndexError):
        index_pictures(uri, [photos], embedder, num_bytes=1)
    index_pictures(uri, [photos], embedder, rebuild=True, num_bytes=2)
    small = ImageIndex(uri).model.small
    assert small is not None
    assert small.num_bytes <= 2
    index_pictures(uri, [photos], embedder, rebuild=True)
    assert ImageIndex(uri).model.small is None
    monkeypatch.setattr(indexing, "CHOICE_PICTURES", 3)
    large = index_pictures(str(tmp_path / "large"), [photos], embedder, num_bytes=10**6)
    assert large.total == 11
    assert ImageIndex(str(tmp_path / "large")).model == replace(embedder.model, code="")


def test_vectors_are_of_one_version_though_it_is_refreshed_meanwhile(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(60, DIM)))
    index = stored_index(tmp_path / "index", vectors, num_labels=5)
    batches = index.vectors(batch_size=20)
    first = next(batches)
    small_index(tmp_path / "index", vectors, "bits", DIM)
    index.refresh()
    found = np.concatenate([first.vectors, *(batch.vectors for batch in batches)])
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(vectors, axis=0))
