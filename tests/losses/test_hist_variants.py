"""Variants of HIST: each against loops, its gradients, and that nothing changes where none is chosen."""

from __future__ import annotations

from functools import partial

import oracle
import pytest
import torch
from torch.autograd import gradcheck

from tests.losses.test_hist_oracle import TOLERANCE, ask_oracle, assert_terms_agree, make_case
from tuplet.config import HypergraphConfig, LossConfig, OptimizerConfig, RunConfig
from tuplet.config.overrides import from_dict, override, to_dict
from tuplet.errors import SettingsError
from tuplet.losses.build import build_loss
from tuplet.losses.hist import (
    HISTLoss,
    class_distances,
    distribution_loss,
    hyperedge_weights,
    hypergraph_loss,
    incidence_matrix,
)
from tuplet.losses.own_share import alpha_of_share, own_share
from tuplet.models.embedder import Embedder
from tuplet.training.optimizers import build_optimizers

IMPLEMENTATIONS = ("plain", "chunked")
HYPERGRAPHS = (
    HypergraphConfig(features="unit"),
    HypergraphConfig(output_gain=3.5),
    HypergraphConfig(self_loops=0.3),
    HypergraphConfig(features="unit", output_gain=0.5, self_loops=0.8, detach="incidence"),
)


def gradients(loss, embeddings, labels, term="total"):
    """By every parameter and, under the empty name, by the embeddings; zeros where there is none."""
    embeddings = embeddings.clone().requires_grad_()
    inputs = {"": embeddings, **dict(loss.named_parameters())}
    value = getattr(loss.terms(embeddings, labels), term)
    found = torch.autograd.grad(value, list(inputs.values()), allow_unused=True)
    pairs = zip(inputs.items(), found, strict=True)
    return {name: torch.zeros_like(given) if by is None else by for (name, given), by in pairs}


@pytest.mark.parametrize("hypergraph", HYPERGRAPHS, ids=str)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_values_against_the_loops(num_layers, hypergraph):
    # Plain and chunked, both.
    assert_terms_agree(*make_case(num_layers, hypergraph=hypergraph, num_layers=num_layers, lambda_s=0.7))


@pytest.mark.parametrize("distance", ["mahalanobis", "cosine"])
def test_label_smoothing_against_the_loops(distance):
    for implementation in ("auto", "plain"):
        loss, embeddings, labels = make_case(
            3, label_smoothing=0.2, distance=distance, implementation=implementation
        )
        wanted, found = ask_oracle(loss, embeddings, labels), loss.terms(embeddings, labels)
        assert found.distribution.item() == pytest.approx(wanted.distribution, rel=TOLERANCE)
        assert found.total.item() == pytest.approx(wanted.total, rel=TOLERANCE)


