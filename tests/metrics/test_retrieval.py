"""Retrieval metrics against an independent brute force, the properties of their definitions, and refusals."""

from __future__ import annotations

import brute_force
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuplet.errors import DataError, SettingsError
from tuplet.metrics import inputs as _inputs
from tuplet.metrics.exact import similarity as _similarity
from tuplet.metrics.exact import sorting as _sorting
from tuplet.metrics.exact.similarity import similarity
from tuplet.metrics.retrieval import nearest_neighbours, retrieval_metrics, retrieval_scores

KS = (1, 2, 4, 8)
DISTANCES = ("cosine", "euclidean")


def assert_same(got, wanted, tolerance=1e-12):
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, abs=tolerance), name


def small_integers(rng, n, d):
    """Rows on which Euclidean arithmetic is exact, with many ties and duplicates."""
    return rng.integers(-2, 3, size=(n, d)).astype(np.float32)


def axis_points(rng, n, d):
    """Scaled axis vectors: their cosines are 0, 1 and -1 exactly, so nearly everything ties."""
    rows = np.zeros((n, d), np.float32)
    rows[np.arange(n), rng.integers(0, d, n)] = rng.choice([-3.0, -1.0, 1.0, 2.0, 5.0], n)
    return rows


EXACT = {"cosine": axis_points, "euclidean": small_integers}


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("seed", range(15))
def test_exact_ties_agree_with_brute_force(seed, distance):
    rng = np.random.default_rng(seed)
    n, d, num_classes = rng.integers(4, 40), rng.integers(1, 5), rng.integers(1, 8)
    x, y = EXACT[distance](rng, n, d), rng.integers(0, num_classes, n)
    y[:2] = y[0]
    wanted = brute_force.retrieval(x, y, recall_at=KS, distance=distance)
    assert_same(retrieval_metrics(x, y, recall_at=KS, distance=distance), wanted)
    assert_same(retrieval_metrics(torch.tensor(x).half(), torch.tensor(y), distance=distance), wanted)
    assert_same(retrieval_metrics(x.astype(np.float64), y.astype(np.uint8), distance=distance), wanted)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("seed", range(10))
def test_query_to_gallery_agrees_with_brute_force(seed, distance):
    rng = np.random.default_rng(seed)
    x, gallery = EXACT[distance](rng, 13, 3), EXACT[distance](rng, 29, 3)
    y, found = rng.integers(0, 6, 13), rng.integers(2, 9, 29)
    y[0] = found[0]
    settings = {"recall_at": (1, 3, 100), "gallery": gallery, "gallery_labels": found, "distance": distance}
    assert_same(retrieval_metrics(x, y, **settings), brute_force.retrieval(x, y, **settings))
    scores = retrieval_scores(x, y, gallery=gallery, gallery_labels=found)
    assert len(scores.queries) == sum(label in found for label in y)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("seed", range(5))
def test_random_floats_agree_with_brute_force(seed, distance):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(60, 7)), rng.integers(0, 9, 60)
    assert_same(
        retrieval_metrics(x, y, recall_at=(1, 5, 1000), distance=distance),
        brute_force.retrieval(x, y, recall_at=(1, 5, 1000), distance=distance),
    )


@pytest.mark.parametrize("distance", DISTANCES)
def test_one_huge_class_among_singletons(distance):
    rng = np.random.default_rng(0)
    x, y = EXACT[distance](rng, 70, 4), np.r_[np.zeros(50, int), np.arange(1, 21)]
    rng.shuffle(y)
    wanted = brute_force.retrieval(x, y, recall_at=KS, distance=distance)
    assert_same(retrieval_metrics(x, y, distance=distance), wanted)
    assert len(retrieval_scores(x, y).queries) == 50


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("distance", DISTANCES)
def test_all_equal_embeddings_rank_by_index(value, distance):
    x, y = np.full((17, 5), value, np.float32), np.arange(17) % 4
    order = [brute_force.order_of([0.0], [[0.0]] * 17, distance=distance, excluded=q)[:6] for q in range(17)]
    assert nearest_neighbours(x, 6, distance=distance)[0].tolist() == order
    wanted = brute_force.retrieval(np.zeros_like(x), y, recall_at=KS, distance=distance)
    assert_same(retrieval_metrics(x, y, distance=distance), wanted)


