"""Re-ranking against plain loops over lists and sets."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tuplet.errors import DataError, SettingsError
from tuplet.metrics import ranked, reciprocal, reranking
from tuplet.metrics.ranked import ranked_scores
from tuplet.metrics.reranking import AlphaQueryExpansion, KReciprocal, Reranking, reranked


def vectors_of(count: int, dim: int = 8, seed: int = 0, classes: int = 6) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, dim))
    return (centres[np.arange(count) % classes] + 0.7 * random.normal(size=(count, dim))).astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    values = vectors.astype(np.float64)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def sorted_by(scores: list[float], allowed: list[int]) -> list[int]:
    return sorted(allowed, key=lambda item: (-scores[item], item))


def expanded(vector: np.ndarray, gallery: np.ndarray, allowed: list[int], k: int, alpha: float) -> np.ndarray:
    cosines = [float(vector @ item) for item in gallery]
    total = vector.copy()
    for item in sorted_by(cosines, allowed)[:k]:
        total = total + max(cosines[item], 0.0) ** alpha * gallery[item]
    return total / np.linalg.norm(total)


def expansion_oracle(
    query: np.ndarray, gallery: np.ndarray, allowed: list[int], settings: AlphaQueryExpansion
) -> list[int]:
    """Rank the allowed items of a gallery, as if the others were not there."""
    asked = expanded(query, gallery, allowed, settings.k, settings.alpha)
    found = gallery.copy()
    if settings.database:
        for item in allowed:
            others = [other for other in allowed if other != item]
            found[item] = expanded(gallery[item], gallery, others, settings.k, settings.alpha)
    return sorted_by([float(asked @ item) for item in found], allowed)


def reciprocal_oracle(items: np.ndarray, query: int, settings: KReciprocal) -> dict[int, float]:
    """Return the final distance of a query to every other item, by the sets of the paper."""
    size = len(items)
    k1 = min(settings.k1, size - 1)
    cosines = items @ items.T
    order = [
        [item, *sorted_by(list(cosines[item]), [other for other in range(size) if other != item])]
        for item in range(size)
    ]

    def reciprocal_set(item: int, k: int) -> set[int]:
        return {other for other in order[item][: k + 1] if item in order[other][: k + 1]}

    codes = np.zeros((size, size))
    for item in range(size):
        own = reciprocal_set(item, k1)
        members = set(own)
        for other in own:
            brought = reciprocal_set(other, k1 // 2)
            if len(own & brought) >= 2 / 3 * len(brought) - 1e-9:
                members |= brought
        weights = {member: math.exp(-(1 - cosines[item, member])) for member in members}
        for member, weight in weights.items():
            codes[item, member] = weight / sum(weights.values())
    averaged = np.array(
        [np.mean([codes[other] for other in order[item][: settings.k2]], 0) for item in range(size)]
    )
    distances = {}
    for item in range(size):
        if item != query:
            smaller = sum(min(a, b) for a, b in zip(averaged[query], averaged[item], strict=True))
            larger = sum(max(a, b) for a, b in zip(averaged[query], averaged[item], strict=True))
            plain = 1 - cosines[query, item]
            distances[item] = (1 - settings.lambda_value) * (
                1 - smaller / larger
            ) + settings.lambda_value * plain
    return distances


@pytest.fixture(params=[None, 40], ids=["one block", "small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute everything in one block, or in blocks of a few rows."""
    if request.param is not None:
        for module in (ranked, reciprocal, reranking):
            monkeypatch.setattr(module, "BLOCK_VALUES", request.param)


EXPANSIONS = [
    AlphaQueryExpansion(k=3),
    AlphaQueryExpansion(k=5, alpha=0.0),
    AlphaQueryExpansion(k=4, database=True),
    AlphaQueryExpansion(k=100, alpha=1.0, database=True),
]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("settings", EXPANSIONS)
def test_expansion_among_themselves_never_uses_the_query(settings: AlphaQueryExpansion) -> None:
    items = vectors_of(26)
    ranking = reranked(items, settings, 25)
    for query in range(26):
        others = [item for item in range(26) if item != query]
        wanted = expansion_oracle(unit(items)[query], unit(items), others, settings)
        assert ranking[query].tolist() == wanted


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("settings", EXPANSIONS)
def test_expansion_in_a_gallery(settings: AlphaQueryExpansion) -> None:
    queries, gallery = vectors_of(7, seed=1), vectors_of(23, seed=1)
    ranking = reranked(queries, settings, 23, gallery=gallery)
    for row, query in enumerate(unit(queries)):
        assert ranking[row].tolist() == expansion_oracle(query, unit(gallery), list(range(23)), settings)


