"""The loss that goes through the classes chunk by chunk against the plain one, and against differences."""

from __future__ import annotations

import copy
import math
import shutil
import warnings
from functools import partial

import pytest
import torch
from hist_gradients import DISTANCES
from torch.autograd import gradcheck

from tuplet.losses.hist import HISTLoss, unit_rows
from tuplet.losses.many_classes import memory
from tuplet.losses.many_classes.head import class_head
from tuplet.losses.many_classes.scores import Inputs, LinearScores, MahalanobisScores, PlainScores

TERMS = ("distribution", "cross_entropy", "total")
N, C = 12, 50


def make(*, n=N, num_classes=C, width=6, hidden=5, dtype=torch.float64, **settings):
    """A loss in chunks, with every hard place that a class can have; embeddings; labels of few classes."""
    torch.manual_seed(0)
    loss = HISTLoss(num_classes, width, hidden_dim=hidden, **{"lambda_s": 0.7, **settings}).to(dtype)
    with torch.no_grad():
        # From below the clip of [0, 6] to above it.
        loss.log_variances.uniform_(-3, 9)
        loss.means[3] = 0
    embeddings = torch.randn(n, width, dtype=dtype)
    embeddings[1:2] = 0
    return loss, embeddings, torch.tensor([3, 4, 9, num_classes - 1])[torch.arange(n) % 4]


def twin(loss, implementation="plain"):
    other = copy.deepcopy(loss)
    other.implementation = implementation
    return other


def set_chunks(monkeypatch, classes, *, row_bytes, keep=True):
    """So many classes at a time, at least 16; `keep` says whether their scores wait for the backward."""
    monkeypatch.setattr(memory, "CHUNK_BYTES", classes * row_bytes)
    if not keep:
        monkeypatch.setattr(memory, "KEPT_BYTES", 0)
        monkeypatch.setattr(memory, "KEPT_SHARE", 0.0)


def gradients(loss, embeddings, labels, *, term="total", autocast=False):
    """A term, and its gradients by embeddings and parameters."""
    embeddings = embeddings.clone().requires_grad_()
    loss.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = getattr(loss.terms(embeddings, labels), term)
    value.backward()
    named = {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}
    return value.detach(), {"embeddings": embeddings.grad, **named}


def apart(got, wanted):
    """Norm of the difference, relative; what should be zero must be."""
    difference = (got.double() - wanted.double()).norm().item()
    return difference / wanted.double().norm().item() if difference > 0 else 0.0


def assert_same(got, wanted, tolerance=1e-10):
    assert apart(got[0], wanted[0]) < tolerance
    assert got[1].keys() == wanted[1].keys()
    too_far = {name: apart(got[1][name], wanted[1][name]) for name in wanted[1]}
    assert {name: error for name, error in too_far.items() if not error < tolerance} == {}


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "recomputed"])
@pytest.mark.parametrize("classes", [16, 23, C])
@pytest.mark.parametrize("num_layers", [1, 2, 3, 5])
@pytest.mark.parametrize("distance", DISTANCES)
def test_chunked_is_plain(monkeypatch, distance, num_layers, classes, keep):
    loss, embeddings, labels = make(distance=distance, num_layers=num_layers)
    set_chunks(monkeypatch, classes, row_bytes=8 * N, keep=keep)
    assert memory.classes_in_chunk(N, loss.means) == classes
    assert memory.may_keep(N * C, [loss.means]) == keep
    plain = twin(loss)
    for term in TERMS:
        wanted = gradients(plain, embeddings, labels, term=term)
        assert_same(gradients(loss, embeddings, labels, term=term), wanted)
        # All of one term's parameters, or the comparison would be of nothing.
        assert "means" in wanted[1]
        assert all(gradient.norm() > 0 for gradient in wanted[1].values())


@pytest.mark.parametrize("settings", [{"lambda_s": 0.0}, {"tau": 1e3}, {"n": 1, "num_layers": 1}], ids=str)
def test_chunked_is_plain_in_corners(monkeypatch, settings):
    loss, embeddings, labels = make(**settings)
    set_chunks(monkeypatch, 16, row_bytes=1, keep=False)
    assert_same(gradients(loss, embeddings, labels), gradients(twin(loss), embeddings, labels))
    # Columns that lie apart in memory.
    scattered = embeddings.T.contiguous().T
    assert_same(gradients(loss, scattered, labels), gradients(twin(loss), embeddings, labels))


@pytest.mark.parametrize("place", [0.0, 6.0, math.nextafter(6.0, 7.0)], ids=["0", "6", "next above 6"])
def test_log_variances_on_the_bounds_of_their_clip_have_the_gradient_of_plain(place):
    loss, embeddings, labels = make()
    with torch.no_grad():
        loss.log_variances[:, :2] = place
    assert_same(gradients(loss, embeddings, labels), gradients(twin(loss), embeddings, labels))