def test_self_is_excluded_by_index_where_a_duplicate_ties_with_it():
    x = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    assert nearest_neighbours(x, 1)[0].tolist() == [[1], [0], [0]]
    assert retrieval_metrics(x, np.array([0, 0, 1]), recall_at=[1])["recall_at_1"] == 1.0
    # With a gallery nothing is excluded, even where it holds the queries themselves.
    assert nearest_neighbours(x, 1, gallery=x)[0].tolist() == [[0], [0], [2]]


def test_a_tie_is_lost_to_a_lower_index_only():
    gallery, query = np.array([[1.0], [1.0]], np.float32), np.array([[2.0]], np.float32)
    for positive, recall in ((0, 1.0), (1, 0.0)):
        labels = np.array([7, 7])
        labels[positive] = 3
        measured = retrieval_metrics(query, np.array([3]), gallery=gallery, gallery_labels=labels)
        assert (measured["recall_at_1"], measured["recall_at_2"]) == (recall, 1.0)
        assert measured["map_at_r"] == measured["r_precision"] == recall


def duplicated(rng, n, d):
    """Random rows, each of them there three times, shuffled, and the row that each one copies."""
    source = rng.permutation(np.repeat(np.arange(n), 3))
    return rng.normal(size=(n, d)).astype(np.float32)[source], source


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("n", "d", "block_rows"), [(7, 3, 1), (37, 5, 1), (37, 5, 3), (97, 37, 7), (97, 37, 1000), (99, 129, 16)]
)
def test_identical_rows_tie_whatever_kernel_multiplies_them(monkeypatch, n, d, block_rows, distance):
    x, source = duplicated(np.random.default_rng(n), n, d)
    monkeypatch.setattr(_sorting, "BLOCK_BYTES", block_rows * x.shape[0] * 8)
    first_copy = torch.tensor(np.unique(source, return_index=True)[1][source])
    compared = similarity(torch.tensor(x), x, distance)
    for rows in _sorting.blocks(torch.arange(len(x)), len(x)):
        table = _sorting.exact_similarities(compared, rows)
        assert torch.equal(table, table[:, first_copy])
        order = _sorting.first_results(table, len(x))
        steps = table.gather(1, order).diff(dim=1)
        assert ((steps < 0) | ((steps == 0) & (order.diff(dim=1) > 0))).all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("block_rows", [0, 3, 7, 64])
def test_the_block_size_changes_nothing(monkeypatch, block_rows, distance):
    rng = np.random.default_rng(1)
    x, y = EXACT[distance](rng, 61, 4), rng.integers(0, 12, 61)
    whole, neighbours = (
        retrieval_metrics(x, y, distance=distance),
        nearest_neighbours(x, 9, distance=distance),
    )
    monkeypatch.setattr(_sorting, "BLOCK_BYTES", block_rows * 61 * 8)
    assert_same(retrieval_metrics(x, y, distance=distance), whole, tolerance=1e-15)
    for got, wanted in zip(nearest_neighbours(x, 9, distance=distance), neighbours, strict=True):
        assert torch.equal(got, wanted)


def test_no_block_is_larger_than_its_bytes(monkeypatch):
    monkeypatch.setattr(_sorting, "BLOCK_BYTES", 1000)
    compared = similarity(torch.randn(50, 4), None, "cosine")
    tables = [_sorting.exact_similarities(compared, rows) for rows in _sorting.blocks(torch.arange(50), 50)]
    assert sum(map(len, tables)) == 50
    assert max(table.nbytes for table in tables) <= 1000


@pytest.mark.parametrize("distance", DISTANCES)
def test_neighbours_and_their_similarities(distance):
    rng = np.random.default_rng(0)
    x, gallery = torch.tensor(rng.normal(size=(11, 6))), torch.tensor(rng.normal(size=(20, 6)))
    indices, similarities = nearest_neighbours(x, 20, gallery=gallery, distance=distance)
    for query in range(11):
        order = brute_force.order_of(x[query], gallery, distance=distance, excluded=None)
        assert indices[query].tolist() == order
    if distance == "cosine":
        wanted = torch.cosine_similarity(x[:, None], gallery[indices], dim=-1)
    else:
        wanted = -torch.linalg.vector_norm(x[:, None] - gallery[indices], dim=-1)
    torch.testing.assert_close(similarities, wanted)
    assert (similarities.diff(dim=1) <= 0).all()
    assert nearest_neighbours(x.float(), 1)[1].dtype == torch.float32


