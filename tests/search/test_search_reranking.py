"""Searches of an index that re-rank, against re-ranking of all its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from picture_folder import stored_index, unit

from tuplet.errors import RequestError
from tuplet.metrics.reranking import AlphaQueryExpansion, KReciprocal, Reranking, reranked
from tuplet.metrics.small_vectors import CodeKind, Directions
from tuplet.search import reranking
from tuplet.search.index import ImageIndex, Neighbour, picture_id

DIM, COUNT = 32, 240


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    random = np.random.default_rng(0)
    centres = random.normal(size=(12, DIM))
    return unit(centres[np.arange(COUNT) % 12] + random.normal(size=(COUNT, DIM)))


@pytest.fixture(scope="module")
def query(vectors: np.ndarray) -> np.ndarray:
    return unit(vectors[:1] + 0.1 * np.random.default_rng(1).normal(size=(1, DIM)))


@pytest.fixture(scope="module")
def index(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return stored_index(tmp_path_factory.mktemp("reranked") / "index", vectors, num_labels=3)


METHODS = [AlphaQueryExpansion(k=8), KReciprocal(k1=10, k2=4, num_candidates=60)]


@pytest.mark.parametrize("settings", METHODS)
def test_an_index_ranks_as_its_vectors_do(
    settings: Reranking, index: ImageIndex, vectors: np.ndarray, query: np.ndarray
) -> None:
    found = index.nearest(query[0], 80, rerank=settings)
    wanted = reranked(query, settings, 80, gallery=vectors)[0].tolist()
    assert [one.picture.path for one in found] == [f"/{number:04}.png" for number in wanted]
    np.testing.assert_allclose([one.distance for one in found], 1 - vectors[wanted] @ query[0], atol=1e-5)
    plain = index.nearest(query[0], 80)
    assert [one.picture.id for one in plain] != [one.picture.id for one in found]


@pytest.mark.parametrize("settings", METHODS)
def test_pictures_that_are_left_out_help_nobody(
    settings: Reranking, index: ImageIndex, vectors: np.ndarray, query: np.ndarray
) -> None:
    rows = [number for number in range(COUNT) if number % 3 == 1 and number != 1]
    found = index.nearest(
        query[0], 20, where="label = '1'", exclude={picture_id("/0001.png")}, rerank=settings
    )
    wanted = reranked(query, settings, 20, gallery=vectors[rows])[0]
    assert [one.picture.path for one in found] == [f"/{rows[place]:04}.png" for place in wanted]


@pytest.mark.parametrize(
    ("kind", "width", "settings"),
    [
        *[(kind, width, settings) for kind, width in (("float32", 16), ("int8", 24)) for settings in METHODS],
        ("bits", 32, METHODS[0]),  # cosines of bits tie, and rounding decides who is a reciprocal neighbour
    ],
)
def test_vectors_in_few_bytes_are_ranked_as_they_are_kept(
    kind: CodeKind, width: int, settings: Reranking, vectors: np.ndarray, query: np.ndarray, tmp_path: Path
) -> None:
    code = Directions(vectors).code(kind, width)
    index = stored_index(tmp_path / "index", vectors, code.to_json(), num_labels=3)
    projected = code.project(query)
    found = index.nearest(query[0], 10, exact=True, rerank=settings)
    stored = code.stored(code.project(vectors))
    wanted = reranked(projected, settings, 10, gallery=stored)[0]
    assert [one.picture.path for one in found] == [f"/{number:04}.png" for number in wanted]
    np.testing.assert_allclose([one.distance for one in found], 1 - stored[wanted] @ projected[0], atol=1e-5)


def test_what_cannot_be_reranked(index: ImageIndex, query: np.ndarray) -> None:
    for settings in METHODS:
        assert index.nearest(query[0], 5, where="label = 'none'", rerank=settings) == []
    with pytest.raises(RequestError) as raised:
        index.nearest(query[0], 5, rerank=AlphaQueryExpansion(database=True))
    assert raised.value.subject == "rerank"


@pytest.mark.parametrize("settings", METHODS)
def test_a_refresh_between_the_two_readings_changes_nothing(
    settings: Reranking,
    vectors: np.ndarray,
    query: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = stored_index(tmp_path / "index", vectors, num_labels=3)
    wanted = index.nearest(query[0], 20, rerank=settings)
    other = ImageIndex(str(tmp_path / "index"))
    read = reranking._vectors_of

    def read_after_a_writer(searched: ImageIndex, found: Sequence[Neighbour]) -> np.ndarray:
        other.table.delete("label = '1'")
        index.refresh()
        return read(searched, found)

    monkeypatch.setattr(reranking, "_vectors_of", read_after_a_writer)
    assert index.nearest(query[0], 20, rerank=settings) == wanted
    assert index.count() == COUNT * 2 // 3
