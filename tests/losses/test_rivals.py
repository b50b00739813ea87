"""The rivals against their papers' formulas in plain loops: right loss, right setting, right units."""

from __future__ import annotations

import math
import sys
from typing import get_args

import numpy as np
import pytest
import torch

from tuplet.config import LossName
from tuplet.config.loss import RIVALS
from tuplet.errors import MissingExtraError, SettingsError
from tuplet.losses.rivals import RivalLoss, centre_distance

NAMES = [name for name in get_args(LossName) if name != "hist"]
LABELS = np.array([0, 0, 0, 2, 2, 1, 1, 4])
C, D = 5, 6


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.from_numpy(np.random.default_rng(5).normal(size=(len(LABELS), D)))
    return rows.requires_grad_(), torch.from_numpy(LABELS)


def loss_and_expected(name: LossName, **settings: float) -> tuple[float, float]:
    torch.manual_seed(1)
    loss = RivalLoss(name, C, D, **settings).double()  # type: ignore[arg-type]
    embeddings, labels = batch()
    own = [parameter.detach().numpy() for parameter in loss.parameters()]
    x = unit(embeddings.detach().numpy())
    return loss(embeddings, labels).item(), ORACLES[name](x, *own, **settings)


def proxy_anchor(x: np.ndarray, proxies: np.ndarray, margin: float = 0.1, scale: float = 32.0) -> float:
    p, positive, negative = unit(proxies), 0.0, 0.0
    for c in range(C):
        ups = [math.exp(-scale * (x[i] @ p[c] - margin)) for i in range(len(x)) if LABELS[i] == c]
        downs = [math.exp(scale * (x[i] @ p[c] + margin)) for i in range(len(x)) if LABELS[i] != c]
        positive += math.log1p(sum(ups)) if ups else 0.0
        negative += math.log1p(sum(downs))
    return positive / len(set(LABELS)) + negative / C


def proxy_nca(x: np.ndarray, proxies: np.ndarray, scale: float = 9.0) -> float:
    p, total = unit(proxies), 0.0
    for i in range(len(x)):
        weights = [math.exp(-scale * float(((x[i] - p[c]) ** 2).sum())) for c in range(C)]
        total -= math.log(weights[LABELS[i]] / sum(weights))
    return total / len(x)


def soft_triple(
    x: np.ndarray, centres: np.ndarray, margin: float = 0.01, scale: float = 20.0, num_centers: int = 10
) -> float:
    w, gamma, total, spread = unit(centres.T), 0.1, 0.0, []
    for i in range(len(x)):
        similarities = []
        for c in range(C):
            own = [float(x[i] @ w[c * num_centers + k]) for k in range(num_centers)]
            weights = [math.exp(one / gamma) for one in own]
            similarities.append(sum(a * b for a, b in zip(weights, own, strict=True)) / sum(weights))
        similarities[LABELS[i]] -= margin
        logits = [scale * one for one in similarities]
        total += math.log(sum(map(math.exp, logits))) - logits[LABELS[i]]
    for c in range(C):
        for k in range(num_centers):
            for m in range(k + 1, num_centers):
                spread.append(float(np.linalg.norm(w[c * num_centers + k] - w[c * num_centers + m])) / 2)
    return total / len(x) + (0.2 * float(np.mean(spread)) if spread else 0.0)


def arcface(x: np.ndarray, weights: np.ndarray, margin: float = 0.5, scale: float = 64.0) -> float:
    w, total = unit(weights.T), 0.0
    for i in range(len(x)):
        cosines = [float(x[i] @ w[c]) for c in range(C)]
        angle = math.acos(cosines[LABELS[i]])
        assert angle + margin < math.pi
        cosines[LABELS[i]] = math.cos(angle + margin)
        logits = [scale * one for one in cosines]
        total += math.log(sum(math.exp(one - max(logits)) for one in logits)) + max(logits)
        total -= logits[LABELS[i]]
    return total / len(x)


def multi_similarity(
    x: np.ndarray, margin: float = 0.5, scale: float = 50.0, positive_scale: float = 2.0
) -> float:
    total, s = 0.0, x @ x.T
    for i in range(len(x)):
        positives = [j for j in range(len(x)) if j != i and LABELS[j] == LABELS[i]]
        negatives = [j for j in range(len(x)) if LABELS[j] != LABELS[i]]
        if not positives:
            continue
        hard = [s[i, j] for j in negatives if s[i, j] + 0.1 > min(s[i, positives])]
        easy = [s[i, j] for j in positives if s[i, j] - 0.1 < max(s[i, negatives])]
        total += math.log1p(sum(math.exp(-positive_scale * (one - margin)) for one in easy)) / positive_scale
        total += math.log1p(sum(math.exp(scale * (one - margin)) for one in hard)) / scale
    return total / len(x)


