"""What must hold of the HIST loss whatever its numbers are."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hist_gradients import DISTANCES
from hypothesis import given, settings
from hypothesis import strategies as st

from tuplet.losses.hist import HISTLoss, class_distances, incidence_matrix

N, C, D = 12, 9, 16


def make(seed=0, dtype=torch.float32, **arguments):
    torch.manual_seed(seed)
    loss = HISTLoss(C, D, hidden_dim=8, **arguments).to(dtype)
    embeddings = torch.randn(N, D, dtype=dtype, requires_grad=True)
    return loss, embeddings, torch.randint(0, C, (N,))


def gradients(loss, embeddings, labels):
    """The loss, and its gradient by the embeddings and by each parameter that it reaches."""
    embeddings = embeddings.detach().requires_grad_()
    loss.zero_grad()
    value = loss(embeddings, labels)
    value.backward()
    named = {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}
    return value.detach(), embeddings.grad, named


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_permuting_the_batch_permutes_rows_only(num_layers, distance):
    loss, embeddings, labels = make(dtype=torch.float64, num_layers=num_layers, distance=distance)
    value, by_embeddings, by_parameters = gradients(loss, embeddings, labels)
    order = torch.randperm(N)
    again, by_permuted, by_parameters_again = gradients(loss, embeddings[order], labels[order])
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(by_permuted, by_embeddings[order])
    torch.testing.assert_close(by_parameters_again, by_parameters)


@pytest.mark.parametrize("distance", DISTANCES)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), alpha=st.floats(0.01, 20), n=st.integers(1, 20))
def test_incidence_is_one_at_the_own_class_and_in_0_1_elsewhere(distance, seed, alpha, n):
    torch.manual_seed(seed)
    embeddings, labels = torch.randn(n, 5), torch.randint(0, 6, (n,))
    distances = class_distances(embeddings, torch.randn(6, 5), torch.randn(6, 5), distance=distance)
    assert (distances >= 0).all()
    incidence = incidence_matrix(distances, labels, alpha=alpha)
    own = labels[:, None] == labels
    assert incidence.shape == own.shape
    assert (incidence[own] == 1).all()
    assert ((incidence > 0) & (incidence <= 1)).all()
    torch.testing.assert_close(incidence[~own], torch.exp(-alpha * distances[:, labels])[~own])


@pytest.mark.parametrize("distance", DISTANCES)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), exponent=st.floats(-30, 30))
def test_the_length_of_embeddings_and_means_changes_no_distance(distance, seed, exponent):
    torch.manual_seed(seed)
    embeddings, means, log_variances = torch.randn(7, 5), torch.randn(4, 5), torch.randn(4, 5)
    scales = 10**exponent * (torch.rand(7, 1) + 0.1)
    torch.testing.assert_close(
        class_distances(embeddings * scales, means * scales[:4], log_variances, distance=distance),
        class_distances(embeddings, means, log_variances, distance=distance),
        rtol=1e-4,
        atol=1e-5,
    )


def test_mahalanobis_distances_lie_in_0_4():
    torch.manual_seed(0)
    embeddings, log_variances = torch.randn(200, 3), 10 * torch.randn(50, 3)
    distances = class_distances(embeddings, torch.cat([-embeddings[:25], embeddings[:25]]), log_variances)
    assert (distances >= 0).all()
    assert (distances <= 4 + 1e-5).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_hardest_sample_counts_most(distance):
    loss, embeddings, labels = make(tau=1000.0, lambda_s=0.0, distance=distance)
    with torch.no_grad():
        loss.log_variances.zero_()
        loss.means.copy_(torch.eye(C, D))
        embeddings.copy_(loss.means[labels] + 0.1 * torch.randn(N, D))
        # Nearest to a class that is not its own; its own probability underflows in float32.
        embeddings[0] = loss.means[(labels[0] + 1) % C] - 0.5 * loss.means[labels[0]]
    distances = class_distances(embeddings, loss.means, loss.log_variances, distance=distance)
    assert torch.softmax(-1000.0 * distances, dim=1)[0, labels[0]] == 0
    value, by_embeddings, _ = gradients(loss, embeddings, labels)
    without = loss(embeddings[1:], labels[1:])
    assert value.isfinite()
    assert value > 500 / N
    assert value > 2 * without
    assert by_embeddings.isfinite().all()
    assert by_embeddings[0].norm() == by_embeddings.norm(dim=1).max()
    only, by_only, _ = gradients(loss, embeddings[:1], labels[:1])
    assert only.isfinite()
    assert by_only.norm() > 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_reach_every_sample_and_flow_through_the_incidence(distance):
    loss, embeddings, labels = make(distance=distance)
    by_embeddings = gradients(loss, embeddings, labels)[1]
    assert by_embeddings.isfinite().all()
    assert (by_embeddings.norm(dim=1) > 0).all()
    loss.zero_grad()
    loss.terms(embeddings, labels).cross_entropy.backward()
    assert loss.means.grad.norm() > 0
    assert (loss.log_variances.grad is not None) == (distance == "mahalanobis")


@pytest.mark.parametrize("distance", DISTANCES)
def test_bfloat16_autocast_is_near_float32_with_distances_in_float32(distance):
    loss, embeddings, labels = make(distance=distance)
    # Numbers that bfloat16 holds, so that only the arithmetic differs.
    rounded = embeddings.detach().bfloat16()
    wanted = loss.terms(rounded.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaf = rounded.clone().requires_grad_()
        distances = class_distances(leaf, loss.means, loss.log_variances, distance=distance)
        got = loss.terms(leaf, labels)
        exact = class_distances(rounded.float(), loss.means, loss.log_variances, distance=distance)
    got.total.backward()
    assert distances.dtype == got.total.dtype == torch.float32
    torch.testing.assert_close(distances, exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.distribution, wanted.distribution, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.cross_entropy, wanted.cross_entropy, rtol=0.05, atol=0.05)
    assert leaf.grad.dtype == torch.bfloat16
    assert leaf.grad.isfinite().all()
    assert all(parameter.dtype == torch.float32 for parameter in loss.parameters())


@pytest.mark.parametrize("distance", DISTANCES)
def test_float64_agrees_with_float32(distance):
    loss, embeddings, labels = make(distance=distance)
    value, by_embeddings, _ = gradients(loss, embeddings, labels)
    wide = copy.deepcopy(loss).double()
    wide_value, by_wide, _ = gradients(wide, embeddings.double(), labels)
    assert wide_value.dtype == by_wide.dtype == torch.float64
    torch.testing.assert_close(value.double(), wide_value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_embeddings.double(), by_wide, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint32, torch.uint64]
)
def test_pytorch_metric_learning_calls_it_so(dtype):
    loss, embeddings, labels = make()
    miner = tuple(torch.arange(3) for _ in range(3))
    value = loss(embeddings, labels.to(dtype), None)
    assert value.ndim == 0
    assert torch.equal(value, loss(embeddings, labels.to(dtype), miner))
    assert torch.equal(value, loss(embeddings, labels))
    terms = loss.terms(embeddings, labels)
    assert torch.equal(value, terms.total)
    torch.testing.assert_close(terms.total, terms.distribution + terms.cross_entropy)


def test_state_round_trip():
    loss, embeddings, labels = make()
    loss(embeddings, labels)
    other = HISTLoss(C, D, hidden_dim=8)
    other.load_state_dict(loss.state_dict(), strict=True)
    for mode in (True, False):
        assert torch.equal(other.train(mode)(embeddings, labels), loss.train(mode)(embeddings, labels))


def test_one_seed_gives_one_loss():
    first, second = (gradients(*make(seed=3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])
    assert not torch.equal(first[0], gradients(*make(seed=4))[0])


def test_means_and_log_variances_start_he_normal_by_fan_out():
    torch.manual_seed(0)
    loss = HISTLoss(50, 400, hidden_dim=4)
    for parameter in (loss.means, loss.log_variances):
        assert parameter.shape == (50, 400)
        assert parameter.std().item() == pytest.approx((2 / 50) ** 0.5, rel=0.02)
        assert abs(parameter.mean().item()) < 0.01


@pytest.mark.parametrize("num_layers", [1, 2, 3, 5])
def test_number_of_propagations(num_layers):
    hgnn = make(num_layers=num_layers)[0].hgnn
    shapes = [(layer.in_features, layer.out_features) for layer in hgnn.layers]
    widths = [D, *[8] * (num_layers - 1), C]
    assert shapes == list(pairwise(widths))
    assert len(hgnn.norms) == num_layers - 1


@pytest.mark.parametrize("arguments", [{"lambda_s": 0.0}, {"num_layers": 1}, {}], ids=str)
def test_a_batch_of_one(arguments):
    loss, embeddings, labels = make(**arguments)
    trains_batch_norm = not arguments
    loss.train(not trains_batch_norm)
    value, by_embeddings, _ = gradients(loss, embeddings[:1], labels[:1])
    assert value.isfinite()
    assert by_embeddings.norm() > 0


def test_eval_uses_the_running_statistics_and_leaves_them():
    loss, embeddings, labels = make()
    loss(embeddings, labels)
    before = copy.deepcopy(dict(loss.named_buffers()))
    loss.eval()(embeddings, labels)
    assert all(torch.equal(buffer, before[name]) for name, buffer in loss.named_buffers())
    loss.train()(embeddings, labels)
    assert not torch.equal(loss.hgnn.norms[0].running_mean, before["hgnn.norms.0.running_mean"])


def test_without_the_hypergraph_its_parameters_get_no_gradient():
    loss, embeddings, labels = make(lambda_s=0.0)
    before = copy.deepcopy(dict(loss.named_buffers()))
    terms = loss.terms(embeddings, labels)
    terms.total.backward()
    assert terms.cross_entropy == 0
    assert torch.equal(terms.total, terms.distribution)
    assert all(parameter.grad is None for parameter in loss.hgnn.parameters())
    assert loss.means.grad.norm() > 0
    assert all(torch.equal(buffer, before[name]) for name, buffer in loss.named_buffers())


@pytest.mark.parametrize("arguments", [{}, {"lambda_s": 0.0}, {"num_layers": 1}, {"num_layers": 4}], ids=str)
def test_parameter_groups_hold_every_parameter_once(arguments):
    loss = make(**arguments)[0]
    groups = loss.parameter_groups(lr_distributions=0.1, lr_hgnn=0.002)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in loss.parameters()}
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rates[id(loss.means)] == rates[id(loss.log_variances)] == 0.1
    assert all(rates[id(parameter)] == 0.002 for parameter in loss.hgnn.parameters())
    torch.optim.AdamW(groups)


def test_optimising_the_loss_separates_the_classes():
    loss, embeddings, labels = make(lambda_s=1.0)
    points = torch.nn.Parameter(embeddings.detach().clone())
    groups = [{"params": [points], "lr": 0.05}, *loss.parameter_groups(lr_distributions=0.05, lr_hgnn=0.01)]
    optimizer = torch.optim.Adam(groups)
    start = loss(points, labels).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss(points, labels).backward()
        optimizer.step()
    assert loss(points, labels).item() < 0.1 * start
    nearest = class_distances(points, loss.means, loss.log_variances).argmin(dim=1)
    assert torch.equal(nearest, labels)


def test_a_zero_embedding_gets_a_bounded_gradient():
    loss, embeddings, labels = make()
    embeddings = embeddings.detach()
    embeddings[3] = 0
    _, by_embeddings, _ = gradients(loss, embeddings, labels)
    assert by_embeddings.isfinite().all()
    assert by_embeddings[3].norm() < 1e3


def test_a_float64_loss_keeps_its_width_on_float32_embeddings():
    loss, embeddings, _ = make()
    assert class_distances(embeddings, loss.double().means, loss.log_variances).dtype == torch.float64
