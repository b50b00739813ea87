from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from live_server import wait_until
from picture_folder import add_vectors, index_of_vectors, unit

from tuplet.inference.encoder import IndexedModel
from tuplet.search.index import ImageIndex
from tuplet.search.map import BackgroundMap, CollectionMap, draw_map, is_out_of_date

ROWS, DIM = 100, 16


def added(index: ImageIndex, count: int) -> None:
    paths = [f"/new/{number}.jpg" for number in range(count)]
    add_vectors(index, unit(np.ones((count, DIM))), ["new"] * count, paths)


def replaced(index: ImageIndex, count: int) -> None:
    """As many others instead, so that the number of pictures stays."""
    index.table.delete(f"size < {count}")
    added(index, count)


def overwritten(index: ImageIndex, count: int) -> None:
    index.table.update(where=f"size < {count}", values={"content": "another"})


def relabelled(index: ImageIndex, count: int) -> None:
    index.table.update(where=f"size < {count}", values={"label": "another"})


def removed(index: ImageIndex, count: int) -> None:
    index.table.delete(f"size < {count}")


@pytest.fixture
def index(tmp_path: Path) -> ImageIndex:
    vectors = unit(np.random.default_rng(0).standard_normal((ROWS, DIM)))
    labels: list[str | None] = [None if row % 2 else "even" for row in range(ROWS)]
    return index_of_vectors(tmp_path / "index", vectors, labels)


@pytest.mark.parametrize("change", [added, replaced, overwritten, relabelled, removed])
def test_a_map_is_out_of_date_when_a_tenth_is_other(
    index: ImageIndex, change: Callable[[ImageIndex, int], None]
) -> None:
    drawn = draw_map(index)
    assert not is_out_of_date(drawn, index)
    change(index, ROWS // 10)
    index.refresh()
    assert not is_out_of_date(drawn, index)
    change(index, ROWS // 10 + 1)
    index.refresh()
    assert is_out_of_date(drawn, index)


def test_a_map_of_some_of_the_pictures(index: ImageIndex) -> None:
    drawn = draw_map(index, most=50)
    replaced(index, 3)
    index.refresh()
    assert not is_out_of_date(drawn, index)
    index.table.delete("size < 60")
    index.refresh()
    assert is_out_of_date(drawn, index)


def test_a_map_of_another_model_or_of_nothing_is_out_of_date(index: ImageIndex) -> None:
    drawn = draw_map(index)
    rows = index.table.to_arrow()
    other = ImageIndex.create(index.uri, IndexedModel("/model", "1" * 64, DIM, 16, 18, "crop-flip"))
    empty = draw_map(other)
    assert not is_out_of_date(empty, other)
    other.table.add(rows)
    other.refresh()
    assert is_out_of_date(empty, other)
    assert is_out_of_date(drawn, other)
    assert not is_out_of_date(draw_map(other), other)


def test_the_kept_map_follows_its_index(index: ImageIndex) -> None:
    kept = BackgroundMap(index, 50)

    def look() -> CollectionMap | None:
        index.refresh()
        kept.update(index.version)
        wait_until(lambda: kept._thread is not None and not kept._thread.is_alive())
        return kept.drawn

    first = look()
    assert first is not None
    assert look() is first
    replaced(index, 2)
    assert look() is first
    index.table.delete("size < 50")
    assert look() is not first
    assert kept.drawn is not None
    assert set(kept.drawn.ids) <= {one.id for one in index.pictures()}


def test_a_map_of_few_pictures_and_of_none(tmp_path: Path) -> None:
    empty = draw_map(index_of_vectors(tmp_path / "none", unit(np.ones((0, DIM)))))
    assert (empty.ids, empty.places.shape) == ((), (0, 2))
    one = index_of_vectors(tmp_path / "one", unit(np.ones((1, DIM))))
    assert draw_map(one).places.tolist() == [[0.5, 0.5]]
    same = draw_map(index_of_vectors(tmp_path / "same", unit(np.ones((6, DIM)))))
    assert np.isfinite(same.places).all()
    # Clusters stay clusters, whatever their pictures are called.
    random = np.random.default_rng(0)
    centres = random.standard_normal((4, DIM)) * 5
    vectors = unit(centres[np.arange(80) % 4] + random.standard_normal((80, DIM)) * 0.3)
    labels: list[str | None] = [f"label {row % 4}" for row in range(80)]
    index = index_of_vectors(tmp_path / "index", vectors, labels)
    drawn = draw_map(index, most=60)
    assert len(drawn.ids) == 60
    gaps = np.linalg.norm(drawn.places[:, None] - drawn.places[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert (drawn.label_of[gaps.argmin(axis=1)] == drawn.label_of).mean() > 0.95
