"""The loss as one graph of torch.compile, and as few calls of torch that wait for nothing."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from calls import Calls
from hist_gradients import DISTANCES, gradients
from torch._subclasses.fake_tensor import FakeTensorMode

from tuplet.config import HypergraphConfig
from tuplet.errors import DataError
from tuplet.losses import hist
from tuplet.losses.hist import HISTLoss
from tuplet.losses.many_classes import memory

CASES = [("mahalanobis", layers) for layers in (1, 2, 5)] + [(each, 2) for each in DISTANCES[1:]]
N, C, D = 8, 12, 5


def make(num_classes=C, width=D, hidden=4, **settings):
    torch.manual_seed(0)
    loss = HISTLoss(num_classes, width, hidden_dim=hidden, **settings)
    with torch.no_grad():
        loss.log_variances.uniform_(-3, 9)
    return loss


@pytest.mark.parametrize(("distance", "num_layers"), CASES)
def test_the_plain_loss_is_one_graph(distance, num_layers):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    loss = make(distance=distance, num_layers=num_layers, implementation="plain")
    other = copy.deepcopy(loss)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager", dynamic=False)
    # All of another class, and then with repeated ones: the shapes are the same, and so is the graph.
    for labels in (torch.arange(N), torch.arange(N) // 3):
        embeddings = torch.randn(N, D)
        wanted = gradients(loss, loss, embeddings, labels)
        got = gradients(compiled, other, embeddings, labels)
        assert len(got) == len(wanted) > 3
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_variants_are_one_graph_too():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    hypergraph = HypergraphConfig(features="unit", output_gain=2.0, self_loops=0.2)
    loss = make(implementation="plain", own_share=0.5, label_smoothing=0.1, hypergraph=hypergraph)
    other = copy.deepcopy(loss)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager", dynamic=False)
    embeddings, labels = torch.randn(N, D), torch.arange(N) // 2
    wanted = gradients(loss, loss, embeddings, labels)
    got = gradients(compiled, other, embeddings, labels)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


# Where one graph ends, torch itself looks for .grad of what the next begins with.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_graphs_of_many_classes_break_at_the_class_head_alone():
    torch._dynamo.reset()
    loss = make(implementation="chunked")
    breaks = torch._dynamo.explain(loss)(torch.randn(N, D), torch.arange(N)).break_reasons
    assert len(breaks) >= 2  # the head is called twice
    assert all("torch.compiler.disable" in each.reason for each in breaks)
    assert all("class_head" in str(each.user_stack[-1]) for each in breaks)


@pytest.mark.parametrize("fault", ["label", "embedding"])
def test_compiled_code_notes_faults_and_its_loss_is_not_finite(fault):
    torch._dynamo.reset()
    loss = make(implementation="plain")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    embeddings, labels = torch.randn(N, D), torch.arange(N)
    assert compiled(embeddings, labels).isfinite()
    loss.require_no_faults()
    if fault == "label":
        labels[3] = C
    else:
        embeddings[6, 1] = math.inf
    assert not compiled(embeddings, labels).isfinite()
    compiled(torch.randn(N, D), torch.arange(N))  # the first fault stays
    with pytest.raises(DataError) as caught:
        loss.require_no_faults()
    wanted = ("labels", (0, C)) if fault == "label" else ("embeddings", 6)
    assert (caught.value.subject, caught.value.given) == wanted
    assert "call 2" in str(caught.value)
    loss.require_no_faults()


SETTINGS = [
    *({"implementation": "plain", "distance": distance} for distance in DISTANCES),
    *({"implementation": "chunked", "distance": distance} for distance in DISTANCES),
    {"class_fraction": 0.5},
    {"class_fraction": 0.5, "sparse_gradients": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_beside_a_cpu_nothing_waits_for_a_value(monkeypatch, settings):
    # A tensor of "meta" has no values, so that whatever needs one fails; and so do fake tensors of a GPU.
    monkeypatch.setattr(memory, "KEPT_BYTES", 0)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 30)
    with torch.device("meta"):
        loss = make(**settings)
        embeddings, labels = torch.randn(N, D, requires_grad=True), torch.zeros(N, dtype=torch.int64)
    with Calls() as calls:
        loss(embeddings, labels).backward()
    assert calls.reads() == {}
    assert embeddings.grad.shape == embeddings.shape
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        on_gpu = make(**settings)
        on_gpu.raises_late = False  # there is no GPU here that could be asked how far it is
        value = on_gpu(torch.randn(N, D), torch.zeros(N, dtype=torch.int64))
        assert value.device.type == "cuda"


def calls_of_a_step(loss):
    num_classes, width = loss.means.shape
    embeddings, labels = torch.randn(32, width, requires_grad=True), torch.arange(32) // 2 % num_classes
    with Calls() as calls:
        loss(embeddings, labels).backward()
    return calls.counts.total()


def test_calls_of_a_step(monkeypatch):
    few = calls_of_a_step(make(98, implementation="plain"))
    assert few <= 230
    monkeypatch.setattr(memory, "KEPT_BYTES", 0)
    monkeypatch.setattr(memory, "KEPT_SHARE", 0.0)
    monkeypatch.setattr(memory, "CHUNK_BYTES", 1)  # chunks of 16 classes
    for keep in (0, 1 << 30):
        monkeypatch.setattr(memory, "KEPT_BYTES", keep)
        per_chunk = (calls_of_a_step(make(16 * 40)) - calls_of_a_step(make(16 * 20))) / 20
        # Each chunk is visited by both halves of the loss, forward and backward.
        assert per_chunk / 2 <= 40


def test_labels_may_repeat_in_any_order():
    loss = make(implementation="chunked").double()
    plain = copy.deepcopy(loss)
    plain.implementation = "plain"
    embeddings, labels = torch.randn(N, D).double(), torch.tensor([11, 0, 11, 3, 3, 11, 0, 5])
    for a, b in zip(
        gradients(loss, loss, embeddings, labels), gradients(plain, plain, embeddings, labels), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert hist.FEW_PARAMETERS == 0  # conftest: by itself the loss is chunked here
