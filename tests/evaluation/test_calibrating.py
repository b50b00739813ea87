"""Thresholds and probabilities: chosen on one set of classes, against their definitions and scikit-learn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_points import sample
from sklearn.isotonic import IsotonicRegression

from tuplet.errors import DataError, ModelError, SettingsError
from tuplet.evaluation.calibrating import (
    CalibrationSettings,
    MeasuredSet,
    answer_weights,
    calibrate,
    calibration_error,
    fitted_curve,
    reliability,
)
from tuplet.evaluation.calibration import Calibration, ProbabilityCurve, read_calibration
from tuplet.evaluation.embedding_files import LabelledEmbeddings

MODEL = {"weights": "0" * 64, "dim": 12}


def measured(seed: int, noise: float = 0.8, num_classes: int = 30) -> MeasuredSet:
    return MeasuredSet.of(f"seed {seed}", LabelledEmbeddings(*sample(num_classes, noise, seed)))


@pytest.fixture(scope="module")
def validation() -> MeasuredSet:
    return measured(1)


@pytest.fixture(scope="module")
def test_set() -> MeasuredSet:
    return measured(2)


@pytest.fixture(scope="module")
def found(validation: MeasuredSet, test_set: MeasuredSet) -> Calibration:
    return calibrate(validation, test_set, MODEL, CalibrationSettings("precision", 0.9))


def test_precision_is_kept_by_the_lowest_such_threshold(validation: MeasuredSet, found: Calibration) -> None:
    answers = validation.answers
    lower = np.unique(answers.scores[answers.scores < found.same_from])
    assert answers.right[answers.scores >= found.same_from].mean() >= 0.9
    assert all(answers.right[answers.scores >= one].mean() < 0.9 for one in lower)
    assert found.validation.answers.precision >= 0.9


def test_unsure_begins_where_few_known_are_missed(validation: MeasuredSet, found: Calibration) -> None:
    known = validation.answers.scores[validation.answers.known]
    if found.unsure_from < found.same_from:
        assert (known < found.unsure_from).mean() <= 0.05 < (known <= found.unsure_from).mean()
    assert found.validation.not_nothing.answered >= 0.95


def test_other_goals(validation: MeasuredSet) -> None:
    by_fmr = calibrate(validation, None, MODEL, CalibrationSettings("fmr", 0.01))
    assert by_fmr.test is None
    assert by_fmr.same_from == validation.pairs.at_fmr(0.01).threshold
    assert by_fmr.validation.pairs.fmr <= 0.01
    by_f1 = calibrate(validation, None, MODEL, CalibrationSettings("f1", None))
    answers = validation.answers

    def f1(threshold: float) -> float:
        given = answers.scores >= threshold
        right = answers.right[given].sum()
        return float(2 * right / (given.sum() + answers.known.sum()))

    assert f1(by_f1.same_from) == pytest.approx(max(map(f1, np.unique(answers.scores))))


def test_the_promise_lies_in_the_interval_of_other_classes(found: Calibration) -> None:
    assert found.test is not None
    for name in ("precision", "answered", "right", "detected"):
        interval = found.test.answers.intervals[name]
        assert interval is not None
        # Two samples differ, each by about half an interval: allow one more on either side.
        width = interval.high - interval.low
        assert interval.low - width <= getattr(found.validation.answers, name) <= interval.high + width
    assert found.test.pairs.fmr_interval is not None


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_probabilities_are_calibrated_on_other_classes(
    method: Any, validation: MeasuredSet, test_set: MeasuredSet
) -> None:
    settings = CalibrationSettings("precision", 0.9, method=method)
    found = calibrate(validation, test_set, MODEL, settings)
    assert found.test is not None
    # The bare cosine is no probability: its error is far larger.
    answers = test_set.answers
    bare = reliability(answers.scores.clip(0, 1), answers.right.astype(float), answer_weights(answers))
    assert found.test.ece < 0.15 < 2 * found.test.ece < calibration_error(bare)
    assert found.test.pair_ece < 0.06
    probabilities = np.array([found.decide(cosine).probability for cosine in np.linspace(-1, 1, 50)])
    assert (np.diff(probabilities) >= 0).all()
    assert 0 < probabilities.min() < probabilities.max() < 1


def test_isotonic_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    x = random.random(200)
    right = random.random(200) < x
    curve = fitted_curve(x, right, np.ones(200), "isotonic", 200)
    expected = IsotonicRegression(out_of_bounds="clip").fit(x, right).predict(x)
    np.testing.assert_allclose(curve.at(x), expected.clip(1 / 202, 1 - 1 / 202), atol=1e-12)


def test_platt_finds_the_logistic_curve_that_made_the_data() -> None:
    random = np.random.default_rng(0)
    x = random.random(20_000)
    right = random.random(20_000) < 1 / (1 + np.exp(-(12 * x - 6)))
    curve = fitted_curve(x, right, np.ones(20_000), "platt", 20_000)
    assert np.abs(curve.at(x) - 1 / (1 + np.exp(-(12 * x - 6)))).max() < 0.03


def test_calibration_error_by_hand() -> None:
    # Bins of width 1/15: 0.10 and 0.12 share one, 0.9 has its own.
    probabilities, right = np.array([0.10, 0.12, 0.9, 0.9]), np.array([0.0, 1.0, 1.0, 0.0])
    bins = reliability(probabilities, right, np.ones(4))
    assert len(bins) == 2
    assert calibration_error(bins) == pytest.approx(0.5 * abs(0.11 - 0.5) + 0.5 * abs(0.9 - 0.5))


def test_answers(found: Calibration) -> None:
    fixed = replace(found, same_from=0.8, unsure_from=0.5)
    words = [fixed.decide(cosine).answer for cosine in (0.8, 0.79, 0.5, 0.49)]
    assert words == ["same", "unsure", "unsure", "nothing like it here"]
    assert fixed.compare(0.2).answer == "different"


def test_a_goal_that_is_missed_on_test_classes_is_said_so(
    validation: MeasuredSet, test_set: MeasuredSet
) -> None:
    kept = calibrate(validation, test_set, MODEL, CalibrationSettings("fmr", 0.5))
    missed = calibrate(
        measured(1, noise=0.3), measured(2, noise=3.0), MODEL, CalibrationSettings("precision", 0.95)
    )
    assert kept.broken_promise == ""
    assert "precision 0.95" in missed.broken_promise


def test_what_was_written_is_read_back(found: Calibration, tmp_path: Path) -> None:
    found.write(tmp_path / "calibration.json")
    assert read_calibration(tmp_path / "calibration.json") == found


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"same_from": "high"},
        {"unsure_from": 5.0},
        {"answer_curve": {"cosines": [0, 1], "probabilities": [1, 0]}},
        {"answer_curve": {"cosines": [], "probabilities": []}},
        {"surplus": 1},
        {"validation": {}},
    ],
)
def test_a_damaged_file_is_refused(change: dict[str, Any], found: Calibration, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    found.write(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError) as raised:
        read_calibration(file)
    assert raised.value.subject == str(file)
    assert "\n" not in str(raised.value)


def test_goals_that_cannot_be_kept() -> None:
    with pytest.raises(DataError) as raised:
        calibrate(measured(3, noise=20.0), None, MODEL, CalibrationSettings("precision", 0.999))
    assert (raised.value.subject, raised.value.given) == ("precision", 0.999)
    same = MeasuredSet.of("copies", LabelledEmbeddings(np.ones((6, 2)), np.arange(6) // 2))
    with pytest.raises(DataError) as raised:
        calibrate(same, None, MODEL, CalibrationSettings("fmr", 0.01))
    assert raised.value.subject == "fmr"


def test_settings_out_of_range() -> None:
    for settings in ({"wanted": 1.0}, {"goal": "f1"}, {"miss": 1.0}, {"num_votes": 0}, {"wanted": None}):
        with pytest.raises(SettingsError):
            CalibrationSettings(**settings)  # type: ignore[arg-type]


def test_curves_that_fall_are_refused() -> None:
    with pytest.raises(ValueError, match="falls"):
        ProbabilityCurve((0.0, 1.0), (0.9, 0.1))
