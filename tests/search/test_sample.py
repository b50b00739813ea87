from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
from picture_folder import index_of_vectors, row_of, unit

ROWS, DIM = 600, 16


def test_a_draw_is_of_the_rows_that_are_there(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((ROWS, DIM)))
    number = np.arange(ROWS)
    given: list[str | None] = [None if row % 3 == 0 else f"label {row}" for row in number]
    index = index_of_vectors(tmp_path / "index", vectors, given)
    index.table.delete("size < 90")
    index.refresh()
    many = {f"label {row}": 1 for row in range(0, 2 * ROWS, 2)} | {f"other {row}": 1 for row in range(3000)}
    for labels, wanted in (
        (None, number[90:]),
        ({f"label {row}": 1 for row in range(100)}, number[90:100][number[90:100] % 3 > 0]),
        (many, number[90:][(number[90:] % 3 > 0) & (number[90:] % 2 == 0)]),
        ({"nothing"}, number[:0]),
        (set(), number[:0]),
    ):
        drawn = index.sample(5000, 0, labels=labels)
        assert sorted(row_of(one.path) for one in drawn.pictures) == wanted.tolist()
        assert [one.id for one in drawn.pictures] == sorted(one.id for one in drawn.pictures)
        assert drawn.vectors.shape == (len(wanted), DIM)
        for picture, vector in zip(drawn.pictures, drawn.vectors, strict=True):
            assert np.array_equal(vector, vectors[row_of(picture.path)])
    often = np.zeros(ROWS)
    for seed in range(60):
        often[[row_of(one.path) for one in index.sample(51, seed).pictures]] += 1
    assert often[:90].sum() == 0
    assert often.sum() == 60 * 51
    # Each of 510 rows is drawn six times of sixty, as a coin of one tenth says.
    assert abs(often[90:].var() - 5.4) < 1.5
    assert np.ptp(often[90:].reshape(3, -1).sum(axis=1)) < 150


def test_a_draw_makes_no_object_of_every_row(tmp_path: Path) -> None:
    index = index_of_vectors(tmp_path / "index", unit(np.ones((20_000, 2))), ["one"] * 20_000)
    for labels in (None, {"one"}):
        tracemalloc.start()
        try:
            index.sample(10, 0, labels=labels)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 20_000 * 30  # a text of 32 characters takes 81 bytes