@pytest.mark.parametrize("implementation", ["chunked", "plain"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("extent", [0, 12])
def test_float32(monkeypatch, distance, implementation, extent):
    n, num_classes, width = 32, 500, 64
    sizes = {"n": n, "num_classes": num_classes, "width": width, "hidden": 32}
    loss = make(**sizes, dtype=torch.float32, distance=distance)[0]
    set_chunks(monkeypatch, 100, row_bytes=4 * width, keep=False)
    scales = torch.logspace(-extent, extent, num_classes)[:, None]
    embeddings, labels = torch.randn(n, width), torch.randperm(num_classes)[:8].repeat(4)
    with torch.no_grad():
        loss.means.normal_().mul_(scales)
    value, got = gradients(twin(loss, implementation), embeddings, labels)
    wide_value, wanted = gradients(twin(loss).double(), embeddings.double(), labels)
    assert apart(value, wide_value) < 1e-6
    # The gradient by a mean shrinks as the mean grows: compared as if each had the length it is scaled from.
    got["means"], wanted["means"] = (named["means"].double() * scales for named in (got, wanted))
    everything = torch.cat([gradient.flatten() for gradient in wanted.values()]).norm().item()
    for name, gradient in wanted.items():
        error = (got[name].double() - gradient).norm().item()
        # What lies before a BatchNorm moves all samples almost alike, as the rows of G are almost alike, and
        # BatchNorm takes that away again: a true gradient near zero, of which float32 has no fifth digit.
        # Over 40 seeds its error is 1e-5 of everything on average and 2.3e-5 at most, plain or chunked.
        hidden = name.startswith("hgnn") and not name.startswith("hgnn.layers.1")
        assert error < (4e-5 * everything if hidden else 1e-5 * gradient.norm().item()), name


def scored(name, num_classes=20):
    """Scores, their definition, and samples and class parameters for them, all to derive by."""
    torch.manual_seed(0)

    def leaf(*shape, low=-1.0, high=1.0):
        return torch.empty(shape, dtype=torch.float64).uniform_(low, high).requires_grad_()

    if name == "linear":
        kind = LinearScores(torch.float64)
        return kind, linear, (leaf(4, 3), leaf(4)), (leaf(num_classes, 3), leaf(num_classes))
    if name == "plain":
        return PlainScores(sine), sine, (leaf(4, 3),), (leaf(num_classes, 3),)
    distributions = leaf(num_classes, 3), leaf(num_classes, 3, low=0.5, high=2.0)
    return MahalanobisScores(TAU), mahalanobis, (leaf(4, 3), leaf(4, 3)), distributions


TAU = 2.0
SUMMED = torch.tensor([0, 1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19])
LABELS = torch.tensor([5, 19, 2, 5, 5, 19])
"""In any order, and more than once."""


def linear(features, shares, weights, biases):
    return features @ weights.T + torch.outer(shares, biases)


def sine(x, rows):
    return x @ rows.T.sin()


def mahalanobis(x, squares, means, log_variances):
    mu, precision = unit_rows(means), torch.exp(-log_variances)
    return -TAU * ((squares[:, None] - 2 * x[:, None] * mu + mu.square()) * precision).sum(dim=2)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "recomputed"])
@pytest.mark.parametrize("summed", [None, SUMMED], ids=["all", "summed"])
@pytest.mark.parametrize("name", ["mahalanobis", "linear", "plain"])
def test_differences(monkeypatch, name, summed, keep):
    set_chunks(monkeypatch, 16, row_bytes=1, keep=keep)
    kind, _, samples, parameters = scored(name)

    def head(*tensors):
        inputs = Inputs(tensors[: len(samples)], tensors[len(samples) :])
        return class_head(kind, inputs, LABELS, summed=summed)

    assert gradcheck(head, (*samples, *parameters))


@pytest.mark.parametrize("summed", [None, SUMMED], ids=["all", "summed"])
@pytest.mark.parametrize("name", ["mahalanobis", "linear", "plain"])
@pytest.mark.parametrize("which", ["columns", "log_partition"])
def test_each_output_passes_its_own_gradient_on(monkeypatch, name, summed, which):
    set_chunks(monkeypatch, 16, row_bytes=1)
    kind, definition, samples, parameters = scored(name)
    table = definition(*samples, *parameters)
    wanted = {
        "columns": table[:, LABELS],
        "log_partition": (table if summed is None else table[:, summed]).logsumexp(dim=1),
    }
    columns, log_partition = class_head(kind, Inputs(samples, parameters), LABELS, summed=summed)
    got = {"columns": columns, "log_partition": log_partition}
    weights = torch.randn_like(wanted[which])
    for output in wanted:
        torch.testing.assert_close(got[output], wanted[output], rtol=1e-12, atol=1e-12)
    derive = partial(torch.autograd.grad, inputs=(*samples, *parameters), grad_outputs=weights)
    for a, b in zip(derive(got[which]), derive(wanted[which]), strict=True):
        assert b.norm() > 0
        assert apart(a, b) < 1e-12


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "recomputed"])
def test_bfloat16_autocast_is_near_plain(monkeypatch, distance, keep):
    loss, embeddings, labels = make(distance=distance, dtype=torch.float32)
    set_chunks(monkeypatch, 16, row_bytes=1, keep=keep)
    value, got = gradients(loss, embeddings, labels, autocast=True)
    plain_value, wanted = gradients(twin(loss), embeddings, labels, autocast=True)
    assert value.dtype == torch.float32
    # bfloat16 has 8 bits, and the two round G (X Theta + 1 b^T) in another order. The distances are exact.
    assert apart(value, plain_value) < 2**-8
    for name in ("embeddings", "means", "hgnn.layers.1.weight", "hgnn.layers.1.bias", "hgnn.norms.0.weight"):
        assert got[name].dtype == torch.float32
        assert apart(got[name], wanted[name]) < 2**-4, name


