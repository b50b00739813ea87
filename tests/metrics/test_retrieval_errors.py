"""Every refusal of the retrieval metrics says what was got and what is wanted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tuplet.errors import InputError
from tuplet.metrics import inputs as _inputs
from tuplet.metrics.retrieval import nearest_neighbours, num_queries, retrieval_metrics

X = np.arange(1, 13, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 0, 1, 1, 2, 2])


def with_value(row, value):
    x = X.copy()
    x[row, 1] = value
    return x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"embeddings": with_value(3, np.nan)},
            r"embeddings holds NaN or infinity, first in row 3; wanted finite",
        ),
        ({"embeddings": with_value(4, -np.inf)}, r"embeddings holds NaN or infinity, first in row 4"),
        (
            {"gallery": with_value(5, np.inf), "gallery_labels": Y},
            r"gallery holds NaN or infinity, first in row 5",
        ),
        (
            {"embeddings": X[:0], "labels": Y[:0]},
            r"embeddings is empty, with shape \[0, 2\]; want at least one",
        ),
        ({"embeddings": X[:, :0]}, r"embeddings is empty, with shape \[6, 0\]"),
        ({"embeddings": X[0]}, r"embeddings has shape \[2\]; wanted \[N, D\]"),
        ({"embeddings": X.astype(int)}, r"embeddings holds torch.int64; wanted floats"),
        ({"embeddings": X.astype(object)}, r"got an array of object; wanted numbers"),
        ({"labels": Y[:5]}, r"labels has 5 entries for 6 embeddings; wanted one an embedding"),
        ({"labels": Y[:, None]}, r"labels has shape \[6, 1\]; wanted \[N\]"),
        ({"labels": Y * 1.0}, r"labels holds torch.float64; wanted integers"),
        ({"labels": Y > 1}, r"labels holds torch.bool; wanted integers"),
        ({"gallery": X, "gallery_labels": Y[:4]}, r"gallery_labels has 4 entries for 6 embeddings"),
        ({"gallery": X}, r"got one of gallery and gallery_labels; wanted both or neither"),
        ({"gallery_labels": Y}, r"got one of gallery and gallery_labels; wanted both or neither"),
        (
            {"gallery": X[:, :1], "gallery_labels": Y},
            r"embeddings are 2 wide and the gallery 1; wanted the same",
        ),
        ({"recall_at": (1, 0)}, r"recall_at holds 0; wanted integers >= 1"),
        (
            {"labels": np.arange(6)},
            r"none of 6 queries has another item of its class to find; want at least one",
        ),
        ({"gallery": X, "gallery_labels": Y + 3}, r"none of 6 queries has another item of its class"),
        ({"distance": "manhattan"}, r"distance is 'manhattan'; wanted one of cosine, euclidean"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        retrieval_metrics(**({"embeddings": X, "labels": Y} | arguments))


@pytest.mark.parametrize(
    ("k", "gallery", "most"), [(0, None, 5), (6, None, 5), (7, X, 6), (-1, X, 6)], ids=str
)
def test_refused_numbers_of_neighbours(k, gallery, most):
    with pytest.raises(InputError, match=rf"k is {k}; wanted 1\.\.{most}"):
        nearest_neighbours(X, k, gallery=gallery)


def test_num_queries_counts_and_refuses():
    assert num_queries(torch.tensor([3, 3, 4, 5, 5, 5])) == 5
    assert num_queries(np.arange(4)) == 0
    assert num_queries(np.array([], dtype=int)) == 0
    assert num_queries([1, 1, 2], np.array([2, 9])) == 1
    with pytest.raises(InputError, match=r"labels has shape \[6, 1\]"):
        num_queries(Y[:, None])


@pytest.mark.parametrize("row", range(6))
def test_the_row_is_named_in_whatever_part_it_is(monkeypatch, row):
    monkeypatch.setattr(_inputs, "CHUNK_NUMBERS", 4)
    with pytest.raises(InputError, match=f"first in row {row};"):
        retrieval_metrics(with_value(row, np.nan), Y)
