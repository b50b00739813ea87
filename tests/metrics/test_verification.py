"""Verification against scikit-learn and the definitions, written out over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelled_points import sample
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from tuplet.errors import DataError, SettingsError
from tuplet.metrics.exact import pairs as pairs_module
from tuplet.metrics.exact.pairs import STEPS
from tuplet.metrics.verification import (
    RateAt,
    Verification,
    verification_intervals,
    verification_metrics,
)

Floats = NDArray[np.float64]


def all_pairs(x: Floats, labels: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
    """Cosines on the grid of every pair, whether it is genuine, and its two items."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    i, j = np.triu_indices(len(x), 1)
    return np.round((unit[i] * unit[j]).sum(1) * STEPS) / STEPS, labels[i] == labels[j], np.stack([i, j])


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_against_scikit_learn(noise: float) -> None:
    x, labels = sample(15, noise, 1)
    cosines, genuine, _ = all_pairs(x, labels)
    found = verification_metrics(x, labels, intervals=False)
    assert found.auc == pytest.approx(roc_auc_score(genuine, cosines), abs=1e-12)
    fmr, tpr, _ = roc_curve(genuine, cosines, drop_intermediate=False)
    grid = np.linspace(0, 1, 200_001)
    distance = np.interp(grid, fmr, 1 - tpr) - grid
    assert found.eer == pytest.approx(grid[np.abs(distance).argmin()], abs=1e-5)
    assert (found.num_genuine, found.num_impostor) == (genuine.sum(), (~genuine).sum())


@pytest.mark.parametrize("fmr", [0.5, 1e-1, 1e-2, 1e-4])
def test_rates_are_those_of_frvt(fmr: float) -> None:
    x, labels = sample(20, 1.5, 2)
    cosines, genuine, _ = all_pairs(x, labels)
    point = verification_metrics(x, labels, fmrs=[fmr], intervals=False).at_fmr[fmr]
    assert point.fmr == (cosines[~genuine] >= point.threshold).mean() <= fmr
    assert point.fnmr == pytest.approx((cosines[genuine] < point.threshold).mean(), abs=1e-12)
    # No lower threshold has that FMR: the grid point below lets one more impostor pair pass.
    assert (cosines[~genuine] >= point.threshold - 1 / STEPS).mean() > fmr


def test_small_blocks_threads_and_order_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = sample(15, 1.0, 3)
    whole = verification_metrics(x.astype(np.float32), labels)
    monkeypatch.setattr(pairs_module, "BLOCK_ROWS", 7)
    monkeypatch.setattr(pairs_module, "BLOCK_COLUMNS", 5)
    parts = verification_metrics(torch.from_numpy(x.astype(np.float32)), labels)
    assert parts == whole
    order = np.random.default_rng(0).permutation(len(labels))
    mixed = verification_metrics(x.astype(np.float32)[order], labels[order], intervals=False)
    assert (mixed.auc, mixed.eer, mixed.ties) == (whole.auc, whole.eer, whole.ties)
    assert [point.threshold for point in mixed.at_fmr.values()] == [
        point.threshold for point in whole.at_fmr.values()
    ]


def test_balanced_is_the_mean_over_classes_and_over_pairs_of_classes() -> None:
    x, labels = sample(8, 1.0, 4)
    cosines, genuine, (i, j) = all_pairs(x, labels)
    found = Verification.of(x, labels, balanced=True).at_threshold(0.25)
    lost = [
        (cosines[genuine & (labels[i] == c)] < 0.25).mean()
        for c in np.unique(labels)
        if (labels == c).sum() > 1
    ]
    a, b = np.minimum(labels[i], labels[j]), np.maximum(labels[i], labels[j])
    passed = [
        (cosines[(a == c) & (b == d)] >= 0.25).mean()
        for c, d in {*zip(a.tolist(), b.tolist(), strict=True)}
        if c != d
    ]
    assert found.fnmr == pytest.approx(np.mean(lost), abs=1e-12)
    assert found.fmr == pytest.approx(np.mean(passed), abs=1e-12)