@pytest.mark.parametrize("distance", DISTANCES)
def test_bfloat16_parameters(monkeypatch, distance):
    loss, embeddings, labels = make(distance=distance, dtype=torch.bfloat16)
    set_chunks(monkeypatch, 16, row_bytes=1)
    value, got = gradients(loss, embeddings, labels)
    wanted, exact = gradients(twin(loss).double(), embeddings.double(), labels)
    assert value.dtype == torch.float32
    assert apart(value, wanted) < 2**-6
    assert all(gradient.dtype == torch.bfloat16 for gradient in got.values())
    assert all(gradient.isfinite().all() for gradient in got.values())
    assert apart(got["means"], exact["means"]) < 2**-4


def test_many_chunks_add_up_to_the_gradient_of_bfloat16_features(monkeypatch):
    set_chunks(monkeypatch, 16, row_bytes=1)
    torch.manual_seed(0)
    features, shares = torch.randn(8, 16).bfloat16().requires_grad_(), torch.ones(8)
    # Weights that have much in common: each of the 2000 chunks adds about 1/2000 to a sum near one.
    weights, biases = 1 + 0.1 * torch.randn(32000, 16), torch.zeros(32000)
    kind = LinearScores(torch.bfloat16)
    log_partition = class_head(kind, Inputs((features, shares), (weights, biases)), torch.arange(2))[1]
    (got,) = torch.autograd.grad(log_partition.sum(), features)
    wanted = torch.softmax(features.detach().double() @ weights.double().T, dim=1) @ weights.double()
    assert apart(got, wanted) < 2**-6


def test_float64_stays_float64_inside_autocast():
    loss, embeddings, labels = make()
    wanted = gradients(twin(loss), embeddings, labels, autocast=True)
    assert_same(gradients(loss, embeddings, labels, autocast=True), wanted)


class Step(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.network, self.loss = torch.nn.Linear(6, 6).double(), loss

    def forward(self, inputs, labels):
        return self.loss(self.network(inputs), labels)


def test_a_compiled_training_step_gives_the_same_without_a_warning(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(memory, "REUSED_BYTES", 0)
    loss, inputs, labels = make()
    step = Step(loss)
    wanted = step(inputs, labels)
    by_means = torch.autograd.grad(wanted, loss.means)[0].clone()
    compiled = torch.compile(step, backend="eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            loss.zero_grad()
            got = compiled(inputs, labels)
            got.backward()
            assert apart(got, wanted) < 1e-12
            assert apart(loss.means.grad, by_means) < 1e-12
    # Where one graph ends, torch itself looks for .grad of what the next begins with.
    messages = [str(each.message) for each in caught]
    assert all("The .grad attribute of a Tensor that is not a leaf" in text for text in messages)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no g++ and no clang++ here")
def test_compiled_is_chunked(monkeypatch):
    torch._dynamo.reset()
    loss, embeddings, labels = make()
    set_chunks(monkeypatch, 25, row_bytes=8 * N, keep=False)
    assert_same(gradients(twin(loss, "compiled"), embeddings, labels), gradients(loss, embeddings, labels))


@pytest.mark.parametrize("distance", ["mahalanobis", "manhattan"])
def test_second_derivatives_are_refused(distance):
    loss, embeddings, labels = make(distance=distance)
    (first,) = torch.autograd.grad(loss(embeddings, labels), loss.means, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


def test_few_classes_are_plain_by_default_and_many_are_not(monkeypatch):
    monkeypatch.setattr("tuplet.losses.hist.FEW_PARAMETERS", 30)
    embeddings, labels = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 1, 2, 2])
    for num_classes, wanted in ((6, "plain"), (7, "chunked")):
        loss = HISTLoss(num_classes, 5, hidden_dim=3)
        nodes, names = [loss.terms(embeddings, labels).distribution.grad_fn], set()
        while nodes:
            node = nodes.pop()
            names.add(type(node).__name__)
            nodes += [parent for parent, _ in node.next_functions if parent is not None]
        assert ("_ClassHeadBackward" in names) == (wanted == "chunked")
    assert HISTLoss(6, 5, class_fraction=0.9)._is_plain() is False
    assert HISTLoss(6, 5, class_fraction=0.9).eval()._is_plain() is True
