from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from picture_folder import add_vectors, index_of_vectors, row_of, unit

from tuplet.errors import RequestError, SearchIndexError, SettingsError
from tuplet.metrics.retrieval import retrieval_metrics
from tuplet.search.approximate import (
    build_approximate_index,
    keep_approximate_index,
    measure_index,
    measure_recall,
)
from tuplet.search.index import VECTOR_INDEX, ImageIndex, picture_id

ROWS, DIM = 300, 16


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    random = np.random.default_rng(0)
    centres = random.standard_normal((30, DIM))
    return unit(centres[np.arange(ROWS) % 30] + 0.4 * random.standard_normal((ROWS, DIM)))


@pytest.fixture(scope="module")
def labels() -> list[str | None]:
    return [None if row % 7 == 0 else f"label {row % 30}" for row in range(ROWS)]


@pytest.fixture(scope="module")
def index(
    vectors: np.ndarray, labels: list[str | None], tmp_path_factory: pytest.TempPathFactory
) -> ImageIndex:
    return index_of_vectors(tmp_path_factory.mktemp("image_index") / "index", vectors, labels)


@pytest.fixture(scope="module")
def approximate(
    vectors: np.ndarray, labels: list[str | None], tmp_path_factory: pytest.TempPathFactory
) -> ImageIndex:
    index = index_of_vectors(tmp_path_factory.mktemp("image_index") / "index", vectors, labels)
    keep_approximate_index(index, ROWS + 1)
    assert not index.is_approximate
    keep_approximate_index(index, ROWS)
    assert index.is_approximate
    return index


def test_nearest_are_those_of_all_products(index: ImageIndex, vectors: np.ndarray) -> None:
    for row in range(0, ROWS, 97):
        cosines = vectors.astype(np.float64) @ vectors[row]
        found = index.nearest(vectors[row], 12)
        assert [row_of(one.picture.path) for one in found] == np.argsort(-cosines)[:12].tolist()
        assert np.allclose([one.distance for one in found], 1 - np.sort(cosines)[::-1][:12], atol=1e-5)
        assert min(one.distance for one in found) >= 0
        passed_over = {picture_id(f"/photos/{row:05d}.jpg")}
        found = index.nearest(vectors[row], 5, where="size < 100 OR label = 'label 3'", exclude=passed_over)
        allowed = np.array([(of < 100 or (of % 30 == 3 and of % 7 != 0)) and of != row for of in range(ROWS)])
        wanted = np.argsort(np.where(allowed, -cosines, 9))[:5]
        assert [row_of(one.picture.path) for one in found] == wanted.tolist()
    assert len(index.nearest(vectors[0], 5000)) == ROWS


def test_rows_by_id(index: ImageIndex, vectors: np.ndarray, labels: list[str | None]) -> None:
    picture = index.row(picture_id("/photos/00031.jpg"))
    assert (picture.path, picture.label, picture.size) == ("/photos/00031.jpg", labels[31], 31)
    assert np.array_equal(index.vector(picture.id), vectors[31])
    assert index.thumbnail(picture.id) == b"jpeg of /photos/00031.jpg"
    assert index.thumbnails({picture.id, "nothing"}) == {picture.id: b"jpeg of /photos/00031.jpg"}
    counted = {label: labels.count(label) for label in set(labels) if label is not None}
    assert index.labels() == counted
    batches = list(index.vectors(batch_size=100))
    assert max(len(batch.pictures) for batch in batches) <= 100
    found = {one.path: vector for batch in batches for one, vector in zip(*vars(batch).values(), strict=True)}
    assert len(found) == ROWS
    assert all(np.array_equal(vector, vectors[row_of(path)]) for path, vector in found.items())
    drawn = index.sample(50, 1)
    assert len({one.id for one in drawn.pictures}) == 50
    assert all(
        np.array_equal(v, vectors[row_of(p.path)]) for p, v in zip(drawn.pictures, drawn.vectors, strict=True)
    )
    assert [one.id for one in index.sample(50, 1).pictures] == [one.id for one in drawn.pictures]
    assert {one.label for one in index.sample(900, 0, labels={"label 2"}).pictures} == {"label 2"}


