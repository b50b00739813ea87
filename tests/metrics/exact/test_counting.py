"""Counting gives what sorting gives, whatever the embeddings, the blocks and the shortcuts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuplet.metrics.exact import counting as _counting
from tuplet.metrics.exact import similarity as _similarity
from tuplet.metrics.exact import sorting as _sorting
from tuplet.metrics.exact.positives import ClassOrder, find_positives
from tuplet.metrics.retrieval import nearest_neighbours, retrieval_scores

DISTANCES = ("cosine", "euclidean")


def normal(rng, n):
    return rng.normal(size=(n, 6))


def copies(rng, n):
    return rng.normal(size=(max(1, n // 3), 6))[rng.integers(0, max(1, n // 3), n)]


def lattice(rng, n):
    return rng.integers(-1, 2, size=(n, 4)).astype(float)


def almost_equal(rng, n):
    """Told apart by float64 only."""
    return 1.0 + 1e-7 * rng.normal(size=(n, 6))


def collapsed(rng, n):
    """Told apart by rounding errors only."""
    return 1.0 + 1e-15 * rng.integers(0, 3, size=(n, 6))


def all_equal(rng, n):
    return np.full((n, 6), 0.1)


def far_away(rng, n):
    return rng.normal(size=(n, 6)) + 1e4


def outlier(rng, n):
    x = rng.normal(size=(n, 6))
    x[0] *= 1e6
    return x


def zeros_among(rng, n):
    return rng.normal(size=(n, 6)) * rng.integers(0, 2, size=(n, 1))


KINDS = (normal, copies, lattice, almost_equal, collapsed, all_equal, far_away, outlier, zeros_among)


def labelled(rng, n):
    """Classes of all sizes: some alone, one of half of everything."""
    labels = rng.integers(0, max(2, n // 4), n)
    labels[rng.permutation(n)[: n // 2]] = 1
    labels[:2] = 0
    return labels


def problem(kind, seed, n, distance, *, gallery, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x, y = kind(rng, 2 * n), labelled(rng, 2 * n)
    as_tensor = torch.tensor(x.astype(dtype))
    if not gallery:
        compared, classes = (
            _similarity.similarity(as_tensor, None, distance),
            ClassOrder(torch.tensor(y), None),
        )
    else:
        y[-2:] = y[:2]
        compared = _similarity.similarity(as_tensor[:n], as_tensor[n:], distance)
        classes = ClassOrder(torch.tensor(y[:n]), torch.tensor(y[n:]))
    return compared, classes


def in_order(ranks):
    order = ranks.queries.argsort()
    return {field.name: getattr(ranks, field.name)[order] for field in dataclasses.fields(ranks)}


def assert_counting_is_sorting(compared, classes):
    asked = (classes.num_positives > 0).nonzero()[:, 0]
    wanted = in_order(_sorting.rank_by_sorting(compared, classes, asked))
    got = in_order(_counting.rank_by_counting(compared, classes, most_before=10**6))
    for name in ("queries", "num_before"):
        assert torch.equal(got[name], wanted[name]), name
    for name in ("r_precision", "average_precision"):
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=1e-14)


@pytest.fixture
def sizes(monkeypatch):
    """Set the module's sizes for a test."""

    def change(**values):
        for name, value in values.items():
            monkeypatch.setattr(_counting, name, value)

    return change


TINY = {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 8, "STRIP_ROWS": 32, "SAMPLE": 4}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("gallery", [False, True], ids=["itself", "gallery"])
@pytest.mark.parametrize(
    "changed",
    [{}, TINY, TINY | {"MOST_DOUBTS": 0}, TINY | {"MOST_POSITIVES": 50}, TINY | {"SAMPLE": 10**6}],
    ids=["usual", "tiny blocks", "sorted", "few at a time", "no sample"],
)
def test_counting_is_sorting(sizes, kind, distance, gallery, changed):
    sizes(**changed)
    for seed, dtype in enumerate((np.float64, np.float32) if changed == TINY else (np.float32,)):
        assert_counting_is_sorting(*problem(kind, seed, 35, distance, gallery=gallery, dtype=dtype))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(3, 40),
    kind=st.sampled_from(KINDS),
    distance=st.sampled_from(DISTANCES),
    gallery=st.booleans(),
)
def test_counting_is_sorting_by_chance(seed, n, kind, distance, gallery):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TINY.items():
            patch.setattr(_counting, name, value)
        assert_counting_is_sorting(*problem(kind, seed, n, distance, gallery=gallery))


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_blocks_change_no_digit(sizes, distance):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 40)).astype(np.float32), rng.integers(0, 40, 200)
    whole = retrieval_scores(x, y, distance=distance)
    sizes(**TINY)
    for field in dataclasses.fields(whole)[:-1]:
        assert torch.equal(
            getattr(retrieval_scores(x, y, distance=distance), field.name), getattr(whole, field.name)
        )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_error_of_products_is_within_its_bound(kind, distance, dtype):
    for gallery in (False, True):
        compared, _ = problem(kind, 3, 100, distance, gallery=gallery, dtype=dtype)
        rows, items = torch.arange(len(compared.queries)), torch.arange(len(compared.gallery))
        products = compared.products(compared.query_rows(rows), compared.gallery_rows(items)).double()
        exact = compared.exact_tables(rows[None], items[None])[0]
        error = (products - exact).abs()
        assert (error <= compared.bound[:, None]).all()
        if distance == "cosine":
            assert compared.bound.max() < 1e-5


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_pair_has_one_similarity_wherever_it_is_computed(kind, distance):
    compared, _ = problem(kind, 4, 60, distance, gallery=True)
    rows, items = torch.arange(60), torch.arange(60)
    table = compared.exact_tables(rows[None], items[None])[0]
    for step in (1, 7, 60):
        for part in rows.split(step):
            assert torch.equal(compared.exact_tables(part[None], items[None])[0], table[part])
    pairs = compared.exact_pairs(rows.repeat_interleave(60), items.repeat(60))
    assert torch.equal(pairs.view(60, 60), table)


