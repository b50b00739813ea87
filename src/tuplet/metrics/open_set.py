"""The quality of answers by neighbours, for classes that are in the gallery and for unknown ones (open set).

Every query is asked twice: once with its class in the gallery (a *known* query; it is never in the gallery
itself), and once without any item of its class (an *unknown* one). The answer is a vote of the k nearest
items, and its score says how similar the nearest item of the class that won is. Below a threshold on the
score there is no answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from tuplet.config.checks import require
from tuplet.errors import DataError, SettingsError
from tuplet.metrics.answers import NUM_VOTES, AnswersAt, vote
from tuplet.metrics.exact.labelled import labelled_search
from tuplet.metrics.exact.shares import ALONE, Shares
from tuplet.metrics.exact.sorting import blocks, exact_similarities, first_results
from tuplet.metrics.inputs import Array
from tuplet.metrics.intervals import Interval, check_settings, draws, expanded_tail
from tuplet.progress import track

FPIRS = (1e-1, 1e-2)
"""Shares of unknown queries that are answered, at which the detection rate is reported."""


@dataclass(frozen=True)
class OpenSetReport:
    """The quality of answers by neighbours.

    Attributes:
        accuracy: share of known queries whose answer is right, if all are answered.
        aurc: area under the risk-coverage curve of the known queries: the mean share of wrong answers, over
            all shares of queries that could be answered, the surest first.
        auroc: share of (known, unknown) comparisons in which the known query's score is larger.
        detection: by FPIR, the share of unknown queries that are answered: the share of known queries that
            are answered rightly at the lowest threshold with at most that FPIR (NIST's 1 - FNIR).
        intervals: over classes, by "accuracy", "aurc", "auroc" and "detection_at_FPIR".
        num_known, num_unknown: queries asked with and without their class.
        num_votes: neighbours that vote.
    """

    accuracy: float
    aurc: float
    auroc: float
    detection: dict[str, float]
    intervals: Mapping[str, Interval | None]
    num_known: int
    num_unknown: int
    num_votes: int


@final
@dataclass(frozen=True)
class _Sums:
    """Weight of the queries with at least some score; measures are NaN where none of a kind has a weight.

    Attributes:
        scores: every score, falling, `[g]`.
        known: weight of known queries with at least this score; the last is that of all.
        right: of known queries that are answered rightly.
        unknown: of unknown queries.
    """

    scores: Float64[np.ndarray, " g"]
    known: Float64[np.ndarray, " g"]
    right: Float64[np.ndarray, " g"]
    unknown: Float64[np.ndarray, " g"]

    def accuracy(self) -> float:
        return float(self.right[-1] / self.known[-1])

    def aurc(self) -> float:
        steps = np.diff(self.known, prepend=0.0)
        some = self.known > 0
        risks = 1 - self.right[some] / self.known[some]
        return float((steps[some] * risks).sum() / self.known[-1])

    def auroc(self) -> float:
        x, y = (np.append(0.0, kind) / kind[-1] for kind in (self.unknown, self.known))
        return float((np.diff(x) * (y[1:] + y[:-1]) / 2.0).sum())

    def detection(self, *, fpir: float) -> float:
        place = int(np.searchsorted(self.unknown, fpir * self.unknown[-1] * (1 + 1e-12), side="right"))
        return float((self.right[place - 1] if place else 0.0) / self.known[-1])

    def precision(self, *, threshold: float) -> float:
        known, right, unknown = self._from(threshold)
        return right / (known + unknown) if known + unknown > 0 else 1.0

    def answered(self, *, threshold: float) -> float:
        return float(np.divide(self._from(threshold)[0], self.known[-1]))

    def answered_rightly(self, *, threshold: float) -> float:
        return float(np.divide(self._from(threshold)[1], self.known[-1]))

    def detected(self, *, threshold: float) -> float:
        return float(1 - np.divide(self._from(threshold)[2], self.unknown[-1]))

    def _from(self, threshold: float) -> tuple[float, float, float]:
        """Return the three weights of queries with a score of at least a threshold."""
        place = int(np.searchsorted(-self.scores, -threshold, side="right"))
        if place == 0:
            return 0.0, 0.0, 0.0
        return float(self.known[place - 1]), float(self.right[place - 1]), float(self.unknown[place - 1])


_Measure: TypeAlias = Callable[[_Sums], float]
"""What is computed of the queries, or of a resample of them."""


@final
@dataclass(frozen=True)
class Answers:
    """Answers to known and unknown queries.

    Attributes:
        scores: of the answer to each query, `[n]`.
        right: whether the answer is the query's class; False for unknown queries.
        known: whether the query's class was in the gallery.
        labels: class of each query, which intervals draw.
        num_votes: neighbours that voted.
    """

    scores: Float64[np.ndarray, " n"]
    right: Bool[np.ndarray, " n"]
    known: Bool[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    num_votes: int

    def __post_init__(self) -> None:
        for queries, what in ((self.known, "known"), (~self.known, "unknown")):
            if not queries.any():
                raise DataError(f"there is no {what} query; want at least one", subject="labels")

    @classmethod
    def of(
        cls,
        embeddings: Float[Array, "N D"],
        labels: Int[Array, " N"],
        *,
        num_votes: int = NUM_VOTES,
        gallery: Float[Array, "M D"] | None = None,
        gallery_labels: Int[Array, " M"] | None = None,
        shares: Shares = ALONE,
    ) -> Answers:
        """Ask every query twice.

        Cosines and ties are those of `retrieval_metrics`. Time is that of sorting all similarities twice.

        Args:
            embeddings: of the queries, finite.
            labels: class of each.
            num_votes: nearest items that vote, >= 1.
            gallery: what is asked; None: the other queries.
            gallery_labels: class of each gallery item; given exactly where `gallery` is.
            shares: ranks that hold the same items and ask for a part of the queries each; call it on all of
                them.
        Raises:
            DataError: embeddings or labels that cannot be used, no query with an item of its class to find,
                or none with an item of another class.
            SettingsError: `num_votes` < 1.
        """
        if num_votes < 1:
            message = f"num_votes is {num_votes}; want 1 or more"
            raise SettingsError(message, subject="num_votes", given=num_votes)
        search = labelled_search(embeddings, labels, gallery, gallery_labels)
        own = search.labels
        searched = own if search.gallery_labels is None else search.gallery_labels
        # Renumber labels from 0 on: any integer may be a label, also NO_LABEL.
        renumbered = torch.unique(torch.cat([own, searched]), return_inverse=True)[1]
        own, searched = renumbered[: len(own)], renumbered[len(own) :]
        rows = torch.arange(len(own), device=own.device)
        parts = [
            _ask(exact_similarities(search.compared, block), own[block], searched, num_votes)
            for block in track(shares.own(blocks(rows, len(searched))), "asking neighbours")
        ]
        columns = zip(*shares.gather(parts), strict=True)
        scores, right, known, classes = (np.concatenate(column) for column in columns)
        return cls(scores, right, known, classes, num_votes)

    def report(self, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0) -> OpenSetReport:
        """Measure the answers; settings are those of `mean_intervals`."""
        detections = {f"{fpir:g}": partial(_Sums.detection, fpir=fpir) for fpir in FPIRS}
        measures: dict[str, _Measure] = {
            "accuracy": _Sums.accuracy,
            "aurc": _Sums.aurc,
            "auroc": _Sums.auroc,
            **{f"detection_at_{fpir}": detection for fpir, detection in detections.items()},
        }
        values, intervals = self._measured(measures, level=level, num_resamples=num_resamples, seed=seed)
        detection = {fpir: values[f"detection_at_{fpir}"] for fpir in detections}
        sizes = (int(self.known.sum()), int((~self.known).sum()), self.num_votes)
        head = (values["accuracy"], values["aurc"], values["auroc"])
        return OpenSetReport(*head, detection, intervals, *sizes)

    def at_threshold(
        self, threshold: float, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
    ) -> AnswersAt:
        """Measure the answers whose score is at least a threshold; settings are those of `mean_intervals`.

        The precision of no answers at all is 1.

        Raises:
            SettingsError: the threshold is NaN, or a setting is out of range.
        """
        require(not math.isnan(threshold), "threshold", threshold, "a cosine")
        measures: dict[str, _Measure] = {
            "precision": partial(_Sums.precision, threshold=threshold),
            "answered": partial(_Sums.answered, threshold=threshold),
            "right": partial(_Sums.answered_rightly, threshold=threshold),
            "detected": partial(_Sums.detected, threshold=threshold),
        }
        values, intervals = self._measured(measures, level=level, num_resamples=num_resamples, seed=seed)
        return AnswersAt(threshold, **values, intervals=intervals)

    def risk_coverage(self) -> tuple[Float64[np.ndarray, " g"], Float64[np.ndarray, " g"]]:
        """Return shares of known queries that are answered, rising, and of wrong answers among those."""
        of = _Sorted(self)
        known, right = np.cumsum(of.known)[of.ends], np.cumsum(of.right)[of.ends]
        some = np.diff(known, prepend=0) > 0
        return known[some] / known[-1], 1 - right[some] / known[some]

    def thresholds(
        self,
    ) -> tuple[Float64[np.ndarray, " g"], Float64[np.ndarray, " g"], Float64[np.ndarray, " g"]]:
        """Return every score, falling, with the precision and the share of right known answers from it on."""
        of = _Sorted(self)
        right, given = np.cumsum(of.right)[of.ends], of.ends + 1
        return of.scores[of.ends], right / given, right / of.known.sum()

    def _measured(
        self, measures: Mapping[str, _Measure], *, level: float, num_resamples: int, seed: int
    ) -> tuple[dict[str, float], dict[str, Interval | None]]:
        check_settings(level=level, num_resamples=num_resamples, seed=seed)
        of = _Sorted(self)

        def values_of(weights: Float64[np.ndarray, " n"]) -> list[float]:
            sums = of.sums(weights)
            with np.errstate(invalid="ignore", divide="ignore"):
                return [measure(sums) for measure in measures.values()]

        values = dict(zip(measures, values_of(np.ones(len(self.scores))), strict=True))
        _, classes = np.unique(self.labels[of.order], return_inverse=True)
        num_units = int(classes.max()) + 1
        if num_units < 2:
            return values, dict.fromkeys(measures)
        # One resample at a time: a weight a query each.
        resampled = [
            values_of(row[classes]) for block in draws(num_units, num_resamples, seed) for row in block
        ]
        tail = expanded_tail(num_units, level)
        # A measure is NaN in a resample without a known (or unknown) query: leave it out there.
        low, high = np.nanquantile(np.array(resampled), [tail, 1 - tail], axis=0).tolist()
        return values, {
            name: Interval(low[at], high[at], "classes", level, num_resamples, seed)
            for at, name in enumerate(measures)
        }


def _ask(
    table: Float64[Tensor, "b M"], own: Int64[Tensor, " b"], searched: Int64[Tensor, " M"], num_votes: int
) -> tuple[np.ndarray, ...]:
    """Ask some queries with their class in the gallery and then without it, where there is something to find.

    Args:
        table: similarity of each query to each gallery item; -inf at an excluded self.
        own: class of each query, >= 0.
        searched: class of each gallery item, >= 0.
        num_votes: see `Answers.of`.
    Returns: score, whether it is right, whether the class was there, and class of each query asked.
    """
    k = min(num_votes, len(searched))
    is_own = own[:, None] == searched
    exists = (is_own & table.isfinite()).any(1)
    both = list[tuple[np.ndarray, ...]]()
    for is_known, kept, cosines in (
        (True, exists, table),
        (False, (~is_own).any(1), table.masked_fill(is_own, -torch.inf)),
    ):
        items = first_results(cosines, k)
        classes = searched[items].numpy(force=True)
        scores = cosines.gather(1, items).numpy(force=True)
        winner = np.arange(len(scores)), vote(classes, scores)
        truth, asked = own.numpy(force=True), kept.numpy(force=True)
        known = np.full(len(truth), is_known)
        right = known & (classes[winner] == truth)
        both.append(tuple(column[asked] for column in (scores[winner], right, known, truth)))
    return tuple(np.concatenate(column) for column in zip(*both, strict=True))


@final
class _Sorted:
    """Answers by falling score; equal scores are one step, whose last place is in `ends`."""

    def __init__(self, answers: Answers) -> None:
        self.order = np.argsort(-answers.scores, kind="stable")
        self.scores = answers.scores[self.order]
        self.known = answers.known[self.order]
        self.right = answers.right[self.order]
        self.ends = np.flatnonzero(np.append(np.diff(self.scores) != 0, True))

    def sums(self, weights: Float64[np.ndarray, " n"]) -> _Sums:
        """Add up the weights of queries of each kind."""
        masks = (self.known, self.right, ~self.known)
        known, right, unknown = (np.cumsum(weights * mask)[self.ends] for mask in masks)
        return _Sums(self.scores[self.ends], known, right, unknown)
