"""Codes of few bytes, and scores of rankings, against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from tuplet.errors import DataError, SettingsError
from tuplet.metrics.ranked import nearest_rows, ranked_scores, top_columns
from tuplet.metrics.retrieval import retrieval_metrics
from tuplet.metrics.small_vectors import Directions, SmallCode, code_bytes, widest


def unit_vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dim)) * np.exp(-np.arange(dim) / 6)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_all_directions_leave_cosines_as_they_are() -> None:
    unit = unit_vectors(50, 24)
    code = Directions(unit).code("float32", 24)
    kept = code.stored(code.project(unit))
    np.testing.assert_allclose(kept @ kept.T, unit @ unit.T, atol=1e-5)
    np.testing.assert_allclose(code.lift(kept), unit, atol=1e-5)


def test_leading_directions_are_those_of_the_singular_value_decomposition() -> None:
    unit = unit_vectors(80, 24)
    code = Directions(unit).code("float32", 8)
    wanted = np.linalg.svd(unit, full_matrices=False)[2][:8].T
    np.testing.assert_allclose(code.rotation @ code.rotation.T, wanted @ wanted.T, atol=1e-4)
    for kind in ("int8", "bits"):  # turned within the same space
        turned = Directions(unit).code(kind, 8).rotation
        np.testing.assert_allclose(turned @ turned.T, wanted @ wanted.T, atol=1e-4)


def test_bytes_and_bits_by_hand() -> None:
    code = SmallCode("int8", np.eye(8, dtype=np.float32))
    projected = np.array([[0.5, -0.25, 0, 0, 0, 0, 0, 0.1]], dtype=np.float32)
    assert code.bytes(projected).tolist() == [[127, -64, 0, 0, 0, 0, 0, 25]]
    assert code.bits(projected).tolist() == [[0b10000001]]
    np.testing.assert_allclose(
        code.from_bits(code.bits(projected)), (np.array([[1, -1, -1, -1, -1, -1, -1, 1]]) / 8**0.5)
    )
    assert (code.num_bytes, code.width) == (9, 8)
    assert [code_bytes(kind, 64) for kind in ("float32", "int8", "bits")] == [256, 72, 8]
    assert [widest(kind, 128, 512) for kind in ("float32", "int8", "bits")] == [32, 112, 512]
    assert widest("float32", 31, 512) == 0


def test_a_code_comes_back_from_json_and_zeros_stay_zeros() -> None:
    code = Directions(unit_vectors(30, 16)).code("int8", 8)
    again = SmallCode.from_json(code.to_json())
    np.testing.assert_array_equal(again.rotation, code.rotation)
    assert (again.kind, again.width) == ("int8", 8)
    assert not code.stored(code.project(np.zeros((1, 16), dtype=np.float32))).any()


@pytest.mark.parametrize(("kind", "width"), [("int8", 12), ("int8", 0), ("bits", 32), ("int4", 8)])
def test_codes_that_do_not_exist(kind: str, width: int) -> None:
    with pytest.raises(SettingsError):
        Directions(unit_vectors(30, 16)).code(kind, width)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(some.integers(0, 10**6), some.integers(1, 9), some.integers(1, 12))
def test_top_columns_are_those_of_a_stable_sort(seed: int, count: int, width: int) -> None:
    values = np.random.default_rng(seed).integers(0, 4, (5, width)).astype(np.float32)
    wanted = np.argsort(-values, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(top_columns(values, count), wanted)


def test_scores_of_rankings_by_cosine_are_those_of_exact_counting() -> None:
    labels = np.repeat(np.arange(9), 7)
    labels[:3] = [100, 101, 102]  # alone in their classes: no queries
    unit = unit_vectors(len(labels), 12, seed=3)
    scores = ranked_scores(nearest_rows(unit, unit, 6), labels)
    wanted = retrieval_metrics(torch.from_numpy(unit), torch.from_numpy(labels), recall_at=(1,))
    assert scores.recall_at_1 == pytest.approx(wanted["recall_at_1"])
    assert scores.map_at_r == pytest.approx(wanted["map_at_r"], abs=1e-6)
    with pytest.raises(DataError):
        ranked_scores(nearest_rows(unit, unit, 6), np.arange(len(labels)))


def test_blocks_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = unit_vectors(60, 12)
    whole = nearest_rows(unit, unit, 5)
    monkeypatch.setattr("tuplet.metrics.ranked.BLOCK_VALUES", 60 * 7)
    np.testing.assert_array_equal(nearest_rows(unit, unit, 5), whole)
    assert not (whole == np.arange(60)[:, None]).any()