def test_a_zero_vector_has_cosine_zero_to_everything():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    indices, similarities = nearest_neighbours(x, 3)
    assert indices[0].tolist() == [1, 2, 3]
    assert similarities[0].tolist() == [0, 0, 0]
    assert indices[1].tolist() == [0, 3, 2]


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e20, 1e35])
@pytest.mark.parametrize("distance", DISTANCES)
def test_huge_and_tiny_embeddings_neither_overflow_nor_vanish(scale, distance):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 5, 40)
    wanted = retrieval_metrics(x, y, distance=distance)
    assert_same(retrieval_metrics(x * np.float32(scale), y, distance=distance), wanted)
    distant = x.astype(np.float64) * scale**8
    assert_same(retrieval_metrics(distant, y, distance=distance), wanted)
    similarities = nearest_neighbours(distant, 3, distance=distance)[1]
    factor = 1.0 if distance == "cosine" else scale**8
    torch.testing.assert_close(
        similarities / factor, nearest_neighbours(x * 1.0, 3, distance=distance)[1].double()
    )


def test_euclidean_survives_an_offset_far_from_the_origin():
    rng = np.random.default_rng(0)
    x, y = rng.integers(-9, 10, size=(50, 3)), rng.integers(0, 5, 50)
    wanted = brute_force.retrieval(x, y, recall_at=KS, distance="euclidean")
    assert_same(retrieval_metrics((x + 2**22).astype(np.float32), y, distance="euclidean"), wanted)
    assert_same(retrieval_metrics((x - 2.0**45), y, distance="euclidean"), wanted)


@pytest.mark.parametrize("scale", [2.0**-990, 2.0**-140, 2.0**130, 2.0**1020])
def test_euclidean_distances_of_any_size_are_scaled_exactly(scale):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, size=(50, 3)), rng.integers(0, 5, 50)
    items, distances = nearest_neighbours(x, 4, distance="euclidean")
    scaled, found = nearest_neighbours(x * scale, 4, distance="euclidean")
    assert torch.equal(scaled, items)
    assert torch.equal(found, distances * scale)
    assert retrieval_metrics(x * scale, y, distance="euclidean") == retrieval_metrics(
        x, y, distance="euclidean"
    )


def test_training_precision_does_not_reach_the_metrics():
    rng = np.random.default_rng(0)
    x, y = (
        torch.tensor(rng.normal(size=(200, 64)), dtype=torch.float32, requires_grad=True),
        np.arange(200) // 4,
    )
    wanted = nearest_neighbours(x, 5)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = nearest_neighbours(x, 5)
            retrieval_metrics(x, y)
        with _similarity._full_precision(x.device):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])
    assert not got[1].requires_grad


@pytest.mark.skipif(
    not hasattr(torch.backends, "fp32_precision"), reason="this PyTorch has no precision of each backend"
)
@pytest.mark.parametrize(
    ("backend", "precision"), [(torch.backends.cuda, "tf32"), (torch.backends.mkldnn, "bf16")]
)
def test_nor_does_the_precision_of_one_backend(backend, precision):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 64)).astype(np.float32), np.arange(200) // 4
    wanted = nearest_neighbours(x, 5), retrieval_metrics(x, y)
    before = backend.matmul.fp32_precision
    backend.matmul.fp32_precision = precision
    try:
        got = nearest_neighbours(x, 5), retrieval_metrics(x, y)
        assert backend.matmul.fp32_precision == precision
    finally:
        backend.matmul.fp32_precision = before
    assert torch.equal(got[0][0], wanted[0][0])
    assert torch.equal(got[0][1], wanted[0][1])
    assert got[1] == wanted[1]


