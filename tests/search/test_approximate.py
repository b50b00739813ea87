from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from picture_folder import add_vectors, draw, index_of_vectors, unit

from tuplet.inference.encoder import PictureEmbedder
from tuplet.search import approximate, indexing
from tuplet.search.approximate import build_approximate_index, keep_approximate_index, misses_rows
from tuplet.search.index import VECTOR_INDEX, ImageIndex
from tuplet.search.indexing import index_pictures


def test_an_index_of_too_many_pieces_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_MOST_PIECES", 3)
    vectors = unit(np.random.default_rng(0).standard_normal((330, 16)))
    index = index_of_vectors(tmp_path / "index", vectors[:300])
    keep_approximate_index(index, 300)
    for run in range(3):
        rows = slice(300 + 10 * run, 310 + 10 * run)
        add_vectors(index, vectors[rows], None, [f"/new/{row}.jpg" for row in range(rows.start, rows.stop)])
        assert misses_rows(index)
        index.table.optimize()
        assert not misses_rows(index)
        assert index.table.index_stats(VECTOR_INDEX).num_indices == 2 + run
        version = index.version
        keep_approximate_index(index, 10_000)
        assert (index.version == version) == (run < 2)
    stats = index.table.index_stats(VECTOR_INDEX)
    assert (stats.num_indices, stats.num_indexed_rows, stats.num_unindexed_rows) == (1, 330, 0)
    assert index.nearest(vectors[329], 1)[0].picture.path == "/new/329.jpg"


def test_rows_that_a_killed_run_left_out_are_taken_in(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "index")
    index_pictures(uri, [photos], embedder)
    index = ImageIndex(uri)
    assert not misses_rows(index)
    build_approximate_index(index)
    draw(photos, range(3, 4), range(4))

    def killed(index: ImageIndex) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "tidy", killed)
        with pytest.raises(KeyboardInterrupt):
            index_pictures(uri, [photos], embedder)
    assert misses_rows(ImageIndex(uri))
    assert index_pictures(uri, [photos], embedder).unchanged == 16
    assert not misses_rows(ImageIndex(uri))
    version = ImageIndex(uri).version
    index_pictures(uri, [photos], embedder)
    assert ImageIndex(uri).version == version
