"""Answers by neighbours, and what they are worth: for classes that are in the gallery, and for unknown ones.

Every query is asked twice: once with its class in the gallery (a *known* query; it is never in the gallery
itself), and once without any item of its class (an *unknown* one). The answer is a vote of the k nearest
items, and its score says how similar the nearest item of the class that won is. Below a threshold on the
score there is no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64

from tuplet.errors import DataError, SettingsError
from tuplet.metrics.answers import NUM_VOTES, AnswersAt, vote
from tuplet.metrics.exact.shares import ALONE, Shares
from tuplet.metrics.exact.similarity import similarity
from tuplet.metrics.exact.sorting import blocks, exact_similarities, first_results
from tuplet.metrics.inputs import Array, as_embeddings, as_labels
from tuplet.metrics.intervals import Interval, draws, expanded_tail
from tuplet.progress import track

FPIRS = (1e-1, 1e-2)
"""Shares of unknown queries that are answered, at which the detection rate is reported."""


@dataclass(frozen=True)
class OpenSetReport:
    """How well neighbours answer.

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
        for found, what in ((self.known, "known"), (~self.known, "unknown")):
            if not found.any():
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
        queries = as_embeddings(embeddings, name="embeddings")
        own = as_labels(labels, name="labels", length=len(queries), device=queries.device)
        if (gallery is None) != (gallery_labels is None):
            message = "got one of gallery and gallery_labels; want both or neither"
            raise SettingsError(message, subject="gallery")
        compared, found = similarity(queries, gallery, "cosine"), own
        if gallery_labels is not None:
            size = len(compared.gallery)
            found = as_labels(gallery_labels, name="gallery_labels", length=size, device=queries.device)
        # From 0 on: any integer may be a label, also the one that stands for none.
        renumbered = torch.unique(torch.cat([own, found]), return_inverse=True)[1]
        own, found = renumbered[: len(own)], renumbered[len(own) :]
        k = min(num_votes, len(found))
        parts: list[tuple[np.ndarray, ...]] = []
        rows = torch.arange(len(queries), device=queries.device)
        for block in track(shares.own(blocks(rows, len(found))), "asking neighbours"):
            table = exact_similarities(compared, block)
            asked = own[block, None] == found
            exists = (asked & table.isfinite()).any(1)
            others = table.masked_fill(asked, -torch.inf)
            both = list[tuple[np.ndarray, ...]]()
            for kept, cosines in ((exists, table), ((~asked).any(1), others)):
                items = first_results(cosines, k)
                classes = found[items].numpy(force=True)
                scores = cosines.gather(1, items).numpy(force=True)
                winner = np.arange(len(scores)), vote(classes, scores)
                truth, chosen = own[block].numpy(force=True), kept.numpy(force=True)
                known = np.full(len(truth), cosines is table)
                right = known & (classes[winner] == truth)
                both.append(tuple(one[chosen] for one in (scores[winner], right, known, truth)))
            parts.append(tuple(np.concatenate(one) for one in zip(*both, strict=True)))
        columns = zip(*shares.gather(parts), strict=True)
        scores, right, known, classes = (np.concatenate(one) for one in columns)
        return cls(scores, right, known, classes, num_votes)

    def report(self, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0) -> OpenSetReport:
        """Measure the answers; settings are those of `mean_intervals`."""
        names = ["accuracy", "aurc", "auroc", *(f"detection_at_{fpir:g}" for fpir in FPIRS)]
        values, intervals = self._measured(names, level=level, num_resamples=num_resamples, seed=seed)
        detection = {f"{fpir:g}": values[f"detection_at_{fpir:g}"] for fpir in FPIRS}
        sizes = (int(self.known.sum()), int((~self.known).sum()), self.num_votes)
        head = (values["accuracy"], values["aurc"], values["auroc"])
        return OpenSetReport(*head, detection, intervals, *sizes)

    def at_threshold(
        self, threshold: float, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
    ) -> AnswersAt:
        """Measure the answers whose score is at least a threshold; settings are those of `mean_intervals`.

        The precision of no answers at all is 1.
        """
        names = [f"{name}@{threshold!r}" for name in ("precision", "answered", "right", "detected")]
        values, intervals = self._measured(names, level=level, num_resamples=num_resamples, seed=seed)
        named = {name.partition("@")[0]: interval for name, interval in intervals.items()}
        precision, answered, right, detected = values.values()
        return AnswersAt(threshold, precision, answered, right, detected, named)

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
        self, names: Sequence[str], *, level: float, num_resamples: int, seed: int
    ) -> tuple[dict[str, float], dict[str, Interval | None]]:
        of = _Sorted(self)
        values = of.measures(names, np.ones(len(self.scores)))
        _, classes = np.unique(self.labels[of.order], return_inverse=True)
        num_units = int(classes.max()) + 1
        if num_units < 2:
            return values, dict.fromkeys(names)
        # One resample at a time: a weight a query each.
        resampled = [
            list(of.measures(names, row[classes]).values())
            for block in draws(num_units, num_resamples, seed)
            for row in block
        ]
        tail = expanded_tail(num_units, level)
        # A resample that drew no known query says nothing of them.
        low, high = np.nanquantile(np.array(resampled), [tail, 1 - tail], axis=0).tolist()
        return values, {
            name: Interval(low[at], high[at], "classes", level, num_resamples, seed)
            for at, name in enumerate(names)
        }


@final
class _Sorted:
    """Answers by falling score; equal scores are one step, whose last place is in `ends`."""

    def __init__(self, answers: Answers) -> None:
        self.order = np.argsort(-answers.scores, kind="stable")
        self.scores = answers.scores[self.order]
        self.known = answers.known[self.order]
        self.right = answers.right[self.order]
        self.ends = np.flatnonzero(np.append(np.diff(self.scores) != 0, True))

    def measures(self, names: Sequence[str], weights: Float64[np.ndarray, " n"]) -> dict[str, float]:
        """Compute measures of weighted queries; NaN where none of a kind has a weight."""
        known = np.cumsum(weights * self.known)[self.ends]
        right = np.cumsum(weights * self.right)[self.ends]
        unknown = np.cumsum(weights * ~self.known)[self.ends]
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: self._measure(name, known, right, unknown) for name in names}

    def _measure(
        self,
        name: str,
        known: Float64[np.ndarray, " g"],
        right: Float64[np.ndarray, " g"],
        unknown: Float64[np.ndarray, " g"],
    ) -> float:
        total, total_unknown = known[-1], unknown[-1]
        what, _, threshold = name.partition("@")
        if threshold:
            place = int(np.searchsorted(-self.scores[self.ends], -float(threshold), side="right"))
            k, r, u = ((0.0 if place == 0 else float(sums[place - 1])) for sums in (known, right, unknown))
            shares = {
                "precision": r / (k + u) if k + u > 0 else 1.0,
                "answered": np.divide(k, total),
                "right": np.divide(r, total),
                "detected": 1 - np.divide(u, total_unknown),
            }
            return float(shares[what])
        if what == "accuracy":
            return float(right[-1] / total)
        if what == "aurc":
            steps = np.diff(known, prepend=0.0)
            some = known > 0
            return float((steps[some] * (1 - right[some] / known[some])).sum() / total)
        if what == "auroc":
            x, y = np.append(0.0, unknown) / total_unknown, np.append(0.0, known) / total
            return float(np.trapezoid(y, x))
        fpir = float(what.removeprefix("detection_at_"))
        place = int(np.searchsorted(unknown, fpir * total_unknown * (1 + 1e-12), side="right"))
        return float((right[place - 1] if place else 0.0) / total)