@pytest.mark.parametrize("hypergraph", [*HYPERGRAPHS, HypergraphConfig(detach="inputs")], ids=str)
def test_plain_and_chunked_have_the_same_gradients(hypergraph):
    loss, embeddings, labels = make_case(1, hypergraph=hypergraph, implementation="plain", own_share=0.6)
    wanted = gradients(loss, embeddings, labels)
    loss.implementation = "chunked"
    torch.testing.assert_close(gradients(loss, embeddings, labels), wanted, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("hypergraph", HYPERGRAPHS[:3], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_against_differences(implementation, hypergraph):
    smoothing = 0.2 if implementation == "plain" else 0.0
    loss, embeddings, labels = make_case(
        2, hypergraph=hypergraph, implementation=implementation, label_smoothing=smoothing
    )
    embeddings = torch.nn.functional.normalize(embeddings).requires_grad_()
    with torch.no_grad():
        loss.log_variances.uniform_(1, 5)  # far from the kinks of the clip
    assert gradcheck(lambda f: loss.terms(f, labels).total, embeddings, atol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_without_a_variant_every_number_is_that_of_the_functions_in_order(num_layers):
    torch.manual_seed(0)
    loss = HISTLoss(9, 6, hidden_dim=5, num_layers=num_layers, lambda_s=0.8, implementation="plain")
    embeddings, labels = torch.randn(8, 6), torch.randint(9, (8,))
    found = gradients(loss, embeddings, labels)
    given = embeddings.clone().requires_grad_()
    distances = class_distances(given, loss.means, loss.log_variances)
    incidence = incidence_matrix(distances, labels, alpha=loss.alpha)
    logits = loss.hgnn(given, incidence, hyperedge_weights(labels))
    total = distribution_loss(distances, labels, tau=loss.tau) + 0.8 * hypergraph_loss(logits, labels)
    assert torch.equal(loss.terms(embeddings, labels).total, total)
    wanted = torch.autograd.grad(total, [given, *loss.parameters()])
    assert all(torch.equal(*pair) for pair in zip(found.values(), wanted, strict=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_the_incidence_no_gradient_flows_through_the_tuplets(implementation):
    loss, embeddings, labels = make_case(4, implementation=implementation, num_layers=1)
    through_both = gradients(loss, embeddings, labels, "cross_entropy")
    loss.hypergraph = HypergraphConfig(detach="incidence")
    found = gradients(loss, embeddings, labels, "cross_entropy")
    # Class distributions reach the cross entropy through H alone, the embeddings also as features.
    assert through_both["means"].any()
    assert not found["means"].any()
    assert not found["log_variances"].any()
    distances = class_distances(embeddings, loss.means, loss.log_variances)
    incidence = incidence_matrix(distances, labels, alpha=loss.alpha).detach()
    given = embeddings.clone().requires_grad_()
    weights = hyperedge_weights(labels, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(hypergraph_loss(loss.hgnn(given, incidence, weights), labels), given)
    torch.testing.assert_close(found[""], wanted, atol=1e-9, rtol=1e-7)
    assert not torch.allclose(found[""], through_both[""])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_the_inputs_the_cross_entropy_trains_the_hgnn_alone(implementation):
    loss, embeddings, labels = make_case(5, implementation=implementation, lambda_s=0.7)
    whole = gradients(loss, embeddings, labels)
    alone = gradients(loss, embeddings, labels, "distribution")
    assert not torch.allclose(whole[""], alone[""])
    loss.hypergraph = HypergraphConfig(detach="inputs")
    found = gradients(loss, embeddings, labels)
    for name, value in found.items():
        wanted = whole if name.startswith("hgnn.") else alone
        torch.testing.assert_close(value, wanted[name], atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_alpha_gives_every_batch_the_share(scale, share):
    torch.manual_seed(0)
    for labels in (torch.arange(32), torch.randint(12, (32,))):
        distances = 2.0 * scale * torch.rand(32, 32)[:, labels]
        alpha = alpha_of_share(distances, labels, share)
        incidence = torch.exp(-alpha * distances).masked_fill(labels[:, None] == labels, 1.0)
        found = own_share(incidence, labels)
        assert float(found) == pytest.approx(share, abs=1e-5)
        by_class = incidence[:, [int((labels == c).nonzero()[0]) for c in labels.unique()]]
        assert float(found) == pytest.approx(oracle.own_share(by_class.numpy(), labels.numpy()), rel=1e-5)


def test_shares_that_no_alpha_gives() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    distances = torch.rand(4, 2)[:, labels]
    # At alpha = 0 each of the four images has weight 1: half of a tuplet is its own.
    assert float(alpha_of_share(distances, labels, 0.4)) == pytest.approx(0.0, abs=1e-4)
    for near in (torch.zeros(4, 4), torch.full((4, 4), 1e-30)):
        assert torch.isfinite(alpha_of_share(near, labels, 0.9))
    assert torch.isfinite(alpha_of_share(distances, torch.zeros(4, dtype=torch.int64), 0.5))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_own_share_is_a_fixed_alpha_of_the_batch(implementation):
    loss, embeddings, labels = make_case(6, implementation=implementation, num_classes=8, own_share=0.8)
    distances = class_distances(embeddings, loss.means, loss.log_variances)
    alpha = float(alpha_of_share(distances.detach()[:, labels], labels, 0.8))
    incidence = incidence_matrix(distances, labels, alpha=alpha)
    assert float(own_share(incidence.detach(), labels)) == pytest.approx(0.8, abs=1e-6)
    found, terms = gradients(loss, embeddings, labels), loss.terms(embeddings, labels)
    loss.alpha, loss.own_share = alpha, 0.0
    wanted = assert_terms_agree(loss, embeddings, labels)
    assert terms.total.item() == pytest.approx(wanted.total, rel=TOLERANCE)
    torch.testing.assert_close(found, gradients(loss, embeddings, labels), atol=1e-8, rtol=1e-6)


def test_a_sampled_step_has_the_share_too():
    torch.manual_seed(0)
    loss = HISTLoss(50, 8, hidden_dim=4, class_fraction=0.5, own_share=0.7)
    embeddings, labels = torch.randn(8, 8), torch.arange(8)
    found = loss.terms(embeddings, labels).cross_entropy
    assert torch.isfinite(found)
    loss.own_share = 0.0
    assert loss.terms(embeddings, labels).cross_entropy != found


def test_weight_decay_of_the_distributions_is_their_own():
    loss = HISTLoss(5, 4, hidden_dim=3)
    network = Embedder("tuplet_convnet", embedding_dim=4, pretrained=False)
    for own, wanted in ((None, 0.1), (0.0, 0.0), (0.3, 0.3)):
        config = OptimizerConfig(weight_decay=0.1, weight_decay_distributions=own)
        (optimizer,) = build_optimizers(network, loss, config)
        decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
        assert decays == {"backbone": 0.1, "embedding": 0.1, "distributions": wanted, "hgnn": 0.1}
    # Without a gradient nothing but the decay moves a parameter.
    config = OptimizerConfig("sgd", lr_distributions=1.0, weight_decay=0.1, weight_decay_distributions=0.3)
    (optimizer,) = build_optimizers(network, loss, config)
    before = loss.means.detach().clone()
    for parameter in loss.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Nesterov's momentum of 0.9 adds itself to the first step.
    torch.testing.assert_close(loss.means.detach(), before * (1.0 - 0.3 * 1.9))


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"loss.own_share": 1.0}, "loss.own_share"),
        ({"loss.tau_end": 0.0}, "loss.tau_end"),
        ({"loss.lambda_s_end": -1.0}, "loss.lambda_s_end"),
        ({"loss.label_smoothing": 1.0}, "loss.label_smoothing"),
        ({"loss.label_smoothing": 0.1, "loss.implementation": "chunked"}, "loss.label_smoothing"),
        ({"loss.label_smoothing": 0.1, "loss.class_fraction": 0.5}, "loss.label_smoothing"),
        ({"loss.label_smoothing": 0.1, "compute.shard_classes": True}, "loss.label_smoothing"),
        ({"loss.hypergraph.output_gain": 0.0}, "loss.hypergraph.output_gain"),
        ({"loss.hypergraph.self_loops": 1.0}, "loss.hypergraph.self_loops"),
        ({"loss.hypergraph.features": "x"}, "loss.hypergraph.features"),
        ({"loss.name": "proxy-anchor", "loss.own_share": 0.5}, "loss.own_share"),
        ({"loss.name": "proxy-anchor", "loss.hypergraph.self_loops": 0.5}, "loss.hypergraph"),
        ({"loss.tau_end": 8.0, "compute.compile": True}, "loss.tau_end"),
        ({"loss.lambda_s_end": 0.0, "loss.implementation": "compiled"}, "loss.lambda_s_end"),
        ({"optimizer.weight_decay_distributions": -1.0}, "optimizer.weight_decay_distributions"),
        (
            {"optimizer.weight_decay_distributions": 0.1, "optimizer.class_update": "rowwise"},
            "optimizer.weight_decay_distributions",
        ),
        (
            {"optimizer.weight_decay_distributions": 0.1, "loss.name": "proxy-anchor"},
            "optimizer.weight_decay_distributions",
        ),
    ],
    ids=str,
)
def test_refused_settings(changes, subject):
    with pytest.raises(SettingsError) as error:
        override(RunConfig(), changes)
    assert error.value.subject == subject
    assert "\n" not in str(error.value)


def test_the_loss_refuses_what_the_config_refuses():
    make = partial(HISTLoss, 4, 4)
    for settings in (
        {"own_share": 1.0},
        {"label_smoothing": -0.1},
        {"label_smoothing": 0.1, "implementation": "chunked"},
        {"label_smoothing": 0.1, "class_fraction": 0.5},
    ):
        with pytest.raises(SettingsError) as error:
            make(**settings)
        assert error.value.subject == next(iter(settings))


def test_a_config_gives_its_loss_the_variant_and_old_ones_load():
    changes = {
        "loss.own_share": 0.5,
        "loss.label_smoothing": 0.1,
        "loss.hypergraph.features": "unit",
        "loss.hypergraph.detach": "inputs",
    }
    config = override(RunConfig(), changes)
    assert from_dict(to_dict(config)) == config
    loss = build_loss(config, 3)
    assert isinstance(loss, HISTLoss)
    assert (loss.own_share, loss.label_smoothing) == (0.5, 0.1)
    assert loss.hypergraph == HypergraphConfig(features="unit", detach="inputs")
    tree = to_dict(RunConfig())
    for name in ("tau_end", "own_share", "lambda_s_end", "label_smoothing", "hypergraph"):
        del tree["loss"][name]
    del tree["optimizer"]["weight_decay_distributions"]
    assert from_dict(tree) == RunConfig()
    assert from_dict(tree).loss == LossConfig()
