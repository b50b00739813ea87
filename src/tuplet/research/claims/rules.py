"""The rules by which a claim holds: what they compare, the tests over seeds, and the verdicts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias, final

from scipy.stats import t as student

from tuplet.errors import DataError, SettingsError
from tuplet.metrics.intervals import SeedMean, holm, seed_mean

Point: TypeAlias = tuple[str, ...]
"""One setting of a claim: the name of one level of each of its axes."""

Values: TypeAlias = Mapping[Point, Mapping[int, float]]
"""The measured value at each point, by seed."""

Seeds: TypeAlias = Mapping[Point, Sequence[int]]
"""The seeds that were planned at each point."""

Outcome: TypeAlias = Literal["holds", "does not hold", "undecided"]

SIGNIFICANCE = 0.05
"""Largest p-value that decides a comparison."""

NO_SPREAD = 1e-12
"""Standard deviations below this come from rounding and count as zero."""

HOW_DECIDED = (
    "A claim holds if every comparison of its rule is shown to be as the rule wants it. It does not hold if"
    " one is shown to be otherwise. In all other cases it is undecided at this number of seeds. Shown means:"
    " by one-sided t tests over seeds at 5 %, the same seeds at every point; within a margin by two such"
    " tests, one a side. A single comparison can refute a claim, so the p values against it are adjusted by"
    " Holm's method for the number of comparisons. The p values for it are not adjusted if all comparisons"
    " hold, as all have to; if only some hold, they are adjusted too. Intervals are 95 %, two-sided, of one"
    " comparison."
)
"""What all rules have in common, for the report."""


@final
@dataclass(frozen=True)
class Contrast:
    """A weighted sum of the values at several points, zero if all values are equal.

    Attributes:
        title: in words.
        weights: of each point; they sum to zero.
        numbers: of a trend, where each point is on the axis; None for anything else.
    Raises: SettingsError: fewer than two points, a point twice, or weights that do not cancel.
    """

    title: str
    weights: tuple[tuple[Point, float], ...]
    numbers: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.weights) < 2 or len(self.points) < len(self.weights):
            raise SettingsError(
                f"the comparison {self.title!r} is of a point with itself; want two points or more, each"
                " once",
                subject="points",
            )
        weights = [weight for _, weight in self.weights]
        if 0 in weights or abs(sum(weights)) > 1e-9:
            raise SettingsError(
                f"the weights of {self.title!r} do not cancel; want other than 0, summing to 0",
                subject="weights",
                given=tuple(weights),
            )

    @property
    def points(self) -> frozenset[Point]:
        """All that is compared."""
        return frozenset(point for point, _ in self.weights)

    @property
    def range(self) -> float:
        """The largest possible value, for measurements in [0, 1]."""
        return sum(weight for _, weight in self.weights if weight > 0)

    def by_seed(self, values: Values, seeds: Sequence[int]) -> list[float]:
        """Return the weighted sum of each seed; values of every point are needed."""
        return [sum(weight * values[point][seed] for point, weight in self.weights) for seed in seeds]

    def among(self, points: Collection[Point]) -> Contrast | None:
        """Return the contrast without the other points: a trend over fewer, None where nothing is left."""
        if self.points <= set(points):
            return self
        if self.numbers is None:
            return None
        pairs = zip(self.weights, self.numbers, strict=True)
        left = [(point, number) for (point, _), number in pairs if point in points]
        if len(left) < 2:
            return None
        return trend([point for point, _ in left], [number for _, number in left])


def minus(first: Point, second: Point) -> Contrast:
    """Return the first point minus the second."""
    shared = tuple(name for name, other in zip(first, second, strict=True) if name == other)
    first_title, second_title = (
        point_title(tuple(name for name in point if name not in shared)) for point in (first, second)
    )
    title = f"{first_title} minus {second_title}" + (f" at {point_title(shared)}" if shared else "")
    return Contrast(title, ((first, 1.0), (second, -1.0)))


def falls_less(first: tuple[Point, Point], second: tuple[Point, Point]) -> Contrast:
    """Return how much less the first pair falls, from its first point to its second, than the second pair.

    The last axis tells the two pairs apart.
    """
    (first_from, first_to), (second_from, second_to) = first, second
    title = f"change of {first_to[-1]} from {first_from[0]} to {first_to[0]}, minus that of {second_to[-1]}"
    return Contrast(title, ((first_to, 1.0), (first_from, -1.0), (second_to, -1.0), (second_from, 1.0)))


def trend(points: Sequence[Point], numbers: Sequence[float]) -> Contrast:
    """Return the rise from the first point to the last along the straight line fitted to all of them.

    The slope of least squares is a weighted sum of the values, with weights (x - mean) / sum (x - mean)^2,
    which cancel: so a trend is a contrast, and is tested as any other.

    Args:
        points: two or more.
        numbers: the place of each on the axis, ascending.
    """
    mean = sum(numbers) / len(numbers)
    spread = sum((number - mean) ** 2 for number in numbers)
    if len(points) < 2 or spread == 0:
        raise SettingsError(
            f"a trend over {len(points)} points; want two or more, at different places", subject="points"
        )
    slopes = [(number - mean) / spread * (numbers[-1] - numbers[0]) for number in numbers]
    weights = tuple((point, slope) for point, slope in zip(points, slopes, strict=True) if slope != 0)
    kept = tuple(number for number, slope in zip(numbers, slopes, strict=True) if slope != 0)
    title = f"rise from {point_title(points[0])} to {point_title(points[-1])} along the line through all"
    return Contrast(title, weights, kept)


def point_title(point: Point) -> str:
    """Return a point in words."""
    return " · ".join(point)


@final
@dataclass(frozen=True)
class Evidence:
    """The result of one comparison.

    Attributes:
        title: what is compared.
        over_seeds: its value with its interval over seeds; of a ratio, that of its logarithm.
        p_holds: small where it supports the claim; None where the seeds are too few for a test.
        p_fails: small where it contradicts the claim; not adjusted.
        words: the value and its interval, in the unit of the report.
        p_fails_adjusted: adjusted for the number of comparisons of its claim.
        outcome: of this comparison, among those of its claim.
    """

    title: str
    over_seeds: SeedMean
    p_holds: float | None
    p_fails: float | None
    words: str
    p_fails_adjusted: float | None = None
    outcome: Outcome = "undecided"


@final
@dataclass(frozen=True)
class Verdict:
    """The outcome of a claim (holds, does not hold, undecided at this number of seeds) and its evidence."""

    outcome: Outcome
    evidence: tuple[Evidence, ...]

    @property
    def decisive(self) -> Evidence:
        """The comparison that decided: the clearest against the claim, else the weakest for it."""
        against = [item for item in self.evidence if item.outcome == "does not hold"]
        if against:
            return min(against, key=lambda item: 1.0 if item.p_fails is None else item.p_fails)
        return max(self.evidence, key=lambda item: 1.0 if item.p_holds is None else item.p_holds)


class Rule(ABC):
    """The condition on the measurements under which a claim holds."""

    @property
    @abstractmethod
    def comparisons(self) -> tuple[Contrast, ...]:
        """All that is compared."""

    @property
    @abstractmethod
    def sentence(self) -> str:
        """The rule in words, for the report."""

    @abstractmethod
    def among(self, points: Collection[Point]) -> Rule | None:
        """Return the rule where only these points are measured; None where it says nothing of them."""

    @abstractmethod
    def _compare(self, values: Values, seeds: Seeds) -> Iterator[Evidence]: ...

    @final
    @property
    def points(self) -> frozenset[Point]:
        """All points that are compared."""
        return frozenset[Point]().union(*(contrast.points for contrast in self.comparisons))

    @final
    def judge(self, values: Values, seeds: Sequence[int] | Seeds) -> Verdict:
        """Return the verdict.

        Args:
            values: what was measured, at every point of the rule for every seed.
            seeds: of all points, or of each; a comparison is over the seeds that all of its points have, of
                which there must be one or more. A single one decides nothing.
        Raises: DataError: measurements are missing; `given` is the points that lack some.
        """
        planned = seeds if isinstance(seeds, Mapping) else dict.fromkeys(self.points, seeds)
        missing = {
            point: lacking
            for point in sorted(self.points)
            if (lacking := [seed for seed in planned[point] if seed not in values.get(point, {})])
        }
        if missing or not all(planned[point] for point in self.points):
            parts = [
                f"{point_title(point)} (seed{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))})"
                for point, lacking in missing.items()
            ]
            shown = "; ".join(parts[:5]) + ("; ..." if len(parts) > 5 else "")
            raise DataError(
                f"no verdict without all runs; missing at {len(parts)} points: {shown}; want them finished:"
                " tuplet claims run",
                subject="runs",
                given=tuple(missing),
            )
        return _decide(list(self._compare(values, planned)))


@dataclass(frozen=True)
class _Bounded(Rule):
    """A bound that every contrast must keep.

    Attributes:
        contrasts: one or more.
        bound: what it means, and its range, are the subclass's.
    Raises: SettingsError: a bound that every or no measurement keeps, or nothing to compare.
    """

    contrasts: tuple[Contrast, ...]
    bound: float = 0.0

    _name: ClassVar[str]

    @final
    def __post_init__(self) -> None:
        if not self.contrasts:
            raise SettingsError(
                "a rule without comparisons could not fail; want one or more", subject="contrasts"
            )
        inside, wanted = self._range(min(contrast.range for contrast in self.contrasts))
        if not inside:
            raise SettingsError(
                f"{self._name} is {self.bound}; want {wanted}", subject=self._name, given=self.bound
            )

    @abstractmethod
    def _range(self, largest: float) -> tuple[bool, str]:
        """Return whether the bound is in range, and the range in words, for contrasts up to `largest`."""

    @abstractmethod
    def _evidence(self, title: str, mean: SeedMean) -> Evidence:
        """Return the evidence of a contrast over seeds."""

    @final
    @property
    def comparisons(self) -> tuple[Contrast, ...]:
        """All that is compared."""
        return self.contrasts

    @final
    def among(self, points: Collection[Point]) -> Rule | None:
        """Return the rule where only these points are measured; None where it says nothing of them."""
        left = [contrast.among(points) for contrast in self.contrasts]
        kept = tuple(contrast for contrast in left if contrast is not None)
        return replace(self, contrasts=kept) if kept else None

    def _compare(self, values: Values, seeds: Seeds) -> Iterator[Evidence]:
        for contrast in self.contrasts:
            shared = sorted(set.intersection(*(set(seeds[point]) for point in contrast.points)))
            yield self._evidence(contrast.title, seed_mean(contrast.by_seed(values, shared)))

    def _titles(self) -> str:
        return "; ".join(contrast.title for contrast in self.contrasts)


@final
class Within(_Bounded):
    """Every contrast is within a margin of zero: two one-sided tests each.

    The bound is the margin, of measurements in [0, 1]: > 0, and smaller than the contrast can be at most.
    """

    _name = "margin"

    def _range(self, largest: float) -> tuple[bool, str]:
        return 0 < self.bound < largest, f"a number in (0, {largest:g}), or the claim could not fail"

    @property
    def sentence(self) -> str:
        """The rule in words, for the report."""
        return f"Each within ±{100 * self.bound:g} points: {self._titles()}."

    def _evidence(self, title: str, mean: SeedMean) -> Evidence:
        margin = self.bound
        above, below = _p_above(mean, -margin), _p_below(mean, margin)
        # Both tests must reject, so that the larger p counts (two one-sided tests, TOST).
        inside = None if above is None or below is None else max(above, below)
        outside = _p_above(mean, margin) if mean.mean > 0 else _p_below(mean, -margin)
        return Evidence(title, mean, inside, outside, _in_points(mean))


@final
class Above(_Bounded):
    """Every contrast is larger than a bound, of measurements in [0, 1]: >= 0, and smaller than it can be."""

    _name = "by"

    def _range(self, largest: float) -> tuple[bool, str]:
        return 0 <= self.bound < largest, f"a number in [0, {largest:g}), or there is nothing to find"

    @property
    def sentence(self) -> str:
        """The rule in words, for the report."""
        bound = f"{100 * self.bound:g} points" if self.bound else "0"
        return f"Each more than {bound}: {self._titles()}."

    def _evidence(self, title: str, mean: SeedMean) -> Evidence:
        more, fewer = _p_above(mean, self.bound), _p_below(mean, self.bound)
        return Evidence(title, mean, more, fewer, _in_points(mean))


@final
class AtMostTimes(_Bounded):
    """A cost is at most a factor times another, for every pair of points.

    Costs vary by a share of themselves, so logarithms are compared: a ratio becomes a difference, and its
    spread over seeds does not depend on how large the costs are. The bound is the factor: > 0, finite.
    """

    _name = "factor"

    def _range(self, largest: float) -> tuple[bool, str]:
        if any(sorted(weight for _, weight in contrast.weights) != [-1, 1] for contrast in self.contrasts):
            raise SettingsError("a ratio is of two points; want one minus the other", subject="contrasts")
        return 0 < self.bound < math.inf, "a finite number > 0, or the claim could not fail"

    @property
    def sentence(self) -> str:
        """The rule in words, for the report."""
        return f"Each ratio below {self.bound:g}: {_as_ratio(self._titles())}."

    def _compare(self, values: Values, seeds: Seeds) -> Iterator[Evidence]:
        logs = {point: {seed: math.log(value) for seed, value in by.items()} for point, by in values.items()}
        return super()._compare(logs, seeds)

    def _evidence(self, title: str, mean: SeedMean) -> Evidence:
        bound = math.log(self.bound)
        words = f"{math.exp(mean.mean):.2f} times{_interval(mean, lambda end: f'{math.exp(end):.2f}')}"
        return Evidence(_as_ratio(title), mean, _p_below(mean, bound), _p_above(mean, bound), words)


@final
@dataclass(frozen=True)
class All(Rule):
    """Several rules, of which every one must hold.

    Attributes:
        parts: two or more; their comparisons are adjusted together.
    """

    parts: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise SettingsError(f"{len(self.parts)} rules joined; want two or more", subject="parts")

    @property
    def comparisons(self) -> tuple[Contrast, ...]:
        """All that is compared."""
        return tuple(contrast for part in self.parts for contrast in part.comparisons)

    @property
    def sentence(self) -> str:
        """The rule in words, for the report."""
        return " And: ".join(part.sentence for part in self.parts)

    def among(self, points: Collection[Point]) -> Rule | None:
        """Return the rule where only these points are measured; None where a part says nothing of them."""
        left = [part.among(points) for part in self.parts]
        kept = tuple(part for part in left if part is not None)
        return All(kept) if len(kept) == len(self.parts) else None

    def _compare(self, values: Values, seeds: Seeds) -> Iterator[Evidence]:
        for part in self.parts:
            yield from part._compare(values, seeds)


def _decide(evidence: Sequence[Evidence]) -> Verdict:
    """Return what the comparisons of a claim say together; see `HOW_DECIDED`."""
    fails = _adjusted([item.p_fails for item in evidence])
    holds: Sequence[float | None] = [item.p_holds for item in evidence]
    if not all(map(_is_shown, holds)):
        holds = _adjusted(holds)
    decided = tuple(
        replace(item, p_fails_adjusted=p_fails, outcome=_outcome(p_holds, p_fails))
        for item, p_holds, p_fails in zip(evidence, holds, fails, strict=True)
    )
    outcomes = [item.outcome for item in decided]
    if "does not hold" in outcomes:
        return Verdict("does not hold", decided)
    return Verdict("undecided" if "undecided" in outcomes else "holds", decided)


def _outcome(p_holds: float | None, p_fails: float | None) -> Outcome:
    if _is_shown(p_holds):
        return "holds"
    return "does not hold" if _is_shown(p_fails) else "undecided"


def _is_shown(p_value: float | None) -> bool:
    return p_value is not None and p_value <= SIGNIFICANCE


def _adjusted(p_values: Sequence[float | None]) -> Sequence[float | None]:
    known = iter(holm([p_value for p_value in p_values if p_value is not None]))
    return [None if p_value is None else next(known) for p_value in p_values]


def _p_above(mean: SeedMean, bound: float) -> float | None:
    """Compute the p-value of a true mean <= `bound`, by a one-sided t test; None where the seeds say nothing.

    That is a single seed, or two that agree to the last digit: Recall@1 is a whole number of images, so that
    happens by chance. Three and more that agree have no spread, and are above the bound or not: p is 0 or 1.
    """
    count = len(mean.values)
    if mean.std is None or (count == 2 and mean.std < NO_SPREAD):
        return None
    gap, error = mean.mean - bound, mean.std / math.sqrt(count)
    if mean.std < NO_SPREAD:
        return float(gap <= 0)
    return float(student.sf(gap / error, count - 1))


def _p_below(mean: SeedMean, bound: float) -> float | None:
    """Compute the p-value of a true mean >= `bound`, as `_p_above` does."""
    return _p_above(replace(mean, mean=-mean.mean), -bound)


def _in_points(mean: SeedMean) -> str:
    return f"{100 * mean.mean:+z.1f} points{_interval(mean, lambda end: f'{100 * end:+z.1f}')}"


def _interval(mean: SeedMean, shown: Callable[[float], str]) -> str:
    if mean.low is None or mean.high is None:
        return " (one seed: no interval)"
    return f" (95 %: {shown(mean.low)} to {shown(mean.high)})"


def _as_ratio(title: str) -> str:
    """Return the title of a difference of logarithms as that of a ratio."""
    return title.replace(" minus ", " over ")
