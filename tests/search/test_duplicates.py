from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_folder import index_of_vectors, unit

from tuplet.errors import SettingsError
from tuplet.search import duplicates
from tuplet.search.duplicates import find_duplicates, similar_groups


def slow_groups(vectors: np.ndarray, contents: np.ndarray, threshold: float) -> set[frozenset[int]]:
    """Groups by spreading from every row to all that it is joined with."""
    joined = (vectors.astype(np.float64) @ vectors.T >= threshold) | (contents[:, None] == contents)
    groups = set()
    for row in range(len(vectors)):
        reached, waiting = {row}, [row]
        while waiting:
            new = set(np.flatnonzero(joined[waiting.pop()]).tolist()) - reached
            reached |= new
            waiting += new
        groups.add(frozenset(reached))
    return {group for group in groups if len(group) > 1}


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_the_connected_components(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, *(("_BLOCK_ROWS", 7), ("_BLOCK_PRODUCTS", 1500))[seed % 2])
    random = np.random.default_rng(seed)
    contents = random.integers(0, 100, 120)
    vectors = unit(random.standard_normal((100, 3)))[contents]  # in three dimensions, chains are long
    for threshold in (0.9, 0.99, 0.999, 1.0):
        found = similar_groups(torch.from_numpy(vectors), contents, threshold)
        assert {frozenset(group.tolist()) for group in found} == slow_groups(vectors, contents, threshold)
        assert all(np.all(np.diff(group) > 0) for group in found)


@pytest.mark.parametrize("kinds", [1, 3])
def test_what_all_looks_alike_takes_no_more_memory(kinds: int) -> None:
    random = np.random.default_rng(0)
    of = random.integers(0, kinds, 2000)
    vectors = unit(np.eye(8)[of] + 0.01 * random.standard_normal((2000, 8)))
    tracemalloc.start()
    try:
        found = similar_groups(torch.from_numpy(vectors), np.arange(2000), 0.95)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    wanted = {tuple(np.flatnonzero(of == kind).tolist()) for kind in range(kinds)}
    assert {tuple(group.tolist()) for group in found} == wanted
    assert peak < 100 * vectors.shape[0] * 8  # a number for each pair of one kind is 5 MB or more


def test_copies_are_told_from_what_only_looks_alike(tmp_path: Path) -> None:
    vectors = np.eye(6, dtype=np.float32)[[0, 0, 1, 2, 2, 2, 3, 4]]
    vectors[4] = unit(vectors[4:5] + 0.1 * np.eye(6)[4:5])[0]
    index = index_of_vectors(tmp_path / "index", vectors)
    index.table.update(where="size IN (0, 1)", values={"content": "a"})
    index.table.update(where="size IN (3, 5)", values={"content": "b"})
    index.refresh()
    large, small = find_duplicates(index)
    assert [one.picture.size for one in large.pictures] == [3, 4, 5]
    assert [one.exact for one in large.pictures] == [True, False, True]
    assert [one.cosine for one in large.pictures] == pytest.approx([1, 1 / np.sqrt(1.01), 1], abs=1e-6)
    assert not large.exact
    assert [one.picture.size for one in small.pictures] == [0, 1]
    assert small.exact
    assert [len(group.pictures) for group in find_duplicates(index, threshold=0.999)] == [2, 2]
    assert [len(group.pictures) for group in find_duplicates(index, where="size > 3")] == [2]
    assert find_duplicates(index, where="size = 2") == find_duplicates(index, where="size > 99") == []
    for threshold in (0, 1.5):
        with pytest.raises(SettingsError):
            find_duplicates(index, threshold=threshold)