def triplet(x: np.ndarray, margin: float = 0.2) -> float:
    found = []
    for i in range(len(x)):
        for j in range(len(x)):
            for k in range(len(x)):
                if i == j or LABELS[i] != LABELS[j] or LABELS[i] == LABELS[k]:
                    continue
                near, far = float(((x[i] - x[j]) ** 2).sum()), float(((x[i] - x[k]) ** 2).sum())
                if near < far < near + margin:
                    found.append(near - far + margin)
    return float(np.mean(found))


def supcon(x: np.ndarray, scale: float = 10.0) -> float:
    losses = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        positives = [j for j in others if LABELS[j] == LABELS[i]]
        if positives:
            partition = math.log(sum(math.exp(scale * float(x[i] @ x[j])) for j in others))
            losses.append(float(np.mean([partition - scale * float(x[i] @ x[j]) for j in positives])))
    return float(np.mean(losses))


ORACLES = {
    "proxy-anchor": proxy_anchor,
    "proxy-nca": proxy_nca,
    "soft-triple": soft_triple,
    "arcface": arcface,
    "multi-similarity": multi_similarity,
    "triplet": triplet,
    "supcon": supcon,
}


@pytest.mark.parametrize("name", NAMES)
def test_published_settings_give_the_papers_formula(name: LossName) -> None:
    found, expected = loss_and_expected(name)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("proxy-anchor", {"margin": 0.2, "scale": 8.0}),
        ("proxy-nca", {"scale": 3.0}),
        ("soft-triple", {"margin": 0.1, "scale": 5.0, "num_centers": 3}),
        ("soft-triple", {"num_centers": 1}),
        ("arcface", {"margin": 0.2, "scale": 10.0}),
        ("multi-similarity", {"margin": 0.3, "scale": 20.0, "positive_scale": 5.0}),
        ("triplet", {"margin": 0.5}),
        ("supcon", {"scale": 4.0}),
    ],
)
def test_every_setting_arrives(name: LossName, settings: dict[str, float]) -> None:
    found, expected = loss_and_expected(name, **settings)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found != pytest.approx(loss_and_expected(name)[0], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_embeddings_and_every_parameter(name: LossName) -> None:
    loss = RivalLoss(name, C, D).double()
    embeddings, labels = batch()
    loss(embeddings, labels).backward()
    groups = loss.parameter_groups(lr_proxies=0.5)
    learnt = [parameter for group in groups for parameter in group["params"]]
    assert [id(one) for one in learnt] == [id(one) for one in loss.parameters()]
    assert bool(learnt) == (name in ("proxy-anchor", "proxy-nca", "soft-triple", "arcface"))
    assert all(group["lr"] == 0.5 for group in groups)
    for value in [embeddings, *learnt]:
        assert value.grad is not None
        assert bool(value.grad.abs().sum() > 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_computed_in_float32_or_wider_and_parameters_keep_their_type(
    name: LossName, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    loss = RivalLoss(name, C, D)
    embeddings, labels = batch()
    narrow = embeddings.detach().to(dtype).requires_grad_()
    expected = loss(narrow.float(), labels)
    for autocast in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found = loss(narrow, labels)
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=0)
        found.backward()
    assert all(parameter.dtype == torch.float32 for parameter in loss.parameters())
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_centres_that_fall_together_have_a_gradient_that_is_finite() -> None:
    centres = torch.ones(4, 3, requires_grad=True)
    centre_distance(centres, 2).backward()
    assert centres.grad is not None
    assert bool(torch.isfinite(centres.grad).all())


def test_settings_that_a_rival_refuses() -> None:
    for name, setting in (("contrastive", {}), ("triplet", {"scale": 3.0}), ("triplet", {"margin": 0})):
        with pytest.raises(SettingsError):
            RivalLoss(name, C, D, **setting)  # type: ignore[arg-type]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(MissingExtraError) as caught:
        RivalLoss("triplet", C, D)
    assert caught.value.extra == "baselines"


def test_every_rival_has_published_settings() -> None:
    assert list(RIVALS) == NAMES
