"""Choose thresholds and fit probabilities on validation classes; measure both on test classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from tuplet.errors import DataError, SettingsError
from tuplet.evaluation.calibration import (
    Calibration,
    CalibrationCheck,
    Goal,
    Method,
    ProbabilityCurve,
)
from tuplet.evaluation.embedding_files import LabelledEmbeddings
from tuplet.metrics.answers import NUM_VOTES, OperatingPoint
from tuplet.metrics.exact.pairs import NUM_POINTS, STEPS
from tuplet.metrics.open_set import Answers
from tuplet.metrics.verification import RateAt, Verification, verification_intervals

NUM_BINS = 15
"""Of equal width, for the expected calibration error."""


@dataclass(frozen=True)
class CalibrationSettings:
    """What a threshold is chosen for.

    Attributes:
        goal: a false match rate of pairs, a precision of answers, or the best F1 of answers.
        wanted: that rate or precision, in (0, 1); None for F1.
        miss: most of the queries whose class is there that are answered "nothing like it here", in [0, 1).
        num_votes: neighbours that vote, >= 1.
        method: how probabilities are fitted: any rising curve, or a logistic one.
    """

    goal: Goal = "fmr"
    wanted: float | None = 1e-3
    miss: float = 0.05
    num_votes: int = NUM_VOTES
    method: Method = "isotonic"

    def __post_init__(self) -> None:
        known = self.wanted is None if self.goal == "f1" else self.wanted is not None and 0 < self.wanted < 1
        for name, fits, wanted in (
            (self.goal, known, "a share in (0, 1); none for f1"),
            ("miss", 0 <= self.miss < 1, "a share in [0, 1)"),
            ("num_votes", self.num_votes >= 1, "1 or more"),
        ):
            if not fits:
                given = self.wanted if name == self.goal else getattr(self, name)
                raise SettingsError(f"{name} is {given}; want {wanted}", subject=name, given=given)


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers of about one probability.

    Attributes:
        share: of all answers.
        probability: their mean, as the curve says.
        right: share of them that is right.
    """

    share: float
    probability: float
    right: float


@dataclass(frozen=True)
class MeasuredSet:
    """Images, asked and paired.

    Attributes:
        source: what to call them.
        images: embedded.
        answers: to each, with and without its class.
        pairs: of all of them.
    """

    source: str
    images: LabelledEmbeddings
    answers: Answers
    pairs: Verification

    @classmethod
    def of(cls, source: str, images: LabelledEmbeddings, num_votes: int = NUM_VOTES) -> MeasuredSet:
        """Ask and pair images; raise DataError if they have no pair of one class, or none of two."""
        x, labels = images.embeddings, images.labels
        pairs = Verification.of(x, labels, by_class=True)
        return cls(source, images, Answers.of(x, labels, num_votes=num_votes), pairs)


def calibrate(
    validation: MeasuredSet,
    test: MeasuredSet | None,
    model: Mapping[str, Any],
    settings: CalibrationSettings = CalibrationSettings(),
) -> Calibration:
    """Choose thresholds and fit probabilities on validation classes, and measure them.

    "same" begins at the lowest cosine that keeps the goal on the validation classes; "unsure" at the highest
    one that loses at most the share `miss` of the queries whose class is there, or where "same" begins.

    Args:
        validation: images of classes that the model was not trained on.
        test: of further classes; nothing is chosen on them.
        model: see `Calibration`.
        settings: the goal.
    Raises:
        DataError: no threshold keeps the goal.
    """
    answers = validation.answers
    same_from = _same_from(validation, settings)
    known = np.sort(answers.scores[answers.known])
    unsure_from = min(same_from, float(known[int(settings.miss * len(known))]))
    curve = fitted_curve(
        answers.scores, answers.right, answer_weights(answers), settings.method, len(answers.scores)
    )
    cosines, genuine, impostor = _binned_pairs(validation.pairs)
    pair_curve = fitted_curve(
        np.concatenate([cosines, cosines]),
        np.repeat([True, False], len(cosines)),
        np.concatenate([genuine, impostor]),
        settings.method,
        validation.pairs.counts.num_genuine,
    )

    def check(images: MeasuredSet) -> CalibrationCheck:
        return _checked(images, same_from, unsure_from, curve, pair_curve)

    return Calibration(
        model,
        settings.goal,
        settings.wanted,
        settings.miss,
        settings.num_votes,
        same_from,
        unsure_from,
        curve,
        pair_curve,
        check(validation),
        None if test is None else check(test),
    )


def _same_from(validation: MeasuredSet, settings: CalibrationSettings) -> float:
    if settings.goal == "fmr":
        assert settings.wanted is not None
        threshold = validation.pairs.at_fmr(settings.wanted).threshold
        if threshold > 1:
            raise DataError(
                f"no cosine has an FMR of {settings.wanted:g} on {validation.source}, for more pairs of two"
                " classes than that are the same vector; want a larger --fmr, or another model",
                subject="fmr",
                given=settings.wanted,
            )
        return threshold
    scores, precision, right = validation.answers.thresholds()
    if settings.goal == "f1":
        with np.errstate(invalid="ignore"):
            f1 = np.nan_to_num(2 * precision * right / (precision + right))
        return float(scores[f1.argmax()])
    assert settings.wanted is not None
    kept = np.flatnonzero(precision >= settings.wanted)
    if len(kept) == 0:
        best = int(precision.argmax())
        raise DataError(
            f"no threshold gives a precision of {settings.wanted:g} on {validation.source}: the best is"
            f" {precision[best]:.3f}, with {100 * right[best]:.1f} % of the known answered rightly; want a"
            " lower --precision, or a better model",
            subject="precision",
            given=settings.wanted,
            wanted=float(precision[best]),
        )
    return float(scores[kept[-1]])


