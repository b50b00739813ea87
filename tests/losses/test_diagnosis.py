"""The diagnosis of a batch, against loops and the loss's own gradients; it leaves no trace in training."""

from __future__ import annotations

import oracle
import pytest
import torch

from tests.losses.test_hist_oracle import make_case
from tuplet.config import HypergraphConfig
from tuplet.losses.diagnosis import diagnose, spread
from tuplet.losses.hgnn import propagation_matrix
from tuplet.losses.hist import HISTLoss, class_distances, hyperedge_weights, incidence_matrix


@pytest.mark.parametrize("implementation", ["plain", "chunked"])
def test_every_measurement_by_another_way(implementation: str) -> None:
    loss, embeddings, labels = make_case(3, lambda_s=0.7, implementation=implementation)
    found = {name: value.item() for name, value in diagnose(loss, embeddings, labels).items()}
    distances = class_distances(embeddings, loss.means, loss.log_variances).detach()
    weights = oracle.incidence(distances.numpy(), labels.numpy(), loss.alpha)
    assert found["own_share"] == pytest.approx(oracle.own_share(weights, labels.numpy()))
    mixed = torch.from_numpy(oracle.propagation(weights)) @ embeddings
    centred = [rows - rows.mean(dim=0) for rows in (mixed, embeddings)]
    assert found["differences_left"] == pytest.approx(float(centred[0].norm() / centred[1].norm()))
    given = embeddings.clone().requires_grad_()
    terms = loss.terms(given, labels)
    first, second = (
        torch.autograd.grad(term, given, retain_graph=True)[0]
        for term in (terms.distribution, 0.7 * terms.cross_entropy)
    )
    assert found["distribution_gradient"] == pytest.approx(float(first.norm()))
    assert found["hypergraph_gradient"] == pytest.approx(float(second.norm()))
    cosine = float((first * second).sum() / first.norm() / second.norm())
    assert found["gradient_cosine"] == pytest.approx(cosine)
    assert found["log_variance"] == pytest.approx(loss.log_variances.detach().clamp(0, 6).mean().item())
    logits = loss.hgnn(
        embeddings,
        incidence_matrix(distances, labels, alpha=loss.alpha),
        hyperedge_weights(labels, dtype=torch.float64),
    )
    right = [int(row.argmax()) == label for row, label in zip(logits, labels.tolist(), strict=True)]
    assert found["hgnn_accuracy"] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loss_in_half_precision(dtype: torch.dtype) -> None:
    loss, embeddings, labels = make_case(3)
    wide = diagnose(loss, embeddings, labels)
    found = diagnose(loss.to(dtype), embeddings, labels)
    assert all(value.isfinite() for value in found.values())
    for name in ("own_share", "log_variance"):
        assert found[name].item() == pytest.approx(wide[name].item(), rel=0.05)


def test_tuplets_that_are_all_alike_leave_no_difference() -> None:
    loss, embeddings, labels = make_case(1, alpha=0.0, alpha_control=True)
    assert diagnose(loss, embeddings, labels)["differences_left"].item() == pytest.approx(0.0, abs=1e-12)
    own = torch.eye(4)
    assert spread(propagation_matrix(own) @ own) == spread(own)


@pytest.mark.parametrize("settings", [{"lambda_s": 0.0}, {"hypergraph": HypergraphConfig(detach="inputs")}])
def test_a_half_that_asks_for_nothing_has_no_gradient(settings: dict[str, object]) -> None:
    found = diagnose(*make_case(2, **settings))
    assert found["hypergraph_gradient"] == found["gradient_cosine"] == 0.0
    assert found["distribution_gradient"] > 0.0


@pytest.mark.parametrize("class_fraction", [1.0, 0.5])
def test_it_leaves_no_trace(class_fraction: float) -> None:
    torch.manual_seed(0)
    loss = HISTLoss(9, 6, hidden_dim=5, class_fraction=class_fraction)
    embeddings, labels = torch.randn(8, 6, requires_grad=True), torch.randint(9, (8,))
    loss(embeddings, labels).backward()
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    gradients = {name: value.grad.clone() for name, value in loss.named_parameters()}
    generator = torch.get_rng_state()
    with torch.no_grad():  # it needs gradients of its own wherever it is called
        diagnose(loss, embeddings, labels)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())
    assert all(torch.equal(value.grad, gradients[name]) for name, value in loss.named_parameters())
    assert loss.training