def test_any_layout_of_array_is_read():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 6)).astype(np.float32), rng.integers(0, 4, 30)
    wanted = retrieval_metrics(x, y)
    frozen = x.copy()
    frozen.setflags(write=False)
    for same in (
        frozen,
        np.asfortranarray(x),
        x.astype(">f4"),
        x[::-1].copy()[::-1],
        torch.tensor(x.T.copy()).T,
    ):
        assert retrieval_metrics(same, y) == wanted
    assert retrieval_metrics(x, y * 1000 - 7) == wanted


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(3, 30), distance=st.sampled_from(DISTANCES))
def test_bounds_monotone_recall_and_permutation_invariance(seed, n, distance):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 4)), rng.integers(0, max(1, n // 3), n)
    y[:2] = y[0]
    measured = retrieval_metrics(x, y, recall_at=range(1, n), distance=distance)
    assert all(0 <= value <= 1 for value in measured.values())
    recalls = list(measured.values())[:-2]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0
    assert measured["map_at_r"] <= measured["r_precision"] + 1e-12
    shuffle = rng.permutation(n)
    assert_same(retrieval_metrics(x[shuffle], y[shuffle], recall_at=range(1, n), distance=distance), measured)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("distance", DISTANCES)
def test_agrees_with_pytorch_metric_learning(distance):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = {
        "precision_at_1": "recall_at_1",
        "r_precision": "r_precision",
        "mean_average_precision_at_r": "map_at_r",
    }
    torch.manual_seed(0)
    x, y = torch.randn(400, 16), torch.arange(400) % 30
    calculator = AccuracyCalculator(include=tuple(names), k="max_bin_count", device=torch.device("cpu"))
    points = torch.nn.functional.normalize(x) if distance == "cosine" else x
    theirs = calculator.get_accuracy(points, y)
    ours = retrieval_metrics(x, y, distance=distance)
    for their_name, our_name in names.items():
        assert ours[our_name] == pytest.approx(theirs[their_name], abs=1e-9)


X = np.arange(1, 13, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 0, 1, 1, 2, 2])


def with_value(row, value):
    x = X.copy()
    x[row, 1] = value
    return x


@pytest.mark.parametrize(
    ("arguments", "subject", "given"),
    [
        ({"embeddings": with_value(3, np.nan)}, "embeddings", 3),
        ({"embeddings": with_value(4, -np.inf)}, "embeddings", 4),
        ({"gallery": with_value(5, np.inf), "gallery_labels": Y}, "gallery", 5),
        ({"embeddings": X[:0], "labels": Y[:0]}, "embeddings", [0, 2]),
        ({"embeddings": X[:, :0]}, "embeddings", [6, 0]),
        ({"embeddings": X[0]}, "embeddings", [2]),
        ({"embeddings": X.astype(int)}, "embeddings", torch.int64),
        ({"embeddings": X.astype(object)}, "embeddings", np.dtype(object)),
        ({"labels": Y[:5]}, "labels", 5),
        ({"labels": Y[:, None]}, "labels", [6, 1]),
        ({"labels": Y * 1.0}, "labels", torch.float64),
        ({"labels": Y > 1}, "labels", torch.bool),
        ({"gallery": X, "gallery_labels": Y[:4]}, "gallery_labels", 4),
        ({"gallery": X[:, :1], "gallery_labels": Y}, "gallery", 1),
        ({"labels": np.arange(6)}, "labels", None),
        ({"gallery": X, "gallery_labels": Y + 3}, "labels", None),
    ],
)
def test_data_that_cannot_be_used(arguments, subject, given):
    with pytest.raises(DataError) as error:
        retrieval_metrics(**({"embeddings": X, "labels": Y} | arguments))
    assert (error.value.subject, error.value.given) == (subject, given)


@pytest.mark.parametrize(
    ("arguments", "subject", "given"),
    [
        ({"gallery": X}, "gallery", None),
        ({"gallery_labels": Y}, "gallery", None),
        ({"recall_at": (1, 0)}, "recall_at", 0),
        ({"distance": "manhattan"}, "distance", "manhattan"),
    ],
)
def test_settings_that_cannot_be_used(arguments, subject, given):
    with pytest.raises(SettingsError) as error:
        retrieval_metrics(X, Y, **arguments)
    assert (error.value.subject, error.value.given) == (subject, given)


@pytest.mark.parametrize(
    ("k", "gallery", "most"), [(0, None, 5), (6, None, 5), (7, X, 6), (-1, X, 6)], ids=str
)
def test_refused_numbers_of_neighbours(k, gallery, most):
    with pytest.raises(SettingsError) as error:
        nearest_neighbours(X, k, gallery=gallery)
    assert (error.value.given, error.value.wanted) == (k, most)


@pytest.mark.parametrize("row", range(6))
def test_the_row_is_named_in_whatever_part_it_is(monkeypatch, row):
    monkeypatch.setattr(_inputs, "CHUNK_NUMBERS", 4)
    with pytest.raises(DataError) as error:
        retrieval_metrics(with_value(row, np.nan), Y)
    assert error.value.given == row
