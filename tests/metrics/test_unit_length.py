"""Vectors at length one: ordinary ones bit for bit, and those whose squares leave the range of floats."""

from __future__ import annotations

import numpy as np
import pytest

from tuplet.metrics.reranking import AlphaQueryExpansion, reranked
from tuplet.metrics.unit_length import at_unit_length


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_any_length_have_the_direction_that_they_had(dtype: type) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 5)).astype(dtype)
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_array_equal(at_unit_length(rows), expected)
    limits = np.finfo(dtype)
    for scale in (limits.max / 8, limits.tiny * 8, np.sqrt(limits.max), np.sqrt(limits.tiny)):
        scales = np.ones((7, 1), dtype=dtype)
        scales[::2] = scale
        given = rows * scales
        before = given.copy()
        np.testing.assert_allclose(at_unit_length(given), expected, rtol=64 * limits.eps)
        np.testing.assert_array_equal(given, before)


def test_zeros_and_no_rows_stay_as_they_are() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 4.0]], dtype=np.float32)
    np.testing.assert_allclose(at_unit_length(rows), [[0.0, 0.0], [0.6, 0.8]], rtol=1e-6)
    assert at_unit_length(np.empty((0, 3), np.float32)).shape == (0, 3)


def test_the_length_of_embeddings_changes_no_reranking() -> None:
    rows = np.random.default_rng(1).normal(size=(12, 4))
    expected = reranked(rows, AlphaQueryExpansion(k=3), 5)
    for scale in (1e-30, 1e25):
        np.testing.assert_array_equal(reranked(rows * scale, AlphaQueryExpansion(k=3), 5), expected)