def fitted_curve(
    cosines: Float64[np.ndarray, " n"],
    right: Bool[np.ndarray, " n"],
    weights: Float64[np.ndarray, " n"],
    method: Method,
    count: int,
) -> ProbabilityCurve:
    """Fit the probability of being right by cosine.

    Args:
        cosines: of the answers or pairs.
        right: which of them are right; some are and some are not.
        weights: of them, >= 0.
        method: isotonic: the best of all rising curves (scikit-learn); platt: a logistic curve.
        count: behind it; no probability is nearer to 0 or 1 than 1 / (count + 2), which so few can show.
    """
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        fit = IsotonicRegression(y_min=0, y_max=1).fit(cosines, right.astype(float), weights)
        x, y = fit.X_thresholds_, fit.y_thresholds_
    else:
        from sklearn.linear_model import LogisticRegression

        # Without a penalty to speak of; centred and scaled, for the solver.
        mean, scale = cosines.mean(), max(float(cosines.std()), 1e-9)
        fit = LogisticRegression(C=1e6).fit((cosines[:, None] - mean) / scale, right, weights * len(weights))
        slope, intercept = max(float(fit.coef_[0, 0]), 1e-6) / scale, float(fit.intercept_[0])
        # Knots at even steps of probability: straight lines between them err by less than 1e-3.
        y = np.concatenate([[1e-5, 1e-4, 1e-3], np.linspace(0.005, 0.995, 199), [0.999, 0.9999, 0.99999]])
        x = mean + (np.log(y / (1 - y)) - intercept) / slope
    least = 1 / (count + 2)
    y = np.clip(y, least, 1 - least)
    return ProbabilityCurve(tuple(map(float, x)), tuple(map(float, y)))


def answer_weights(answers: Answers) -> Float64[np.ndarray, " n"]:
    """Return weights by which known and unknown queries are one half each."""
    known = answers.known
    weights: Float64[np.ndarray, " n"] = np.where(known, 0.5 / known.sum(), 0.5 / (~known).sum())
    return weights


def reliability(
    probabilities: Float64[np.ndarray, " n"],
    right: Float64[np.ndarray, " n"],
    weights: Float64[np.ndarray, " n"],
) -> list[ReliabilityBin]:
    """Return the bins of equal width that are not empty, by rising probability."""
    place = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    total = weights.sum()
    sums = [np.bincount(place, weights * what, NUM_BINS) for what in (1.0, probabilities, right)]
    return [
        ReliabilityBin(float(w / total), float(p / w), float(r / w))
        for w, p, r in zip(*sums, strict=True)
        if w > 0
    ]


def calibration_error(bins: list[ReliabilityBin]) -> float:
    """Compute the expected calibration error: the mean of |probability - share of right ones|.

    References: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    return sum(one.share * abs(one.probability - one.right) for one in bins)


def answer_reliability(answers: Answers, curve: ProbabilityCurve) -> list[ReliabilityBin]:
    """Return the reliability of the probabilities of answers, known and unknown queries one half each."""
    return reliability(curve.at(answers.scores), answers.right.astype(np.float64), answer_weights(answers))


def _binned_pairs(
    pairs: Verification,
) -> tuple[Float64[np.ndarray, " K"], Float64[np.ndarray, " K"], Float64[np.ndarray, " K"]]:
    """Return the middle of each bin that holds pairs, and its shares of genuine and of impostor pairs, 0.5
    each in all.
    """
    units = pairs.counts.units
    assert units is not None
    ends = np.append(units.starts[1:], NUM_POINTS) - 1
    middle = (units.starts + ends) / 2 / STEPS - 1
    genuine, impostor = (
        np.add.reduceat(kind, units.starts).astype(np.float64)
        for kind in (pairs.counts.genuine, pairs.counts.impostor)
    )
    some = genuine + impostor > 0
    return middle[some], (0.5 * genuine / genuine.sum())[some], (0.5 * impostor / impostor.sum())[some]


def _checked(
    images: MeasuredSet,
    same_from: float,
    unsure_from: float,
    curve: ProbabilityCurve,
    pair_curve: ProbabilityCurve,
) -> CalibrationCheck:
    answers, labels = images.answers, images.images.labels
    cosines, genuine, impostor = _binned_pairs(images.pairs)
    weights = genuine + impostor
    return CalibrationCheck(
        images.source,
        len(labels),
        len(np.unique(labels)),
        _pairs_at(images.pairs, same_from),
        answers.at_threshold(same_from),
        answers.at_threshold(unsure_from),
        answers.report(num_resamples=100).auroc,
        calibration_error(answer_reliability(answers, curve)),
        calibration_error(reliability(pair_curve.at(cosines), genuine / weights, weights)),
    )


def _pairs_at(pairs: Verification, threshold: float) -> OperatingPoint:
    """Return the error rates at a threshold, with intervals over classes."""
    point, units = pairs.at_threshold(threshold), pairs.counts.units
    assert units is not None
    fmr, fnmr = RateAt("fmr", threshold), RateAt("fnmr", threshold)
    found = verification_intervals(units, {fmr: point.fmr, fnmr: point.fnmr})
    return OperatingPoint(threshold, point.fmr, point.fnmr, found[fmr], found[fnmr])
