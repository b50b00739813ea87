"""Verification: how well a threshold on the cosine tells pairs of one class from pairs of two classes.

A pair of one class is *genuine*, a pair of two an *impostor* pair. At a threshold t, as NIST's FRVT defines
them, with H(0) = 1:

    FMR(t)  = share of impostor pairs with similarity >= t     (false matches)
    FNMR(t) = share of genuine pairs with similarity < t       (false non-matches)

All pairs are counted, each once; see `metrics/exact/pairs` for what equal and exact mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, final

import numpy as np
from jaxtyping import Float, Float64, Int

from tuplet.config.checks import require
from tuplet.errors import SettingsError
from tuplet.metrics.answers import OperatingPoint
from tuplet.metrics.exact.labelled import labelled_search
from tuplet.metrics.exact.pairs import NUM_POINTS, PairCounts, UnitCounts, cosine_of, count_pairs, point_of
from tuplet.metrics.exact.shares import ALONE, Shares
from tuplet.metrics.inputs import Array
from tuplet.metrics.intervals import Interval, check_settings, draws, expanded_tail

FMRS = (1e-1, 1e-2, 1e-3, 1e-4)
"""At which FMR the FNMR is reported."""
_CHUNK = 2**20


@dataclass(frozen=True)
class VerificationReport:
    """The results of verification on one set of embeddings.

    Attributes:
        auc: area under the ROC curve: the share of (genuine, impostor) comparisons in which the genuine pair
            is more similar, ties counted half.
        eer: where FMR and FNMR are equal on the ROC curve, whose points are joined by straight lines.
        at_fmr: by the FMR that was asked for: the lowest threshold with at most that FMR.
        auc_interval, eer_interval: over classes; None where they were not computed or nothing varies.
        ties: share of comparisons that tie; cosines that are not rounded have an AUC within half of it.
        num_genuine, num_impostor: pairs.
        num_classes: of the items.
        balanced: whether classes, and pairs of classes, weigh the same, instead of pairs of items.
    """

    auc: float
    eer: float
    at_fmr: dict[float, OperatingPoint]
    auc_interval: Interval | None
    eer_interval: Interval | None
    ties: float
    num_genuine: int
    num_impostor: int
    num_classes: int
    balanced: bool

    def tree(self) -> dict[str, Any]:
        """Return the report as plain data, for JSON."""
        tree = asdict(self)
        tree["at_fmr"] = {f"{fmr:g}": asdict(point) for fmr, point in self.at_fmr.items()}
        return tree


@final
class Verification:
    """The counts of all pairs by similarity, from which error rates at any threshold are computed.

    >>> labels = np.arange(60) // 6
    >>> noise = np.random.default_rng(0).normal(size=(60, 10))
    >>> pairs = Verification.of(np.eye(10)[labels] + 0.3 * noise, labels)
    >>> point = pairs.at_fmr(0.01)
    >>> point == pairs.at_threshold(point.threshold)
    True
    >>> point.fmr <= 0.01
    True
    """

    def __init__(self, counts: PairCounts) -> None:
        self.counts = counts
        # Sums from the top: pairs at or above each point, and 0 above all.
        self._genuine_total = counts.genuine.sum()
        self._impostor_total = counts.impostor.sum()

    @classmethod
    def of(
        cls,
        embeddings: Float[Array, "N D"],
        labels: Int[Array, " N"],
        *,
        gallery: Float[Array, "M D"] | None = None,
        gallery_labels: Int[Array, " M"] | None = None,
        balanced: bool = False,
        by_class: bool = False,
        thresholds: Sequence[float] = (),
        shares: Shares = ALONE,
    ) -> Verification:
        """Count all pairs; the other arguments are those of `verification_metrics`.

        With `by_class`, the counts of each class are kept for intervals, those at `thresholds` exactly.
        """
        search = labelled_search(embeddings, labels, gallery, gallery_labels)
        counts = count_pairs(
            search.compared,
            search.labels,
            search.gallery_labels,
            balanced=balanced,
            by_class=by_class,
            starts=[point_of(threshold) for threshold in thresholds],
            shares=shares,
        )
        return cls(counts)

    def at_threshold(self, threshold: float) -> OperatingPoint:
        """Return the error rates at a threshold.

        Raises:
            SettingsError: the threshold is NaN.
        """
        require(not math.isnan(threshold), "threshold", threshold, "a cosine")
        return self._at_point(point_of(threshold), threshold)

    def at_fmr(self, fmr: float) -> OperatingPoint:
        """Return the lowest threshold whose FMR is at most the one asked for, in [0, 1]."""
        return self._at_point(self._point_at(self.counts.impostor, fmr * self._impostor_total))

    def at_fnmr(self, fnmr: float) -> OperatingPoint:
        """Return the highest threshold whose FNMR is at most the one asked for, in [0, 1]."""
        below = np.cumsum(self.counts.genuine)
        limit = fnmr * self._genuine_total * (1 + 1e-12)
        # At point p, the genuine pairs at 0..p-1 are lost.
        return self._at_point(int(np.searchsorted(below, limit, side="right")))

    def auc(self) -> tuple[float, float]:
        """Return the AUC, and the share of comparisons that tie."""
        won, tied, above = 0.0, 0.0, float(self._genuine_total)
        for start in range(0, NUM_POINTS, _CHUNK):
            genuine = self.counts.genuine[start : start + _CHUNK].astype(np.float64)
            impostor = self.counts.impostor[start : start + _CHUNK]
            at_or_above = above - np.cumsum(genuine) + genuine
            won += float((impostor * (at_or_above - genuine)).sum())
            tied += float((impostor * genuine).sum())
            above -= float(genuine.sum())
        comparisons = float(self._genuine_total) * float(self._impostor_total)
        return (won + tied / 2) / comparisons, tied / comparisons

    def eer(self) -> float:
        """Return the equal error rate."""
        # FMR - FNMR falls from 1, at the lowest point, to -1, above the highest.
        low, high = 0, NUM_POINTS
        impostor, genuine = np.cumsum(self.counts.impostor), np.cumsum(self.counts.genuine)

        def rates(point: int) -> tuple[float, float]:
            lost = genuine[point - 1] if point else 0
            kept = self._impostor_total - (impostor[point - 1] if point else 0)
            return float(kept / self._impostor_total), float(lost / self._genuine_total)

        while high - low > 1:
            middle = (low + high) // 2
            fmr, fnmr = rates(middle)
            low, high = (middle, high) if fmr >= fnmr else (low, middle)
        (fmr, fnmr), (next_fmr, next_fnmr) = rates(low), rates(high)
        share = (fmr - fnmr) / ((fmr - fnmr) - (next_fmr - next_fnmr))
        return fmr + share * (next_fmr - fmr)

    def curve(self, num_points: int = 200) -> list[OperatingPoint]:
        """Return points of the ROC curve, by falling FMR, spread evenly over its logarithm."""
        least = 1 / max(self.counts.num_impostor, 2)
        fmrs = np.geomspace(1, least, num_points)
        return [self.at_fmr(float(fmr)) for fmr in dict.fromkeys(fmrs.tolist())]

    def _at_point(self, point: int, threshold: float | None = None) -> OperatingPoint:
        return OperatingPoint(
            cosine_of(point) if threshold is None else threshold,
            float(self.counts.impostor[point:].sum() / self._impostor_total),
            float(self.counts.genuine[:point].sum() / self._genuine_total),
        )

    @staticmethod
    def _point_at(counts: Any, most: float) -> int:
        """Return the lowest point with at most so much weight at or above it."""
        limit, above = most * (1 + 1e-12), 0.0
        # From the top, a part at a time: the points of interest are there.
        for stop in range(len(counts), 0, -_CHUNK):
            part = counts[max(0, stop - _CHUNK) : stop][::-1]
            sums = above + np.cumsum(part)
            fitting = int(np.searchsorted(sums, limit, side="right"))
            if fitting < len(part):
                return stop - fitting
            above = float(sums[-1])
        return 0


def verification_metrics(
    embeddings: Float[Array, "N D"],
    labels: Int[Array, " N"],
    *,
    gallery: Float[Array, "M D"] | None = None,
    gallery_labels: Int[Array, " M"] | None = None,
    balanced: bool = False,
    fmrs: Sequence[float] = FMRS,
    intervals: bool = True,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
    shares: Shares = ALONE,
) -> VerificationReport:
    """Compute ROC AUC, EER and the FNMR at given FMRs, over all pairs, with intervals over classes.

    The time is about three times that of the float64 products of all pairs. Memory beyond the embeddings is
    about 350 MB, for any number of pairs.

    Args:
        embeddings: finite; compared by cosine.
        labels: class of each, any integers.
        gallery: pairs are of an embedding and one of these; None: of two embeddings, each pair once.
        gallery_labels: class of each gallery item; given exactly where `gallery` is.
        balanced: give each class, and each pair of classes, the same weight: a mean over classes.
        fmrs: at which the FNMR is asked for, each in (0, 1).
        intervals: compute them: see `verification_intervals`.
        level: of the intervals, in (0, 1).
        num_resamples: behind them, >= 100.
        seed: of the resamples, >= 0.
        shares: ranks that hold the same items and count a part of the pairs each; call it on all of them.
            The report is that of one process to the last digit; if balanced, up to the order of float64 sums.
    Raises:
        DataError: empty, NaN or infinity, lengths or widths that differ, no genuine pair or no impostor pair.
        SettingsError: a setting out of range.
    References: Grother, Ngan and Hanaoka, "Face Recognition Vendor Test (FRVT) Part 1: Verification", NIST.
    """
    check_settings(level=level, num_resamples=num_resamples, seed=seed)
    for fmr in fmrs:
        if not 0 < fmr < 1:
            raise SettingsError(f"fmrs holds {fmr}; want shares in (0, 1)", subject="fmrs", given=fmr)
    pairs = Verification.of(
        embeddings,
        labels,
        gallery=gallery,
        gallery_labels=gallery_labels,
        balanced=balanced,
        by_class=intervals,
        shares=shares,
    )
    auc, ties = pairs.auc()
    eer, points = pairs.eer(), {fmr: pairs.at_fmr(fmr) for fmr in fmrs}
    by_metric: Mapping[VerificationMetric, Interval | None] = {}
    if pairs.counts.units is not None:
        values: dict[VerificationMetric, float] = {"auc": auc, "eer": eer}
        values |= {FnmrAtFmr(fmr): point.fnmr for fmr, point in points.items()}
        by_metric = verification_intervals(
            pairs.counts.units, values, level=level, num_resamples=num_resamples, seed=seed
        )
    of_fmr = {
        fmr: OperatingPoint(point.threshold, point.fmr, point.fnmr, None, by_metric.get(FnmrAtFmr(fmr)))
        for fmr, point in points.items()
    }
    counts = pairs.counts
    sizes = (counts.num_genuine, counts.num_impostor, counts.num_classes)
    auc_interval, eer_interval = by_metric.get("auc"), by_metric.get("eer")
    return VerificationReport(auc, eer, of_fmr, auc_interval, eer_interval, ties, *sizes, balanced)


@dataclass(frozen=True)
class FnmrAtFmr:
    """The FNMR at the lowest threshold with at most some FMR."""

    fmr: float


@dataclass(frozen=True)
class RateAt:
    """An error rate at a threshold on the cosine."""

    rate: Literal["fmr", "fnmr"]
    threshold: float


VerificationMetric: TypeAlias = Literal["auc", "eer"] | FnmrAtFmr | RateAt


def verification_intervals(
    units: UnitCounts,
    values: Mapping[VerificationMetric, float],
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[VerificationMetric, Interval | None]:
    """Compute bootstrap intervals over classes of verification metrics.

    A resample draws as many classes as there are, with replacement. A class that is drawn m times gives m
    times its genuine pairs. The impostor pairs of the classes c and d would count m_c m_d times; they are
    counted m_c + m_d - 1 times, which differs by (m_c - 1)(m_d - 1), zero on average, and needs the counts of
    each class only. Resampled metrics are computed in the bins of the counts; what the bins
    cost is the same with and without resampling, and subtracted. The ends are those of `mean_intervals`.

    Args:
        units: counts by class.
        values: the metrics of all pairs.
        level: in (0, 1).
        num_resamples: >= 100.
        seed: >= 0.
    Returns: one per metric; None for each where there is one class.
    Raises:
        SettingsError: a setting out of range.
    References: Bolle, Ratha and Pankanti, "Error analysis of pattern recognition systems: the subsets
    bootstrap", 2004.
    """
    check_settings(level=level, num_resamples=num_resamples, seed=seed)
    num_units = len(units.genuine)
    if num_units < 2:
        return dict.fromkeys(values)
    drawn = [
        _binned(weights @ units.genuine, weights @ units.impostor, units, values)
        for weights in draws(num_units, num_resamples, seed)
    ]
    resampled = np.concatenate(drawn)
    ones = np.ones((1, num_units))
    of_all = _binned(ones @ units.genuine, ones @ units.impostor, units, values)[0]
    tail = expanded_tail(num_units, level)
    # A resample without any pair of one kind says nothing.
    usable = np.isfinite(resampled).all(axis=1)
    if not usable.any():
        return dict.fromkeys(values)
    ends = np.quantile(resampled[usable], [tail, 1 - tail], axis=0)
    shift = np.array(list(values.values())) - of_all
    low, high = np.clip(ends + shift, 0, 1).tolist()
    return {
        name: Interval(low[at], high[at], "classes", level, num_resamples, seed)
        for at, name in enumerate(values)
    }


def _binned(
    genuine: Float64[np.ndarray, "R K"],
    doubled: Float64[np.ndarray, "R K"],
    units: UnitCounts,
    metrics: Iterable[VerificationMetric],
) -> Float64[np.ndarray, "R M"]:
    """Compute metrics of resamples from the counts in bins; NaN where a resample has no pairs of a kind.

    `doubled` counts every impostor pair once for each of its classes.
    """
    # Each pair is counted for both of its classes, m_c + m_d times: once too often.
    impostor = np.maximum(doubled - units.impostor.sum(axis=0) / 2, 0)
    edge = np.zeros((len(genuine), 1))
    with np.errstate(invalid="ignore"):
        accepted = np.concatenate([np.cumsum(impostor[:, ::-1], axis=1)[:, ::-1], edge], axis=1)
        kept = np.concatenate([np.cumsum(genuine[:, ::-1], axis=1)[:, ::-1], edge], axis=1)
        fmr, fnmr = accepted / accepted[:, :1], 1 - kept / kept[:, :1]
        # Half of a bin's impostor pairs are above half of its genuine pairs: the trapezoidal rule.
        middle = kept[:, 1:] + genuine / 2
        auc = (impostor * middle).sum(axis=1) / (accepted[:, 0] * kept[:, 0])
    columns = []
    for metric in metrics:
        if metric == "auc":
            columns.append(auc)
        elif metric == "eer":
            columns.append(_crossings(fmr, fnmr))
        elif isinstance(metric, RateAt):
            place = int(np.searchsorted(units.starts, point_of(metric.threshold)))
            columns.append((fmr if metric.rate == "fmr" else fnmr)[:, place])
        else:
            rows = zip(fmr, fnmr, strict=True)
            columns.append(np.array([np.interp(metric.fmr, a[::-1], b[::-1]) for a, b in rows]))
    return np.stack(columns, axis=1)


def _crossings(
    fmr: Float64[np.ndarray, "R E"], fnmr: Float64[np.ndarray, "R E"]
) -> Float64[np.ndarray, " R"]:
    """Return where FMR and FNMR cross, on straight lines between the edges of the bins."""
    apart = fmr - fnmr
    rows = np.arange(len(fmr))
    after = np.clip((apart < 0).argmax(axis=1), 1, None)
    before = after - 1
    share = apart[rows, before] / (apart[rows, before] - apart[rows, after])
    crossed = fmr[rows, before] + share * (fmr[rows, after] - fmr[rows, before])
    return np.where(np.isfinite(crossed), crossed, math.nan)