def test_a_gallery_is_paired_with_the_queries_only() -> None:
    x, labels = sample(12, 1.0, 5)
    half = len(labels) // 2
    found = verification_metrics(
        x[:half], labels[:half], gallery=x[half:], gallery_labels=labels[half:], intervals=False
    )
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = np.round(unit[:half] @ unit[half:].T * STEPS) / STEPS
    genuine = labels[:half, None] == labels[half:]
    assert found.auc == pytest.approx(roc_auc_score(genuine.ravel(), cosines.ravel()), abs=1e-9)
    assert found.num_genuine + found.num_impostor == genuine.size


def test_equal_embeddings_tie_everywhere() -> None:
    found = verification_metrics(np.ones((6, 3)), [0, 0, 0, 1, 1, 1], fmrs=[0.1])
    assert (found.auc, found.eer, found.ties) == (0.5, 0.5, 1.0)
    # Every impostor pair has the cosine 1, so that only a threshold above it has an FMR below 1.
    point = found.at_fmr[0.1]
    assert point.threshold > 1
    assert (point.fmr, point.fnmr) == (0.0, 1.0)


def test_perfect_embeddings() -> None:
    x = np.repeat(np.eye(4), 3, axis=0)
    found = verification_metrics(x, np.arange(12) // 3, fmrs=[1e-4])
    assert (found.auc, found.eer, found.ties) == (1.0, 0.0, 0.0)
    assert found.at_fmr[1e-4].fnmr == 0.0
    assert found.at_fmr[1e-4].fnmr_interval is not None
    assert found.auc_interval is not None
    assert (found.auc_interval.low, found.auc_interval.high) == (1.0, 1.0)


def test_thresholds_that_were_asked_for_by_fnmr() -> None:
    x, labels = sample(12, 1.5, 6)
    cosines, genuine, _ = all_pairs(x, labels)
    point = Verification.of(x, labels).at_fnmr(0.05)
    assert point.fnmr <= 0.05 < (cosines[genuine] < point.threshold + 1 / STEPS).mean()


def test_intervals_cover_what_other_classes_would_give() -> None:
    """Of 16 samples of 30 classes, at least 13 intervals of 95 % hold the value over very many classes."""
    everything = Verification.of(*sample(1000, 1.2, 99, dim=8))
    truth, at = everything.auc()[0], everything.at_threshold(0.6)
    held = np.zeros(3, dtype=int)
    for seed in range(16):
        pairs = Verification.of(*sample(30, 1.2, seed, dim=8), by_class=True, thresholds=[0.6])
        assert pairs.counts.units is not None
        own = pairs.at_threshold(0.6)
        values = {"auc": pairs.auc()[0], RateAt("fmr", 0.6): own.fmr, RateAt("fnmr", 0.6): own.fnmr}
        found = verification_intervals(pairs.counts.units, values, num_resamples=300)
        for place, (one, value) in enumerate(zip(found.values(), (truth, at.fmr, at.fnmr), strict=True)):
            assert one is not None
            held[place] += one.low <= value <= one.high
    assert held.min() >= 13


def test_more_classes_than_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "MOST_UNITS", 5)
    x, labels = sample(40, 1.0, 7)
    found = verification_metrics(x, labels)
    assert found.auc_interval is not None
    assert found.auc_interval.low < found.auc < found.auc_interval.high


@pytest.mark.parametrize(
    ("labels", "rows"),
    [([0, 1, 2], 3), ([0, 0, 0], 3), ([0, 0], 3)],
    ids=["no genuine", "one class", "short"],
)
def test_labels_that_cannot_be_measured(labels: list[int], rows: int) -> None:
    with pytest.raises(DataError) as raised:
        verification_metrics(np.eye(rows), labels)
    assert raised.value.subject == "labels"
    assert "\n" not in str(raised.value)


def test_settings_out_of_range() -> None:
    for settings in ({"fmrs": [0.0]}, {"fmrs": [1.0]}, {"level": 1.5}, {"num_resamples": 3}):
        with pytest.raises(SettingsError) as raised:
            verification_metrics(np.eye(4), [0, 0, 1, 1], **settings)  # type: ignore[arg-type]
        assert raised.value.subject == next(iter(settings))