def test_the_approximate_index_is_measured_against_the_exact_search(
    approximate: ImageIndex, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One part of a few bits a vector, and no second look: it cannot find everything.
    measured = measure_recall(approximate, top=5, num_queries=100)
    monkeypatch.setattr("tuplet.search.index.REFINE_FACTOR", 1)
    rough = measure_recall(approximate, top=5, num_queries=100)
    assert rough.recall < measured.recall <= 1
    assert measured.recall > 0.9
    # The same share, counted from the products.
    shares = []
    for picture in approximate.sample(100, 0).pictures:
        row = row_of(picture.path)
        cosines = vectors.astype(np.float64) @ vectors[row]
        cosines[row] = -9
        found = approximate.nearest(vectors[row], 6)
        nearest = {row_of(one.picture.path) for one in found} - {row}
        shares.append(len(set(np.argsort(-cosines)[:5].tolist()) & nearest) / 5)
    assert abs(np.mean(shares) - rough.recall) < 0.011  # of 6 candidates, the image itself may be none


@pytest.mark.parametrize(("dim", "wanted"), [(511, "IVF_SQ"), (512, "IVF_RQ"), (516, "IVF_SQ")])
def test_short_vectors_keep_a_byte_a_dimension(dim: int, wanted: str, tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((300, dim)))
    index = index_of_vectors(tmp_path / "index", vectors)
    build_approximate_index(index)
    assert index.table.index_stats(VECTOR_INDEX).index_type == wanted


@pytest.mark.parametrize("kind", ["ivf-rq", "ivf-sq", "ivf-pq", "hnsw-sq"])
def test_every_kind_can_be_built_and_rows_added_later_are_found(
    kind: str, vectors: np.ndarray, tmp_path: Path
) -> None:
    index = index_of_vectors(tmp_path / "index", vectors)
    build_approximate_index(index, kind)  # type: ignore[arg-type]
    assert measure_recall(index, num_queries=20).recall > 0.8
    new = unit(-vectors[:3])
    add_vectors(index, new, None, ["/new/0.jpg", "/new/1.jpg", "/new/2.jpg"])
    assert index.nearest(new[1], 1)[0].picture.path == "/new/1.jpg"
    keep_approximate_index(index)
    index.table.optimize()
    assert index.table.index_stats(VECTOR_INDEX).num_unindexed_rows == 0
    assert index.nearest(new[1], 1)[0].picture.path == "/new/1.jpg"


def test_recall_by_labels_is_that_of_the_metrics(
    vectors: np.ndarray, labels: list[str | None], tmp_path: Path
) -> None:
    rows = 120
    index = index_of_vectors(tmp_path / "index", vectors[:rows], labels[:rows])
    # A picture without a label is found as well, and is right for nobody.
    numbers = np.array([1000 + row if labels[row] is None else row % 30 for row in range(rows)])
    wanted = retrieval_metrics(vectors[:rows], numbers, recall_at=(1, 3, 20))
    measured = measure_index(index, recall_at=(1, 3, 20), num_queries=10_000)
    assert measured.approximate is None
    assert measured.num_queries == measured.num_labelled == sum(label is not None for label in labels[:rows])
    for k, value in measured.exact.recall_at.items():
        assert value == pytest.approx(wanted[f"recall_at_{k}"], abs=1e-12)
    assert 0.3 < measured.exact.recall_at[1] < 1


def test_the_approximate_index_is_measured_beside_the_exact_search(
    index: ImageIndex, approximate: ImageIndex
) -> None:
    both = measure_index(approximate, num_queries=60)
    assert both.exact.recall_at == measure_index(index, num_queries=60).exact.recall_at
    assert (both.num_queries, both.exact.neighbours) == (60, 1)
    assert both.approximate is not None
    assert 0.9 < both.approximate.neighbours <= 1


def test_to_find_an_exact_copy_tells_nothing(tmp_path: Path) -> None:
    east, north = np.eye(2, dtype=np.float32)
    vectors = unit(np.stack([east, east, east + 0.1 * north, north, north + 0.1 * east, north]))
    index = index_of_vectors(tmp_path / "index", vectors[:0])
    paths = [f"/photos/{number}.jpg" for number in range(6)]
    add_vectors(index, vectors, ["a", "a", "b", "b", "b", "b"], paths, ["copy", "copy", "2", "3", "4", "5"])
    measured = measure_index(index, recall_at=(1, 2))
    # Nearest to both copies of a is b; nearest to the b among them are those copies.
    assert measured.exact.recall_at[1] == 3 / 6


def test_many_exact_copies_do_not_hide_a_picture_of_the_label(tmp_path: Path) -> None:
    east, north = np.eye(2, dtype=np.float32)
    vectors = unit(np.stack([*[east] * 12, east + 0.1 * north, north]))
    index = index_of_vectors(tmp_path / "index", vectors[:0])
    paths = [f"/photos/{number:02}.jpg" for number in range(14)]
    add_vectors(index, vectors, [*["a"] * 13, "b"], paths, [*["copy"] * 12, "other", "third"])
    # There are more copies than the ten neighbours that are asked for.
    assert measure_index(index, recall_at=(1,)).exact.recall_at[1] == 1.0


def test_threads_search_while_rows_are_written(vectors: np.ndarray, tmp_path: Path) -> None:
    writer = index_of_vectors(tmp_path / "index", vectors[:100])
    reader = ImageIndex(str(tmp_path / "index"))
    stop = threading.Event()

    def search(seed: int) -> int:
        searches = 0
        while not stop.is_set() or searches == 0:
            row = (seed + searches) % 100
            assert row_of(reader.nearest(vectors[row], 1)[0].picture.path) == row
            assert len(reader.thumbnail(picture_id(f"/photos/{row:05d}.jpg"))) > 0
            if searches % 5 == 0:
                reader.refresh()
            searches += 1
        return searches

    with ThreadPoolExecutor(4) as pool:
        searches = [pool.submit(search, 25 * seed) for seed in range(4)]
        for start in range(100, 200, 20):
            paths = [f"/photos/{row:05d}.jpg" for row in range(start, start + 20)]
            add_vectors(writer, vectors[start : start + 20], None, paths)
        stop.set()
        assert all(one.result() > 0 for one in searches)
    other = ImageIndex(str(tmp_path / "index"))
    assert (other.count(), reader.refresh(), reader.count()) == (200, None, 200)
    add_vectors(writer, vectors[200:201], None, ["/photos/00200.jpg"])
    assert reader.count() == 200
    reader.refresh()
    assert reader.count() == 201
    assert reader.version == writer.version


def test_what_cannot_be_looked_up(index: ImageIndex, vectors: np.ndarray, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(SearchIndexError) as missing:
        ImageIndex(str(nowhere))
    assert (missing.value.subject, nowhere.exists()) == (str(nowhere), False)
    with pytest.raises(SearchIndexError):
        ImageIndex(str(tmp_path / ("too long a name " * 20)))
    for where in ("nothing = 1", "label = ", "size", "1 = 1; DROP TABLE pictures", "label LIKE 3) OR (1 = 1"):
        for look in (index.count, partial(index.nearest, vectors[0], 10)):
            with pytest.raises(RequestError) as error:
                look(where=where)
            assert error.value.subject == "where"
            assert not any(part in str(error.value) for part in ("\n", "cargo"))
    for vector, top, subject in (
        (vectors[0, :3], 10, "vector"),
        (vectors[0] * np.nan, 10, "vector"),
        (vectors[0] * 0, 10, "vector"),
        (vectors[0], 0, "top"),
    ):
        with pytest.raises(RequestError) as error:
            index.nearest(vector, top)
        assert error.value.subject == subject
    for look_up in (index.row, index.thumbnail, index.vector):
        with pytest.raises(RequestError) as error:
            look_up("o'no")
        assert (error.value.subject, error.value.given) == ("id", "o'no")
    with pytest.raises(SearchIndexError):
        measure_recall(index)
    with pytest.raises(SettingsError) as error_of_k:
        measure_index(index, recall_at=(0, 1))
    assert error_of_k.value.subject == "recall-at"
    unlabelled = index_of_vectors(tmp_path / "unlabelled", vectors[:4], ["a", "b", None, None])
    with pytest.raises(SearchIndexError):
        measure_index(unlabelled)
    damaged = index_of_vectors(tmp_path / "damaged", vectors[:4])
    for file in Path(damaged.uri, "pictures.lance", "_versions").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(SearchIndexError, match="cannot open the index"):
        ImageIndex(damaged.uri)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: {**tree, "colour": "blue"},
        lambda tree: {name: value for name, value in tree.items() if name != "resize"},
        lambda tree: {**tree, "dim": "wide"},
        lambda tree: {**tree, "dim": DIM + 1},
        lambda tree: [1],
        lambda tree: None,
        "without a column",
    ],
)
def test_an_index_of_another_version_is_refused(tmp_path: Path, change: Any) -> None:
    index, other = index_of_vectors(tmp_path / "index", unit(np.ones((2, DIM)))), str(tmp_path / "other")
    rows = index.table.to_arrow()
    if callable(change):
        model = json.dumps(change(json.loads(index.model.to_json()))).encode()
        rows = rows.replace_schema_metadata({b"tuplet.model": model})
    else:
        rows = rows.drop("thumbnail")
    lancedb.connect(other).create_table("pictures", rows)
    with pytest.raises(SearchIndexError, match=r"made by another version of tuplet; want .* --rebuild"):
        ImageIndex(other)
    assert ImageIndex.create(other, index.model).count() == 0


def test_more_may_be_asked_for_than_fits_into_memory(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((5, DIM)))
    index = index_of_vectors(tmp_path / "index", vectors)
    for top in (1001, 10**12, 10**30):
        assert len(index.nearest(vectors[0], top)) == 5
        assert len(index.nearest(vectors[0], top, exclude={index.nearest(vectors[0], 1)[0].picture.id})) == 4
    none = index_of_vectors(tmp_path / "none", vectors[:0])
    assert none.nearest(vectors[0], 10**12) == []
