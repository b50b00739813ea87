"""Losses of leading widths, against losses that were built at those widths."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from tuplet.config import Distance, LossConfig, ModelConfig, RunConfig
from tuplet.config.loss import RIVALS
from tuplet.errors import SettingsError
from tuplet.losses.base import MetricLoss
from tuplet.losses.build import build_loss
from tuplet.losses.hist import HISTLoss
from tuplet.losses.rivals import WIDTH_AXES, RivalLoss

CLASSES, DIM, WIDTHS = 6, 12, (3, 8)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(16, DIM, dtype=torch.float64), torch.arange(16) % CLASSES


def gradients(total: Tensor, loss: MetricLoss, x: Tensor) -> dict[str, Tensor]:
    wanted = {"x": x, **{name: one for name, one in loss.named_parameters() if one.requires_grad}}
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {
        name: torch.zeros_like(one) if got is None else got
        for (name, one), got in zip(wanted.items(), found, strict=True)
    }


@pytest.mark.parametrize("distance", get_args(Distance))
def test_hist_adds_the_distribution_losses_of_its_marginals(
    distance: Distance, batch: tuple[Tensor, Tensor]
) -> None:
    x, labels = batch
    loss = HISTLoss(CLASSES, DIM, hidden_dim=5, distance=distance, matryoshka=WIDTHS).double()
    plain = HISTLoss(CLASSES, DIM, hidden_dim=5, distance=distance).double()
    plain.load_state_dict(loss.state_dict())
    x.requires_grad_()
    terms = loss.terms(x, labels)
    expected = plain.terms(x, labels).total
    want = gradients(expected, plain, x)
    for width in WIDTHS:
        narrow = HISTLoss(CLASSES, width, lambda_s=0.0, distance=distance).double()
        with torch.no_grad():
            narrow.means.copy_(loss.means[:, :width])
            narrow.log_variances.copy_(loss.log_variances[:, :width])
        part = narrow(x[:, :width], labels)
        for name, one in gradients(part, narrow, x).items():
            if name in ("means", "log_variances"):
                want[name][:, :width] += one
            elif name == "x":
                want[name] += one
        expected = expected + part
    torch.testing.assert_close(terms.total, expected)
    assert terms.total > terms.distribution + terms.cross_entropy
    torch.testing.assert_close(gradients(terms.total, loss, x), want)


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_add_the_losses_of_their_leading_parameters(name: str, batch: tuple[Tensor, Tensor]) -> None:
    x, labels = batch
    loss = RivalLoss(name, CLASSES, DIM, matryoshka=WIDTHS).double()  # type: ignore[arg-type]
    plain = RivalLoss(name, CLASSES, DIM).double()  # type: ignore[arg-type]
    plain.load_state_dict(loss.state_dict())
    expected = plain(x, labels)
    for width in WIDTHS:
        narrow = RivalLoss(name, CLASSES, width).double()  # type: ignore[arg-type]
        with torch.no_grad():
            for key, one in narrow.loss.named_parameters():
                one.copy_(dict(loss.loss.named_parameters())[key].narrow(WIDTH_AXES[key], 0, width))
        expected = expected + narrow(x[:, :width], labels)
    torch.testing.assert_close(loss(x, labels), expected)
    assert loss(x, labels) > plain(x, labels)


def test_gradients_are_those_of_finite_differences(batch: tuple[Tensor, Tensor]) -> None:
    x, labels = batch[0][:7].requires_grad_(), batch[1][:7]
    loss = HISTLoss(CLASSES, DIM, hidden_dim=5, matryoshka=WIDTHS).double().eval()
    means = loss.means.detach().clone().requires_grad_()
    log_variances = (loss.log_variances.detach().abs() + 0.1).requires_grad_()  # off the clip at zero

    def total(x: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
        rows = {"means": means, "log_variances": log_variances}
        found: Tensor = torch.func.functional_call(loss, rows, (x, labels))
        return found

    assert torch.autograd.gradcheck(total, (x, means, log_variances))


def test_widths_out_of_range() -> None:
    for widths in ((0, 3), (3, 3), (8, 3), (DIM,), (3.5,)):
        with pytest.raises(SettingsError) as raised:
            HISTLoss(CLASSES, DIM, matryoshka=widths)  # type: ignore[arg-type]
        assert raised.value.subject == "matryoshka"
        with pytest.raises(SettingsError):
            RivalLoss("triplet", CLASSES, DIM, matryoshka=widths)  # type: ignore[arg-type]
    for fields in ({"implementation": "chunked"}, {"class_fraction": 0.5}):
        with pytest.raises(SettingsError):
            HISTLoss(CLASSES, DIM, matryoshka=WIDTHS, **fields)  # type: ignore[arg-type]
        with pytest.raises(SettingsError) as raised:
            LossConfig(matryoshka=WIDTHS, **fields)  # type: ignore[arg-type]
        assert raised.value.subject == "loss.matryoshka"
    for widths in ((0,), (4, 4), (9, 2)):
        with pytest.raises(SettingsError):
            LossConfig(matryoshka=widths)


def test_a_config_builds_it() -> None:
    config = RunConfig(model=ModelConfig(embedding_dim=DIM), loss=LossConfig(matryoshka=WIDTHS))
    assert build_loss(config, CLASSES).matryoshka == WIDTHS
    rival = replace(config, loss=LossConfig(name="proxy-anchor", matryoshka=WIDTHS))
    assert build_loss(rival, CLASSES).matryoshka == WIDTHS
    with pytest.raises(SettingsError) as raised:
        replace(config, loss=LossConfig(matryoshka=(3, DIM)))
    assert raised.value.subject == "loss.matryoshka"
