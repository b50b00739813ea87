"""Steps that sum over a sample of the classes: which they draw, and that they are plain on those alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hist_gradients import DISTANCES

from tests.losses.many_classes.test_head import TERMS, apart, gradients, make, set_chunks, twin
from tuplet.errors import SettingsError
from tuplet.losses.hist import HISTLoss
from tuplet.losses.many_classes import memory
from tuplet.losses.many_classes.head import draw_classes
from tuplet.losses.many_classes.shards import ClassShard

C = 50
ALWAYS = torch.tensor([3, 4, 30, 49])


@pytest.mark.parametrize(
    ("fraction", "count"), [(1e-9, 4), (0.08, 4), (0.1, 5), (0.25, 12), (0.5, 25), (0.99, 50), (1.0, 50)]
)
def test_drawn_classes_are_ascending_unique_and_as_many_as_asked(fraction, count):
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = draw_classes(C, ALWAYS, fraction=fraction)
        assert drawn.dtype == torch.int64
        assert len(drawn) == count
        assert (drawn.diff() > 0).all()
        assert torch.isin(ALWAYS, drawn).all()
        assert ((drawn >= 0) & (drawn < C)).all()


def test_each_draw_is_another_and_follows_the_seed():
    def draws():
        torch.manual_seed(7)
        return [tuple(draw_classes(C, ALWAYS, fraction=0.3).tolist()) for _ in range(5)]

    first = draws()
    assert len(set(first)) == 5
    assert draws() == first


def test_every_other_class_is_drawn_as_often():
    torch.manual_seed(0)
    times, total = torch.zeros(C), 4000
    for _ in range(total):
        times[draw_classes(C, ALWAYS, fraction=0.28)] += 1
    others = torch.ones(C, dtype=torch.bool)
    others[ALWAYS] = False
    assert (times[ALWAYS] == total).all()
    # Of the other 46, ten each time; five standard deviations either way.
    chance = 10 / 46
    spread = 5 * math.sqrt(total * chance * (1 - chance))
    assert (times[others] - total * chance).abs().max() < spread


def sampled(monkeypatch, fraction=0.7, **settings):
    """A loss that sums over a share of its classes, in chunks of 16 and memory used again, and a batch."""
    set_chunks(monkeypatch, 16, row_bytes=1)
    monkeypatch.setattr(memory, "REUSED_BYTES", 0)
    return make(class_fraction=fraction, **settings)


def drawn_by(loss, labels, seed):
    """What the loss draws when it is called right after this seed is set; sets it."""
    torch.manual_seed(seed)
    drawn = draw_classes(len(loss.means), labels, fraction=loss.class_fraction)
    torch.manual_seed(seed)
    return drawn


def of_classes(loss, kept):
    """A plain loss of these classes alone."""
    smaller = twin(loss)
    output = smaller.hgnn.layers[-1]
    names = ((smaller, "means"), (smaller, "log_variances"), (output, "weight"), (output, "bias"))
    for holder, name in names:
        setattr(holder, name, torch.nn.Parameter(getattr(holder, name).detach()[kept]))
    return smaller


def of_all_classes(loss, kept, named):
    """Gradients of `of_classes` with a row for every class again."""
    sizes = {name: parameter.shape for name, parameter in loss.named_parameters()}
    return {
        name: gradient
        if gradient.shape == sizes.get(name, gradient.shape)
        else gradient.new_zeros(sizes[name]).index_copy_(0, kept, gradient)
        for name, gradient in named.items()
    }


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "recomputed"])
@pytest.mark.parametrize("fraction", [0.05, 0.7])
@pytest.mark.parametrize("distance", DISTANCES)
def test_it_is_plain_on_the_classes_drawn(monkeypatch, distance, fraction, keep):
    loss, embeddings, labels = sampled(monkeypatch, fraction, distance=distance)
    set_chunks(monkeypatch, 16, row_bytes=1, keep=keep)
    for seed, term in enumerate(TERMS):
        drawn = drawn_by(loss, labels, seed)
        value, got = gradients(loss, embeddings, labels, term=term)
        renumbered = torch.searchsorted(drawn, labels)
        wanted_value, wanted = gradients(of_classes(loss, drawn), embeddings, renumbered, term=term)
        assert len(drawn) < C
        assert apart(value, wanted_value) < 1e-10
        wanted = of_all_classes(loss, drawn, wanted)
        assert got.keys() == wanted.keys()
        assert all(apart(got[name], wanted[name]) < 1e-10 for name in wanted)


def test_a_training_step_draws_and_an_evaluation_sums_over_all(monkeypatch):
    loss, embeddings, labels = sampled(monkeypatch, 0.5)
    everything = twin(loss)
    drawing = {loss(embeddings, labels).item() for _ in range(4)}
    assert len(drawing) == 4
    # Classes are missing from the sums.
    assert max(drawing) < everything(embeddings, labels).item()
    loss.eval()
    everything = twin(loss)
    assert apart(loss(embeddings, labels), everything(embeddings, labels)) < 1e-12


def test_a_batch_of_more_classes_than_the_share_sums_over_these(monkeypatch):
    loss, _, _ = sampled(monkeypatch, 0.1)
    embeddings, labels = torch.randn(C, 6, dtype=torch.float64), torch.randperm(C)
    wanted = gradients(twin(loss), embeddings, labels)
    got = gradients(loss, embeddings, labels)
    assert apart(got[0], wanted[0]) < 1e-12
    assert apart(got[1]["means"], wanted[1]["means"]) < 1e-12


CLASS_PARAMETERS = {"means", "log_variances", "hgnn.layers.1.weight", "hgnn.layers.1.bias"}


def test_sparse_gradients_are_made_without_a_warning(monkeypatch):
    loss, embeddings, labels = sampled(monkeypatch, sparse_gradients=True)
    # Or torch would say only once what it has to say of sparse tensors, perhaps to another test.
    torch.set_warn_always(True)
    try:
        loss(embeddings, labels).backward()
    finally:
        torch.set_warn_always(False)
    assert loss.means.grad.is_sparse


def test_sparse_gradients_hold_the_rows_drawn_and_agree_with_dense_ones(monkeypatch):
    loss, embeddings, labels = sampled(monkeypatch)
    sparse = copy.deepcopy(loss)
    sparse.sparse_gradients = True
    drawn = drawn_by(loss, labels, 5)
    _, wanted = gradients(loss, embeddings, labels)
    drawn_by(loss, labels, 5)
    _, got = gradients(sparse, embeddings, labels)
    absent = torch.ones(C, dtype=torch.bool)
    absent[drawn] = False
    assert absent.any()
    assert {name for name, gradient in got.items() if gradient.is_sparse} == CLASS_PARAMETERS
    for name in CLASS_PARAMETERS:
        # Each row once, and none twice that torch would have to add up.
        assert torch.equal(got[name]._indices()[0], drawn)
        assert torch.equal(got[name].to_dense(), wanted[name])
        assert (wanted[name][absent] == 0).all()
        assert (wanted[name][drawn] != 0).any()
    rest = wanted.keys() - CLASS_PARAMETERS
    assert all(torch.equal(got[name], wanted[name]) for name in rest)


def test_sparse_gradients_of_two_batches_add_up(monkeypatch):
    loss, embeddings, labels = sampled(monkeypatch, sparse_gradients=True)
    dense = copy.deepcopy(loss)
    dense.sparse_gradients = False
    for each in (loss, dense):
        torch.manual_seed(1)
        each(embeddings, labels).backward()
        each(embeddings.flip(1), labels.flip(0)).backward()
    assert loss.means.grad.is_sparse
    assert apart(loss.means.grad.to_dense(), dense.means.grad) < 1e-14


def test_sparse_adam_moves_the_rows_drawn_and_no_others(monkeypatch):
    loss, embeddings, labels = sampled(monkeypatch, sparse_gradients=True)
    before = copy.deepcopy(loss)
    optimizer = torch.optim.SparseAdam([loss.means, loss.log_variances], lr=0.1)
    drawn = drawn_by(loss, labels, 2)
    loss(embeddings, labels).backward()
    optimizer.step()
    moved = (loss.means != before.means).any(dim=1)
    assert torch.equal(moved.nonzero()[:, 0], drawn)
    # Where a log-variance lies within its clip, that is.
    moved = (loss.log_variances != before.log_variances).any(dim=1)
    assert moved.any()
    assert torch.isin(moved.nonzero()[:, 0], drawn).all()


@pytest.mark.parametrize("sparse", [True, False])
def test_training_on_a_share_of_the_classes_separates_them(sparse):
    torch.manual_seed(0)
    loss = HISTLoss(40, 8, hidden_dim=8, class_fraction=0.3, sparse_gradients=sparse)
    points, labels = torch.randn(80, 8, requires_grad=True), torch.arange(40).repeat(2)
    of_classes = [p for name, p in loss.named_parameters() if name in CLASS_PARAMETERS]
    others = [p for name, p in loss.named_parameters() if name not in CLASS_PARAMETERS]
    by_class = torch.optim.SparseAdam if sparse else torch.optim.Adam
    optimizers = [by_class(of_classes, lr=0.05), torch.optim.Adam([points, *others], lr=0.05)]
    start = loss.eval()(points, labels).item()
    loss.train()
    for step in range(120):
        batch = torch.arange(step % 5, 80, 5)
        loss.zero_grad()
        points.grad = None
        loss(points[batch], labels[batch]).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert loss.eval()(points, labels).item() < 0.5 * start


def test_plain_sums_over_all_classes_only():
    for setting in ({"class_fraction": 0.5}, {"shard": ClassShard(10)}):
        with pytest.raises(SettingsError) as caught:
            HISTLoss(10, 4, implementation="plain", **setting)
        assert caught.value.subject == "implementation"
    assert HISTLoss(10, 4, class_fraction=1.0, implementation="plain").class_fraction == 1