def test_threads_do_not_divide_the_sum_of_a_single_pair():
    x = torch.tensor(np.random.default_rng(0).normal(size=(12, 100_003)))
    compared, rows = _similarity.similarity(x, None, "euclidean"), torch.arange(12)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one_by_one = torch.cat([compared.exact_pairs(rows[:1], row) for row in rows.split(1)])
        together = compared.exact_pairs(rows[:1].expand(12), rows)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one_by_one, together)


def test_cosines_near_the_middle_of_the_grid_are_settled_by_their_pair(monkeypatch):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(90, 33)))
    compared = _similarity.similarity(x, None, "cosine")
    # A coarse float64: a tenth of all tables' entries may be rounded to the wrong side.
    monkeypatch.setattr(compared, "_grid_bound", 0.1)
    rows = torch.arange(90)
    asked = []
    pairs = type(compared).exact_pairs
    monkeypatch.setattr(compared, "exact_pairs", lambda q, g: asked.append(len(q)) or pairs(compared, q, g))
    table = compared.exact_tables(rows[None], rows[None])[0]
    assert 0.15 * 8100 < sum(asked) < 0.25 * 8100
    assert torch.equal(pairs(compared, rows.repeat_interleave(90), rows.repeat(90)).view(90, 90), table)


def test_few_pairs_are_computed_exactly(monkeypatch):
    rng = np.random.default_rng(0)
    y = np.arange(2000) // 5
    x = torch.tensor(rng.normal(size=(400, 64))[y] + rng.normal(size=(2000, 64)), dtype=torch.float32)
    compared, classes = _similarity.similarity(x, None, "cosine"), ClassOrder(torch.tensor(y), None)
    asked = []
    pairs = type(compared).exact_pairs
    monkeypatch.setattr(compared, "exact_pairs", lambda q, g: asked.append(len(q)) or pairs(compared, q, g))
    _counting.rank_by_counting(compared, classes, most_before=1000)
    assert sum(asked) < 2000


def test_hopeless_positives_are_given_up(sizes):
    rng = np.random.default_rng(0)
    x, y = torch.tensor(rng.normal(size=(2000, 8))), torch.arange(2000) // 10
    compared, classes = _similarity.similarity(x, None, "cosine"), ClassOrder(y, None)
    counts = _counting.Counts(
        find_positives(compared, classes, torch.arange(2000)), compared.bound, most_before=1
    )
    assert (counts._alive == 9).all()
    _counting._give_up(compared, classes, counts, slice(0, 2000))
    assert counts._alive.float().mean() < 1.0  # of 9
    positives = counts.positives
    table = _sorting.exact_similarities(compared, classes.queries)
    negative = classes.query_labels[classes.queries, None] != classes.gallery_labels
    for row in range(0, 2000, 37):
        start, alive = int(positives.start[row]), int(counts._alive[row])
        if alive < 9:
            next_best = positives.similarity[start + alive]
            before = int((table[row][negative[row]] > next_best).sum())
            assert before + alive + 1 > 9


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("most_extra", [0, 64])
def test_the_nearest_are_the_first_of_all_sorted(monkeypatch, kind, distance, most_extra):
    monkeypatch.setattr(_sorting, "MOST_EXTRA", most_extra)
    monkeypatch.setattr(_sorting, "BLOCK_BYTES", 4 * 50 * 7)
    for gallery in (False, True):
        compared, _ = problem(kind, 5, 25, distance, gallery=gallery, dtype=np.float32)
        rows = torch.arange(len(compared.queries))
        table = _sorting.exact_similarities(compared, rows)
        items, exact = _sorting.nearest_items(compared, 6)
        order = table.sort(dim=1, descending=True, stable=True).indices[:, :6]
        assert torch.equal(items, order)
        assert torch.equal(exact, table.gather(1, order))


def test_a_gallery_of_a_wider_precision_is_not_rounded():
    gallery = np.array([[1.0, 1e-9], [1.0, 0.0]])
    query = np.array([[0.0, 1.0]], dtype=np.float32)
    assert nearest_neighbours(query, 2, gallery=gallery)[0].tolist() == [[0, 1]]
    assert nearest_neighbours(query, 2, gallery=gallery[::-1].copy())[0].tolist() == [[1, 0]]
