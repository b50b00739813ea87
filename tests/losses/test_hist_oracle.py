"""HISTLoss against the loops of oracle.py, and its gradients against finite differences, in float64."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from hist_gradients import DISTANCES
from torch.autograd import gradcheck
from torch.func import functional_call

from tuplet.losses.hgnn import propagation_matrix
from tuplet.losses.hist import HISTLoss, class_distances, hyperedge_weights, incidence_matrix

LAYERS = (1, 2, 3, 4, 5)
# Of sixteen digits, cancelling products and division by small deviations cost a few.
TOLERANCE = 1e-10


def make_case(
    seed, *, num_layers=2, distance="mahalanobis", n=7, num_classes=6, width=5, hidden=4, **settings
):
    """A loss in float64 without round parameters, embeddings of many lengths, labels of half the classes."""
    torch.manual_seed(seed)
    loss = HISTLoss(
        num_classes, width, hidden_dim=hidden, num_layers=num_layers, distance=distance, **settings
    ).double()
    with torch.no_grad():
        # From below the clip of [0, 6] to above it.
        loss.log_variances.uniform_(-3, 9)
        for parameter in loss.hgnn.parameters():
            if parameter.ndim == 1:
                parameter.normal_().add_(0.5)
    embeddings = (
        torch.randn(n, width, dtype=torch.float64) * torch.logspace(-2, 2, n, dtype=torch.float64)[:, None]
    )
    present = torch.randperm(num_classes)[: max(1, num_classes // 2)]
    labels = present[torch.randint(len(present), (n,))]
    return loss, embeddings, labels


def ask_oracle(loss, embeddings, labels):
    state = {name: value.detach().numpy() for name, value in loss.state_dict().items()}
    layers = [
        oracle.Layer(
            state[f"hgnn.layers.{index}.weight"],
            state[f"hgnn.layers.{index}.bias"],
            state.get(f"hgnn.norms.{index}.weight"),
            state.get(f"hgnn.norms.{index}.bias"),
        )
        for index in range(len(loss.hgnn.layers))
    ]
    return oracle.hist_terms(
        embeddings.detach().numpy(),
        labels.numpy(),
        state["means"],
        state["log_variances"],
        layers,
        tau=loss.tau,
        alpha=loss.alpha,
        lambda_s=loss.lambda_s,
        kind=loss.distance,
        variant=oracle.Variant(
            loss.hypergraph.features == "unit",
            loss.hypergraph.output_gain,
            loss.hypergraph.self_loops,
            loss.label_smoothing,
        ),
    )


def assert_terms_agree(loss, embeddings, labels):
    wanted = ask_oracle(loss, embeddings, labels)
    for implementation in ("plain", "chunked"):
        loss.implementation = implementation
        got = loss.terms(embeddings, labels)
        for name in ("distribution", "cross_entropy", "total"):
            value = getattr(got, name)
            assert value.dtype == torch.float64
            assert value.item() == pytest.approx(getattr(wanted, name), rel=TOLERANCE, abs=TOLERANCE), name
    assert loss(embeddings, labels).item() == pytest.approx(wanted.total, rel=TOLERANCE, abs=TOLERANCE)
    return wanted


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("num_layers", LAYERS)
def test_values(num_layers, distance):
    for seed in range(3):
        case = make_case(seed, num_layers=num_layers, distance=distance, lambda_s=0.7, tau=5.0 + seed)
        assert_terms_agree(*case)


@pytest.mark.parametrize("seed", range(6))
def test_values_at_random_sizes(seed):
    rng = np.random.default_rng(seed)
    case = make_case(
        seed,
        num_layers=int(rng.integers(1, 4)),
        n=int(rng.integers(2, 12)),
        num_classes=int(rng.integers(1, 12)),
        width=int(rng.integers(1, 9)),
        hidden=int(rng.integers(1, 7)),
        alpha=float(rng.uniform(0.1, 3)),
        tau=float(rng.uniform(1, 40)),
    )
    assert_terms_agree(*case)


@pytest.mark.parametrize("distance", DISTANCES)
def test_one_class_in_the_batch(distance):
    loss, embeddings, labels = make_case(0, distance=distance)
    assert_terms_agree(loss, embeddings, torch.full_like(labels, 3))


@pytest.mark.parametrize("distance", DISTANCES)
def test_samples_whose_probability_underflows(distance):
    loss, embeddings, labels = make_case(1, distance=distance, tau=1e4)
    with torch.no_grad():
        loss.log_variances.zero_()
        embeddings[0] = -loss.means[labels[0]]
    wanted = assert_terms_agree(loss, embeddings, labels)
    distances = class_distances(embeddings, loss.means, loss.log_variances, distance=distance)
    probability = torch.softmax(-loss.tau * distances.float(), dim=1)[0, labels[0]]
    assert probability == 0
    assert math.isfinite(wanted.distribution)
    assert wanted.distribution > 100


def test_without_the_hypergraph():
    wanted = assert_terms_agree(*make_case(0, lambda_s=0))
    assert wanted.cross_entropy == 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_pieces(distance):
    loss, embeddings, labels = make_case(2, distance=distance)
    distances = class_distances(embeddings, loss.means, loss.log_variances, distance=distance)
    arrays = embeddings.numpy(), loss.means.detach().numpy(), loss.log_variances.detach().numpy()
    wanted = oracle.distances(*arrays, distance)
    np.testing.assert_allclose(distances.detach(), wanted, rtol=0, atol=1e-13)
    weights = oracle.incidence(wanted, labels.numpy(), 0.9)
    incidence = incidence_matrix(distances, labels, alpha=0.9)
    # The paper has a column a class; here each sample brings that of its class, which the weights undo.
    classes, column = torch.unique(labels, return_inverse=True)
    assert len(classes) < len(labels)
    np.testing.assert_allclose(incidence.detach(), weights[:, column], rtol=0, atol=1e-13)
    shares = hyperedge_weights(labels, dtype=torch.float64)
    of_classes = torch.zeros(len(classes), dtype=torch.float64).index_add(0, column, shares)
    np.testing.assert_allclose(of_classes, 1.0, rtol=1e-15)
    mixing = propagation_matrix(incidence, shares).detach()
    np.testing.assert_allclose(mixing, oracle.propagation(weights), rtol=0, atol=1e-13)
    by_class = propagation_matrix(torch.from_numpy(weights))
    np.testing.assert_allclose(by_class, mixing, rtol=0, atol=1e-13)


def smooth_case(num_layers, distance):
    """A tiny case away from every kink: log-variances inside their clip, no |.| or LeakyReLU near 0."""
    for seed in range(200):
        loss, embeddings, labels = make_case(
            seed, num_layers=num_layers, distance=distance, n=4, num_classes=3, width=2, hidden=2, tau=2.0
        )
        embeddings = (
            embeddings / embeddings.norm(dim=1, keepdim=True) * torch.tensor([[0.7], [1.0], [1.3], [2.0]])
        )
        with torch.no_grad():
            loss.log_variances.uniform_(0.5, 2.0)
        margins = _hidden_margins(loss, embeddings, labels)
        if distance == "manhattan":
            margins.append(_l1_margin(embeddings, loss.means))
        if min(margins, default=1.0) > 0.02:
            return loss, embeddings.requires_grad_(), labels
    raise AssertionError("no seed gives a case away from the kinks")


def _hidden_margins(loss, embeddings, labels):
    margins = []
    hooks = [
        norm.register_forward_hook(lambda _module, _inputs, out: margins.append(out.abs().min().item()))
        for norm in loss.hgnn.norms
    ]
    loss(embeddings, labels)
    for hook in hooks:
        hook.remove()
    return margins


def _l1_margin(embeddings, means):
    unit, mu = (torch.nn.functional.normalize(rows) for rows in (embeddings, means.detach()))
    return (unit[:, None] - mu).abs().min().item()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("num_layers", LAYERS)
def test_every_gradient(num_layers, distance):
    loss, embeddings, labels = smooth_case(num_layers, distance)
    # BatchNorm cancels the bias of no propagation here, since G 1 is not constant: every gradient is real.
    parameters = dict(loss.named_parameters())
    if distance != "mahalanobis":
        parameters.pop("log_variances")

    def value(embeddings, *values):
        return functional_call(loss, dict(zip(parameters, values, strict=True)), (embeddings, labels))

    assert gradcheck(value, (embeddings, *parameters.values()), eps=1e-6, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_gradients_against_differences_of_the_oracle(num_layers, distance):
    loss, embeddings, labels = smooth_case(num_layers, distance)
    loss(embeddings, labels).backward()
    step, checked = 1e-6, 0
    for tensor in (embeddings, *loss.parameters()):
        if tensor.grad is None:
            continue
        position = int(tensor.grad.abs().argmax())
        values = tensor.detach().view(-1)
        around = []
        for offset in (step, -2 * step):
            values[position] += offset
            around.append(ask_oracle(loss, embeddings, labels).total)
        values[position] += step
        difference = (around[0] - around[1]) / (2 * step)
        assert tensor.grad.view(-1)[position].item() == pytest.approx(difference, rel=1e-5, abs=1e-7)
        checked += 1
    # Embeddings and means, log-variances where the distance has them, and those of the HGNN.
    assert checked == 2 + (distance == "mahalanobis") + 4 * num_layers - 2


def test_log_variances_outside_their_clip_have_no_gradient():
    loss, embeddings, labels = make_case(0)
    loss(embeddings, labels).backward()
    outside = (loss.log_variances < 0) | (loss.log_variances > 6)
    assert 0 < outside.sum() < outside.numel()
    assert (loss.log_variances.grad[outside] == 0).all()
    assert (loss.log_variances.grad[~outside] != 0).all()
