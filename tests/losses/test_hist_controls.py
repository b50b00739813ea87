"""What the claims vary beyond the paper's range: alpha at and below zero, and variances that do not learn."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import oracle
import pytest
import torch

from tests.losses.test_hist_oracle import ask_oracle, assert_terms_agree, make_case
from tuplet.config import LossConfig, OptimizerConfig, RunConfig
from tuplet.config.overrides import from_dict, override, to_dict
from tuplet.errors import SettingsError
from tuplet.losses.build import build_loss
from tuplet.losses.hist import HISTLoss, incidence_matrix
from tuplet.models.embedder import Embedder
from tuplet.training.optimizers import build_optimizers


@pytest.mark.parametrize("alpha", [0.0, -0.5, -2.0])
def test_controls_of_alpha_against_the_loops(alpha: float) -> None:
    for seed in range(2):
        loss, embeddings, labels = make_case(seed, alpha=alpha, alpha_control=True, lambda_s=0.7)
        assert_terms_agree(loss, embeddings, labels)


def test_weights_of_the_controls() -> None:
    distances = torch.tensor([[0.5, 2.0, 4.0], [1.0, 0.0, 3.0]])
    labels = torch.tensor([0, 2])
    assert incidence_matrix(distances, labels, alpha=0.0).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    farther = incidence_matrix(distances, labels, alpha=-1.0)
    torch.testing.assert_close(farther, torch.tensor([[1.0, math.exp(4.0)], [math.exp(1.0), 1.0]]))


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_alpha_out_of_range_wants_alpha_control(alpha: float) -> None:
    for make in (LossConfig, partial(HISTLoss, 4, 4)):
        with pytest.raises(SettingsError) as caught:
            make(alpha=alpha)
        assert "alpha_control" in str(caught.value.wanted)
    config = override(RunConfig(), {"loss.alpha": alpha, "loss.alpha_control": True})
    loss = build_loss(override(config, {"model.embedding_dim": 4, "loss.hidden_dim": 4}), 3)
    assert isinstance(loss, HISTLoss)
    assert loss.alpha == alpha
    for infinite in (float("nan"), float("-inf"), float("inf")):
        with pytest.raises(SettingsError):
            HISTLoss(4, 4, alpha=infinite, alpha_control=True)


def test_unit_variance_against_the_loops() -> None:
    for seed in range(3):
        loss, embeddings, labels = make_case(seed, variance="unit", lambda_s=0.7)
        with torch.no_grad():
            loss.log_variances.zero_()  # make_case draws them
        wanted = assert_terms_agree(loss, embeddings, labels)
        # With sigma2 = 1 the squared Mahalanobis distance is the squared Euclidean one.
        loss.distance = "euclidean"
        assert ask_oracle(loss, embeddings, labels).total == pytest.approx(wanted.total, rel=1e-12)


@pytest.mark.parametrize("implementation", ["plain", "chunked"])
def test_unit_variances_never_move(implementation) -> None:
    torch.manual_seed(0)
    loss = HISTLoss(5, 4, hidden_dim=3, variance="unit", implementation=implementation)
    groups = loss.parameter_groups(lr_distributions=0.1, lr_hgnn=0.1)
    learning = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(learning) == len(set(learning))
    assert set(learning) == {id(value) for name, value in loss.named_parameters() if name != "log_variances"}
    optimizer = torch.optim.Adam(groups, weight_decay=0.1)
    means = loss.means.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        loss(torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 4, 4])).backward()
        optimizer.step()
    assert loss.log_variances.grad is None
    assert not loss.log_variances.any()
    assert not torch.equal(loss.means, means)


@pytest.mark.parametrize("class_update", ["same", "rowwise"])
def test_no_optimizer_has_them(class_update) -> None:
    loss = HISTLoss(5, 4, hidden_dim=3, variance="unit")
    network = Embedder("tuplet_convnet", embedding_dim=4, pretrained=False)
    optimizers = build_optimizers(network, loss, OptimizerConfig(class_update=class_update))
    held = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    assert id(loss.log_variances) not in held
    assert {id(p) for p in loss.parameters()} - held == {id(loss.log_variances)}


def test_variance_belongs_to_mahalanobis() -> None:
    for make in (LossConfig, partial(HISTLoss, 4, 4)):
        with pytest.raises(SettingsError) as caught:
            make(variance="unit", distance="cosine")
        assert caught.value.given == "unit"


def test_configs_written_before_still_load_as_they_were() -> None:
    tree = to_dict(RunConfig())
    newer = ("label_noise", "label_noise_seed", "imbalance", "imbalance_seed")
    for section, name in [
        ("loss", "alpha_control"),
        ("loss", "variance"),
        *(("data", name) for name in newer),
    ]:
        del tree[section][name]
    assert from_dict(tree) == RunConfig()
    fields = {field.name: field.default for field in dataclasses.fields(LossConfig)}
    assert fields["variance"] == "learnt"
    assert fields["alpha_control"] is False


def test_the_oracle_has_no_range_of_its_own() -> None:
    weights = oracle.incidence([[0.5, 2.0]], [0], -1.0)
    assert weights.tolist() == [[1.0]]
