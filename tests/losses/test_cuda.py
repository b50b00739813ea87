"""The loss on a GPU against the CPU, without a host that waits, and in a CUDA graph."""

from __future__ import annotations

import copy
import math
import time

import pytest
import torch
from hist_gradients import DISTANCES, gradients

from tuplet.errors import DataError
from tuplet.losses.hist import HISTLoss

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]
N, C, D = 32, 300, 64


def make(**settings):
    torch.manual_seed(0)
    loss = HISTLoss(C, D, hidden_dim=32, **settings)
    return loss, torch.randn(N, D), torch.arange(N) // 2 * 7 % C


@pytest.fixture
def _no_wait():
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("implementation", ["plain", "chunked", "compiled"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_gpu_computes_what_a_cpu_does(distance, implementation):
    loss, embeddings, labels = make(distance=distance, implementation=implementation)
    on_gpu = copy.deepcopy(loss).cuda()
    loss.implementation = "plain"
    got = gradients(on_gpu, on_gpu, embeddings.cuda(), labels.cuda())
    wide = loss.double()
    wanted = gradients(wide, wide, embeddings.double(), labels)
    everything = torch.cat([gradient.flatten() for gradient in wanted[1:]]).norm()
    for a, b in zip(got, wanted, strict=True):
        assert (a.cpu().double() - b).norm() < 1e-4 * everything


@pytest.mark.parametrize("implementation", ["plain", "chunked"])
def test_bfloat16_is_near_float32(implementation):
    loss, embeddings, labels = make(implementation=implementation)
    loss = loss.cuda()
    wanted = loss(embeddings.cuda(), labels.cuda())
    with torch.autocast("cuda", torch.bfloat16):
        got = loss(embeddings.cuda(), labels.cuda())
    assert got.dtype == torch.float32
    assert (got - wanted).abs() < 2**-6 * wanted.abs()


@pytest.mark.usefixtures("_no_wait")
@pytest.mark.parametrize(
    "settings",
    [{"implementation": "plain"}, {"implementation": "chunked"}, {"class_fraction": 0.5}, {"own_share": 0.5}],
    ids=str,
)
def test_no_step_waits(settings):
    torch.cuda.set_sync_debug_mode("default")
    loss, embeddings, labels = make(**settings)
    loss, embeddings, labels = loss.cuda(), embeddings.cuda().requires_grad_(), labels.cuda()
    optimizer = torch.optim.Adam(loss.parameters(), fused=True, capturable=True)
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(3):
        loss(embeddings, labels).backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def call_often(loss, embeddings, labels):
    for _ in range(50):
        loss(embeddings, labels)
        time.sleep(0.01)


@pytest.mark.parametrize("fault", ["label", "embedding"])
def test_a_fault_is_raised_in_a_later_call(fault):
    loss, embeddings, labels = make()
    loss, embeddings, labels = loss.cuda(), embeddings.cuda(), labels.cuda()
    bad = embeddings.clone(), labels.clone()
    if fault == "label":
        bad[1][3] = C
    else:
        bad[0][5, 2] = math.nan
    assert loss(*bad).isnan()
    with pytest.raises(DataError) as caught:
        call_often(loss, embeddings, labels)
    assert caught.value.subject == ("labels" if fault == "label" else "embeddings")
    assert loss(embeddings, labels).isfinite()


def test_a_cuda_graph_replays_the_step():
    loss, embeddings, labels = make(implementation="plain")
    loss, embeddings, labels = loss.cuda(), embeddings.cuda().requires_grad_(), labels.cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            loss(embeddings, labels).backward()
            loss.zero_grad()
            embeddings.grad = None
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss(embeddings, labels)
        value.backward()
    other = torch.randn(N, D, device="cuda")
    with torch.no_grad():
        embeddings.copy_(other)
    graph.replay()
    torch.testing.assert_close(value, loss(other, labels), rtol=1e-5, atol=1e-5)
