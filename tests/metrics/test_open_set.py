"""Answers by neighbours, against loops over queries and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from labelled_points import sample
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from tuplet.errors import DataError, SettingsError
from tuplet.metrics.answers import NO_LABEL, vote
from tuplet.metrics.open_set import Answers
from tuplet.metrics.verification import Verification


def by_hand(
    x: NDArray[np.float64], labels: NDArray[np.int64], k: int
) -> tuple[list[float], list[bool], list[bool]]:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    scores, right, known = [], [], []
    for query in range(len(x)):
        for has_class in (True, False):
            rows = [
                row for row in range(len(x)) if row != query and (has_class or labels[row] != labels[query])
            ]
            if has_class and not any(labels[row] == labels[query] for row in rows):
                continue
            rows = sorted(rows, key=lambda row: -unit[row] @ unit[query])[:k]
            sums: dict[int, float] = {}
            for row in rows:
                sums[labels[row]] = sums.get(labels[row], 0.0) + max(unit[row] @ unit[query], 0.0)
            winner = max(sums, key=lambda label: sums[label])
            scores.append(max(unit[row] @ unit[query] for row in rows if labels[row] == winner))
            right.append(has_class and winner == labels[query])
            known.append(has_class)
    return scores, right, known


@pytest.mark.parametrize("k", [1, 4])
def test_every_query_is_asked_twice(k: int) -> None:
    x, labels = sample(9, 1.2, 1)
    found = Answers.of(x, labels, num_votes=k)
    scores, right, known = map(np.array, by_hand(x, labels, k))
    for kind in (True, False):
        mine, other = found.scores[found.known == kind], scores[known == kind]
        np.testing.assert_allclose(mine, other, atol=1e-9)
    np.testing.assert_array_equal(found.right[found.known], right[known])
    report = found.report(num_resamples=100)
    assert report.auroc == pytest.approx(roc_auc_score(found.known, found.scores), abs=1e-12)
    assert report.accuracy == right[known].mean()


def test_detection_and_thresholds_by_their_definitions() -> None:
    x, labels = sample(20, 1.2, 2)
    found = Answers.of(x, labels)
    report = found.report(num_resamples=100)
    unknown = found.scores[~found.known]
    for fpir, rate in report.detection.items():
        allowed = [t for t in np.unique(found.scores) if (unknown >= t).mean() <= float(fpir)]
        right = found.right & (found.scores >= min(allowed))
        assert rate == right.sum() / found.known.sum()
    at = found.at_threshold(0.5, num_resamples=100)
    given = found.scores >= 0.5
    assert at.precision == found.right[given].mean()
    assert at.answered == pytest.approx(given[found.known].mean())
    assert at.detected == pytest.approx((unknown < 0.5).mean())
    for name in ("precision", "answered", "right", "detected"):
        interval = at.intervals[name]
        assert interval is not None
        assert interval.low <= getattr(at, name) <= interval.high


def test_risk_and_coverage() -> None:
    answers = Answers(
        np.array([0.9, 0.8, 0.8, 0.1, 0.5]),
        np.array([True, True, False, False, False]),
        np.array([True, True, True, True, False]),
        np.array([0, 0, 1, 1, 0]),
        1,
    )
    coverage, risk = answers.risk_coverage()
    assert coverage.tolist() == [0.25, 0.75, 1.0]
    np.testing.assert_allclose(risk, [0, 1 / 3, 1 / 2])
    assert answers.report(num_resamples=100).aurc == pytest.approx(0 / 4 + 2 / 4 / 3 + 1 / 4 / 2)


def test_numpy_1_has_no_trapezoid(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers.of(*sample(9, 1.2, 1))
    expected = answers.report(num_resamples=100)
    monkeypatch.delattr(np, "trapezoid", raising=False)
    assert answers.report(num_resamples=100) == expected


def test_votes() -> None:
    cosines = np.array([[0.9, 0.5, 0.45, 0.2]])
    assert vote(np.array([[1, 2, 2, 1]]), cosines).tolist() == [0]
    assert vote(np.array([[1, 2, 2, 2]]), cosines).tolist() == [1]
    # Items without a label do not stand together, and negative cosines do not count.
    assert vote(np.array([[1, NO_LABEL, NO_LABEL, NO_LABEL]]), cosines).tolist() == [0]
    assert vote(np.array([[5, 6, 6]]), np.array([[-0.1, -0.2, -0.3]])).tolist() == [0]
    assert vote(np.array([[1, 2]]), np.array([[0.5, 0.5]])).tolist() == [0]


def test_bad_input() -> None:
    with pytest.raises(SettingsError):
        Answers.of(np.eye(4), [0, 0, 1, 1], num_votes=0)
    for labels in ([0, 1, 2, 3], [0, 0, 0, 0]):
        with pytest.raises(DataError) as raised:
            Answers.of(np.eye(4), labels)
        assert raised.value.subject == "labels"


@pytest.mark.parametrize(
    ("setting", "value"), [("level", 95), ("level", 0.0), ("num_resamples", 0), ("seed", -1)]
)
def test_settings_of_intervals_out_of_range(setting: str, value: float) -> None:
    answers = Answers.of(*sample(9, 1.2, 1))
    for measure in (answers.report, lambda **given: answers.at_threshold(0.5, **given)):
        with pytest.raises(SettingsError) as raised:
            measure(**{setting: value})
        assert raised.value.subject == setting


def test_nan_is_no_threshold() -> None:
    x, labels = sample(9, 1.2, 1)
    for measured in (Answers.of(x, labels), Verification.of(x, labels)):
        with pytest.raises(SettingsError) as raised:
            measured.at_threshold(float("nan"))
        assert raised.value.subject == "threshold"