RECIPROCALS = [
    KReciprocal(k1=6, k2=3),
    KReciprocal(k1=5, k2=1, lambda_value=0.1),
    KReciprocal(k1=20, k2=6),
    KReciprocal(k1=1, k2=2, lambda_value=0.5),
    KReciprocal(k1=99, k2=4),
]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("settings", RECIPROCALS)
def test_k_reciprocal_among_themselves(settings: KReciprocal) -> None:
    items = vectors_of(37, seed=2)
    ranking = reranked(items, settings, 36)
    for query in range(37):
        distances = reciprocal_oracle(unit(items), query, settings)
        found = [distances[item] for item in ranking[query].tolist()]
        assert sorted(ranking[query].tolist()) == sorted(distances)
        np.testing.assert_allclose(found, sorted(distances.values()), atol=1e-6)


@pytest.mark.usefixtures("blocks")
def test_k_reciprocal_in_a_gallery_asks_each_query_alone() -> None:
    queries, gallery = vectors_of(5, seed=3), vectors_of(40, seed=4)
    settings = KReciprocal(k1=6, k2=3, num_candidates=15)
    ranking = reranked(queries, settings, 30, gallery=gallery)
    for row, query in enumerate(unit(queries)):
        plain = sorted_by([float(query @ item) for item in unit(gallery)], list(range(40)))
        distances = reciprocal_oracle(np.concatenate([query[None], unit(gallery)[plain[:15]]]), 0, settings)
        found = [distances[1 + plain.index(item)] for item in ranking[row, :15].tolist()]
        np.testing.assert_allclose(found, sorted(distances.values()), atol=1e-6)
        assert ranking[row, 15:].tolist() == plain[15:30]
    alone = reranked(queries[2:3], settings, 30, gallery=gallery)
    assert alone[0].tolist() == ranking[2].tolist()


@pytest.mark.parametrize("settings", [*EXPANSIONS[:1], *RECIPROCALS[:1]])
def test_a_query_that_searches_a_gallery_with_all_candidates_finds_what_it_finds_among_themselves(
    settings: Reranking,
) -> None:
    # One query and its gallery are a set that searches itself: both ways must agree on the query's row.
    items = vectors_of(30, seed=5)
    if isinstance(settings, KReciprocal):
        settings = replace(settings, num_candidates=29)
    among = reranked(items, settings, 29)[0] - 1
    assert reranked(items[:1], settings, 29, gallery=items[1:])[0].tolist() == among.tolist()


def test_neighbours_of_a_class_gain() -> None:
    items, labels = vectors_of(300, dim=16, seed=6, classes=10), np.arange(300) % 10
    plain = ranked_scores(ranked.nearest_rows(*[unit(items).astype(np.float32)] * 2, 29), labels)
    for settings in (AlphaQueryExpansion(), AlphaQueryExpansion(database=True), KReciprocal()):
        after = ranked_scores(reranked(items, settings, 29), labels)
        assert after.map_at_r > plain.map_at_r + 0.02


@pytest.mark.parametrize("settings", [AlphaQueryExpansion(database=True), KReciprocal()])
def test_copies_zeros_and_two_items(settings: Reranking) -> None:
    copies = np.concatenate([np.zeros((2, 4)), np.ones((5, 4)), -np.ones((2, 4))])
    ranking = reranked(copies, settings, 8)
    for row, found in enumerate(ranking.tolist()):
        assert sorted([row, *found]) == list(range(9))
    assert set(ranking[2, :4].tolist()) == {3, 4, 5, 6}
    assert reranked(np.eye(2), settings, 1).tolist() == [[1], [0]]
    assert reranked(np.eye(2), settings, 1, gallery=np.eye(2)[:1]).tolist() == [[0], [0]]


def test_settings_out_of_range() -> None:
    for name, value in (("k", 0), ("alpha", -1.0), ("alpha", math.nan)):
        with pytest.raises(SettingsError) as raised:
            AlphaQueryExpansion(**{name: value})
        assert raised.value.subject == name
    for fields in ({"k1": 0}, {"k2": 22}, {"lambda_value": 1.5}, {"num_candidates": 19}):
        with pytest.raises(SettingsError) as raised:
            KReciprocal(**fields)
        assert raised.value.subject == next(iter(fields))


def test_bad_embeddings_and_counts() -> None:
    items = vectors_of(9)
    for count in (0, 9):
        with pytest.raises(SettingsError):
            reranked(items, KReciprocal(), count)
    with pytest.raises(DataError):
        reranked(items, KReciprocal(), 3, gallery=items[:, :4])
    with pytest.raises(DataError):
        reranked(np.full((3, 4), np.nan), AlphaQueryExpansion(), 1)
    with pytest.raises(DataError):
        reranked(np.zeros((0, 4)), AlphaQueryExpansion(), 1)


def test_no_torch_is_needed() -> None:
    code = (
        "import sys, numpy as np; from tuplet.metrics.reranking import *\n"
        "for settings in (AlphaQueryExpansion(), KReciprocal()): reranked(np.eye(9), settings, 3)\n"
        "assert 'scipy.sparse' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
