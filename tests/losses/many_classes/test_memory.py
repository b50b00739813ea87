"""What the loss in chunks holds at a time, and that memory used again is never somebody else's."""

from __future__ import annotations

import copy
import io
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hist_gradients import DISTANCES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.losses.many_classes.test_head import C, N, apart, gradients, make, set_chunks, twin
from tuplet.losses.hist import HISTLoss
from tuplet.losses.many_classes import memory
from tuplet.losses.many_classes.memory import ReusedMemory


class Tensors(TorchDispatchMode):
    """Every tensor that an operation gives, held so that no address serves twice."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.made += [(func, leaf) for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        return out


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


def largest_made(loss, embeddings, labels):
    """Elements of the largest tensor of a step, but for parameters and their gradients; what made it."""
    parameters = list(loss.parameters())
    with Tensors() as tensors:
        gradients = torch.autograd.grad(loss(embeddings, labels), parameters, allow_unused=True)
    known = {storage(tensor) for tensor in (*parameters, *gradients) if tensor is not None}
    return max((made.numel(), str(func)) for func, made in tensors.made if storage(made) not in known)


def many_classes(distance="mahalanobis"):
    torch.manual_seed(0)
    n, num_classes, width = 8, 3000, 64
    loss = HISTLoss(num_classes, width, hidden_dim=32, distance=distance)
    return loss, torch.randn(n, width, requires_grad=True), torch.randint(0, num_classes, (n,))


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_step_makes_nothing_wider_than_a_chunk(monkeypatch, distance):
    loss, embeddings, labels = many_classes(distance)
    (num_classes, width), n, chunk = loss.means.shape, len(labels), 50
    set_chunks(monkeypatch, chunk, row_bytes=4 * width, keep=False)
    # Five rows of scratch a class are the widest; N x c, N x h, h x D, E x D, and the C biases are all less.
    assert 5 * chunk * width < n * num_classes
    size, operation = largest_made(loss, embeddings, labels)
    assert size <= 5 * chunk * width, operation
    assert largest_made(twin(loss), embeddings, labels)[0] >= num_classes * width


def test_scores_that_wait_for_the_backward_are_the_most_that_is_held(monkeypatch):
    loss, embeddings, labels = many_classes()
    set_chunks(monkeypatch, 50, row_bytes=4 * loss.means.shape[1])
    assert largest_made(loss, embeddings, labels)[0] == len(labels) * len(loss.means)


def test_memory_is_handed_out_again_once_freed(monkeypatch):
    monkeypatch.setattr(memory, "REUSED_BYTES", 0)
    store, like = ReusedMemory(), torch.empty(0, 8)
    first = store.empty("gradient", 10, like)
    assert (first.shape, first.dtype, first.is_contiguous()) == ((10, 8), torch.float32, True)
    place = first.data_ptr()
    assert place % 64 == 0
    del first
    again = store.empty("gradient", 10, like)
    assert again.data_ptr() == place
    del again
    # As many bytes, whatever they hold.
    assert store.empty("gradient", 5, like, torch.float64).data_ptr() == place


def as_sparse(rows):
    return torch.sparse_coo_tensor(torch.arange(10)[None], rows, (20, 8), check_invariants=False)


@pytest.mark.parametrize(
    "hold",
    [
        lambda rows: rows,
        lambda rows: rows[3],
        lambda rows: rows.detach().view(-1),
        lambda rows: rows.numpy(),
        as_sparse,
    ],
    ids=["tensor", "row", "view", "numpy", "sparse"],
)
def test_memory_that_somebody_holds_is_not_handed_out(monkeypatch, hold):
    monkeypatch.setattr(memory, "REUSED_BYTES", 0)
    store, like = ReusedMemory(), torch.empty(0, 8)
    held = [hold(store.empty("gradient", 10, like).fill_(value)) for value in range(4)]
    sums = [float(part.sum()) for part in held]
    assert sums == [value * sums[1] for value in range(4)]
    assert sums[1] > 0


def test_purposes_sizes_and_threads_have_memory_of_their_own(monkeypatch):
    monkeypatch.setattr(memory, "REUSED_BYTES", 0)
    store, like, places = ReusedMemory(), torch.empty(0, 8), []
    wanted = [("a", 10), ("b", 10), ("b", 11)]
    for purpose, rows in wanted:
        # Freed at once, and yet not given to the next.
        places.append(store.empty(purpose, rows, like).data_ptr())
    thread = threading.Thread(target=lambda: places.append(store.empty("a", 10, like).data_ptr()))
    thread.start()
    thread.join()
    # That of the first is still there to be had.
    assert places[0] not in places[1:]
    assert store.empty("a", 10, like).data_ptr() == places[0]


def test_small_memory_is_not_kept():
    store = ReusedMemory()
    first = store.empty("gradient", 10, torch.empty(0, 8))
    large = store.empty("gradient", memory.REUSED_BYTES // 32, torch.empty(0, 8))
    assert first.untyped_storage().resizable()
    # Of numpy's, which torch cannot make larger.
    assert not large.untyped_storage().resizable()


@pytest.fixture
def reusing(monkeypatch):
    """A loss whose every gradient lies in memory to be used again, and a batch; in float64."""
    monkeypatch.setattr(memory, "REUSED_BYTES", 0)
    set_chunks(monkeypatch, 16, row_bytes=8 * N)
    return make()


def other_batch(embeddings, labels):
    return embeddings.flip(0) + 0.5, labels.roll(1)


def test_the_second_step_has_the_gradients_of_the_first_in_the_same_place(reusing):
    loss, embeddings, labels = reusing
    parameters, places = (loss.means, loss.log_variances, *loss.hgnn.output_parameters()), []
    for _ in range(3):
        loss.zero_grad(set_to_none=True)
        loss(embeddings, labels).backward()
        places.append([parameter.grad.data_ptr() for parameter in parameters])
        # The memory that was handed out, which torch cannot make larger, and no copy of it.
        assert not any(parameter.grad.untyped_storage().resizable() for parameter in parameters)
    assert places[0] == places[1] == places[2]


def test_a_gradient_that_is_kept_keeps_its_values(reusing):
    loss, embeddings, labels = reusing
    kept = gradients(loss, embeddings, labels)[1]
    before = copy.deepcopy(kept)
    loss.zero_grad(set_to_none=True)
    for _ in range(2):
        assert gradients(loss, *other_batch(embeddings, labels))[1]["means"].ne(kept["means"]).any()
    assert all(torch.equal(kept[name], before[name]) for name in before)


def batches_of(loss, embeddings, labels):
    """Two batches, and the sum of the gradients by the parameters that plain has for them."""
    batches = [(embeddings, labels), other_batch(embeddings, labels)]
    each = [gradients(twin(loss), *batch)[1] for batch in batches]
    return batches, {name: each[0][name] + each[1][name] for name, _ in loss.named_parameters()}


def assert_gradients(loss, wanted):
    assert all(apart(parameter.grad, wanted[name]) < 1e-10 for name, parameter in loss.named_parameters())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_two_backwards_add_up(reusing, set_to_none):
    loss, embeddings, labels = reusing
    batches, wanted = batches_of(*reusing)
    loss(embeddings, labels).backward()
    loss.zero_grad(set_to_none)
    for batch in batches:
        loss(*batch).backward()
    assert_gradients(loss, wanted)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "recomputed"])
def test_two_forwards_before_the_backward_of_their_sum(monkeypatch, reusing, keep):
    set_chunks(monkeypatch, 16, row_bytes=8 * N, keep=keep)
    batches, wanted = batches_of(*reusing)
    loss = reusing[0]
    sum(loss(*batch) for batch in batches).backward()
    assert_gradients(loss, wanted)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "recomputed"])
def test_a_retained_graph_goes_backward_twice(monkeypatch, reusing, keep):
    set_chunks(monkeypatch, 16, row_bytes=8 * N, keep=keep)
    loss, embeddings, labels = reusing
    wanted = gradients(twin(loss), embeddings, labels)[1]
    value = loss(embeddings, labels)
    value.backward(retain_graph=True)
    value.backward()
    assert_gradients(loss, {name: 2 * gradient for name, gradient in wanted.items()})


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "recomputed"])
def test_the_second_step_asks_for_no_new_memory(monkeypatch, reusing, keep):
    set_chunks(monkeypatch, 16, row_bytes=8 * N, keep=keep)
    asked = []

    def empty(size, dtype):
        asked.append(size)
        return np.empty(size, dtype)

    monkeypatch.setattr(memory, "np", SimpleNamespace(uint8=np.uint8, empty=empty))
    loss, embeddings, labels = reusing
    counts = []
    for _ in range(3):
        loss.zero_grad(set_to_none=True)
        loss(embeddings, labels).backward()
        counts.append(len(asked))
    assert counts[0] > 0
    assert counts == [counts[0]] * 3


def torch_copy(loss):
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, torch_copy])
def test_a_copy_gives_the_same_and_leaves_the_gradients_of_the_first_alone(reusing, copied):
    loss, embeddings, labels = reusing
    first = gradients(loss, embeddings, labels)[1]
    before = copy.deepcopy(first)
    second = gradients(copied(loss), embeddings, labels)[1]
    assert all(torch.equal(first[name], before[name]) for name in before)
    for name in ("means", "log_variances", "hgnn.layers.1.weight"):
        assert torch.equal(second[name], before[name])
        assert second[name].data_ptr() != first[name].data_ptr()


def test_threads_do_not_share_gradients(reusing):
    loss, embeddings, labels = reusing
    wanted = gradients(twin(loss).eval(), embeddings, labels)[1]["means"]
    loss.eval()
    got = {}

    def work(index):
        for _ in range(5):
            got[index] = torch.autograd.grad(loss(embeddings, labels), loss.means)[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({gradient.data_ptr() for gradient in got.values()}) == 3
    assert all(apart(gradient, wanted) < 1e-10 for gradient in got.values())
    assert wanted.shape[0] == C
