"""The rules by which a claim holds: what they compare, the tests over seeds, and the verdicts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final

from scipy.stats import t as student

from tuplet.errors import InputError
from tuplet.metrics.intervals import SeedMean, holm, seed_mean

Point: TypeAlias = tuple[str, ...]
"""One setting of a claim: the name of one level of each of its axes."""

Values: TypeAlias = Mapping[Point, Mapping[int, float]]
"""What was measured at each point, by seed."""


@final
@dataclass(frozen=True)
class Contrast:
    """A weighted sum of what is measured at several points, zero where all points are alike.

    Attributes:
        title: in words.
        weights: of each point; they sum to zero.
        numbers: of a trend, where each point stands on the axis; None for anything else.

    Raises:
        InputError: (a ValueError) fewer than two points, a point against itself, or weights that do not
            cancel.
    """

    title: str
    weights: tuple[tuple[Point, float], ...]
    numbers: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        points = [point for point, _ in self.weights]
        if len(points) < 2 or len(set(points)) < len(points):
            raise InputError(
                f"the comparison {self.title!r} is of a point with itself; want two points or more, each once"
            )
        if any(weight == 0 for _, weight in self.weights) or abs(sum(w for _, w in self.weights)) > 1e-9:
            raise InputError(f"the weights of {self.title!r} do not cancel; want other than 0, summing to 0")

    @property
    def points(self) -> frozenset[Point]:
        """All that is compared."""
        return frozenset(point for point, _ in self.weights)

    @property
    def range(self) -> float:
        """The largest value there can be, for measurements in [0, 1]."""
        return sum(weight for _, weight in self.weights if weight > 0)

    def by_seed(self, values: Values, seeds: Sequence[int]) -> list[float]:
        """The weighted sum of each seed.

        Args:
            values: of every point, for every seed.
            seeds: in the order wanted.
        """
        return [sum(weight * values[point][seed] for point, weight in self.weights) for seed in seeds]

    def among(self, points: Collection[Point]) -> Contrast | None:
        """The same where some points are left out: a trend over the others; None where nothing is left."""
        if self.points <= set(points):
            return self
        if self.numbers is None:
            return None
        pairs = zip(self.weights, self.numbers, strict=True)
        left = [(point, number) for (point, _), number in pairs if point in points]
        if len(left) < 2:
            return None
        return trend([point for point, _ in left], [number for _, number in left])


def less(first: Point, second: Point) -> Contrast:
    """What the first point has more than the second."""
    shared = [name for name, other in zip(first, second, strict=True) if name == other]
    one, other = (
        point_title(tuple(name for name in point if name not in shared)) for point in (first, second)
    )
    title = f"{one} less {other}" + (f" at {point_title(tuple(shared))}" if shared else "")
    return Contrast(title, ((first, 1.0), (second, -1.0)))


def falls_less(first: tuple[Point, Point], second: tuple[Point, Point]) -> Contrast:
    """How much less the first pair falls, from its first point to its second, than the second pair does.

    The last axis tells the two apart.
    """
    (first_from, first_to), (second_from, second_to) = first, second
    title = f"change of {first_to[-1]} from {first_from[0]} to {first_to[0]}, less that of {second_to[-1]}"
    return Contrast(title, ((first_to, 1.0), (first_from, -1.0), (second_to, -1.0), (second_from, 1.0)))


def trend(points: Sequence[Point], numbers: Sequence[float]) -> Contrast:
    """What the last point has more than the first along the straight line fitted to all of them.

    Args:
        points: two or more.
        numbers: where each stands on the axis, ascending.
    """
    mean = sum(numbers) / len(numbers)
    spread = sum((number - mean) ** 2 for number in numbers)
    if len(points) < 2 or spread == 0:
        raise InputError(f"a trend over {len(points)} points; want two or more, at different places")
    slopes = [(number - mean) / spread * (numbers[-1] - numbers[0]) for number in numbers]
    weights = tuple((point, slope) for point, slope in zip(points, slopes, strict=True) if slope != 0)
    kept = tuple(number for number, slope in zip(numbers, slopes, strict=True) if slope != 0)
    title = f"rise from {point_title(points[0])} to {point_title(points[-1])} along the line through all"
    return Contrast(title, weights, kept)


def point_title(point: Point) -> str:
    """A point in words."""
    return " · ".join(point)


Outcome: TypeAlias = Literal["holds", "does not hold", "undecided"]

SIGNIFICANCE = 0.05
"""Largest p that decides."""

NO_SPREAD = 1e-12
"""Standard deviations below this are rounding."""

HOW_DECIDED = (
    "A claim holds where every comparison of its rule is shown to be as the rule wants it, does not hold"
    " where one is shown to be otherwise, and is undecided at this number of seeds in all other cases."
    " Shown: by one-sided t tests over seeds, the same seeds at every point, at 5 %; within a margin by two"
    " of them, one a side. As a single comparison can refute a claim, those against it are adjusted by Holm"
    " for their number; those for it need not be, as all of them must hold. Where they do not, those that"
    " hold by themselves are several of several, and adjusted too. Intervals are 95 %, two-sided, of one"
    " comparison alone."
)
"""What all rules have in common, for the report."""


@final
@dataclass(frozen=True)
class Comparison:
    """One comparison before it is decided.

    Attributes:
        title: what is compared.
        over_seeds: its value with its interval over seeds; of a ratio, that of its logarithm.
        p_holds: small where it supports the claim; None where the seeds say nothing.
        p_fails: small where it contradicts the claim; not adjusted.
        words: the value and its interval, in the unit of the report.
    """

    title: str
    over_seeds: SeedMean
    p_holds: float | None
    p_fails: float | None
    words: str


@final
@dataclass(frozen=True)
class Evidence:
    """One comparison and what it says.

    Attributes:
        comparison: as it was measured.
        p_fails: adjusted for the number of comparisons.
        outcome: of this comparison, among those of its claim.
    """

    comparison: Comparison
    p_fails: float | None
    outcome: Outcome

    @property
    def title(self) -> str:
        """What is compared."""
        return self.comparison.title

    @property
    def words(self) -> str:
        """The value and its interval, in the unit of the report."""
        return self.comparison.words


@final
@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim: holds, does not hold, or undecided at this number of seeds."""

    outcome: Outcome
    evidence: tuple[Evidence, ...]

    @property
    def decisive(self) -> Evidence:
        """What the outcome hangs on: the clearest comparison against the claim, else the weakest for it."""
        against = [one for one in self.evidence if one.outcome == "does not hold"]
        if against:
            return min(against, key=lambda one: _or_one(one.comparison.p_fails))
        return max(self.evidence, key=lambda one: _or_one(one.comparison.p_holds))


def decide(comparisons: Sequence[Comparison]) -> Verdict:
    """What the comparisons of a claim say together.

    Args:
        comparisons: all that must hold.
    """
    fails = _adjusted([one.p_fails for one in comparisons])
    holds: Sequence[float | None] = [one.p_holds for one in comparisons]
    if not all(_is_shown(p_holds) for p_holds in holds):
        holds = _adjusted(holds)
    evidence = tuple(
        Evidence(one, p_fails, _outcome(p_holds, p_fails))
        for one, p_holds, p_fails in zip(comparisons, holds, fails, strict=True)
    )
    outcomes = [one.outcome for one in evidence]
    if "does not hold" in outcomes:
        return Verdict("does not hold", evidence)
    return Verdict("undecided" if "undecided" in outcomes else "holds", evidence)


def _or_one(p_value: float | None) -> float:
    return 1.0 if p_value is None else p_value


def _outcome(p_holds: float | None, p_fails: float | None) -> Outcome:
    if _is_shown(p_holds):
        return "holds"
    return "does not hold" if _is_shown(p_fails) else "undecided"


def _is_shown(p_value: float | None) -> bool:
    return p_value is not None and p_value <= SIGNIFICANCE


def _adjusted(p_values: Sequence[float | None]) -> Sequence[float | None]:
    known = iter(holm([one for one in p_values if one is not None]))
    return [None if one is None else next(known) for one in p_values]


def shown_above(found: SeedMean, bound: float) -> float | None:
    """The p-value of a true mean of `bound` or less, of a one-sided t test; None where the seeds say nothing.

    That is a single one, or two that agree to the last digit: Recall@1 is a whole number of images, so that
    happens by chance. Three and more that do have no spread, and are above the bound or not: p is 0 or 1.
    """
    count = len(found.values)
    if found.std is None or (count == 2 and found.std < NO_SPREAD):
        return None
    gap, error = found.mean - bound, found.std / math.sqrt(count)
    if found.std < NO_SPREAD:
        return float(gap <= 0)
    return float(student.sf(gap / error, count - 1))


def shown_below(found: SeedMean, bound: float) -> float | None:
    """The p-value of a true mean of `bound` or more; None where the seeds say nothing."""
    mirrored = replace(found, mean=-found.mean)
    return shown_above(mirrored, -bound)


def both_shown(first: float | None, second: float | None) -> float | None:
    """The p-value of two tests that must both reject: the larger one."""
    return None if first is None or second is None else max(first, second)


def in_points(found: SeedMean) -> str:
    """A difference of shares with its interval, in percentage points."""
    return f"{100 * found.mean:+.1f} points{_interval(found, lambda one: f'{100 * one:+.1f}')}"


def as_ratio(found: SeedMean) -> str:
    """The ratio behind a difference of logarithms, with its interval."""
    return f"{math.exp(found.mean):.2f} times{_interval(found, lambda one: f'{math.exp(one):.2f}')}"


def _interval(found: SeedMean, shown: Callable[[float], str]) -> str:
    if found.low is None or found.high is None:
        return " (one seed: no interval)"
    return f" (95 %: {shown(found.low)} to {shown(found.high)})"


class Rule(ABC):
    """What must be true of the measurements for a claim to hold."""

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
        """The rule where only these points are measured; None where it says nothing of them."""

    @abstractmethod
    def _compare(self, values: Values, seeds: Sequence[int]) -> list[Comparison]: ...

    @final
    @property
    def points(self) -> frozenset[Point]:
        """All points that are compared."""
        return frozenset[Point]().union(*(one.points for one in self.comparisons))

    @final
    def judge(self, values: Values, seeds: Sequence[int]) -> Verdict:
        """The verdict.

        Args:
            values: what was measured, at every point of the rule for every seed.
            seeds: one or more; a single one decides nothing.

        Raises:
            InputError: (a ValueError) measurements are missing; names them.
        """
        missing = [
            f"{point_title(point)} (seed{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))})"
            for point in sorted(self.points)
            if (lacking := [seed for seed in seeds if seed not in values.get(point, {})])
        ]
        if missing or not seeds:
            shown = "; ".join(missing[:5]) + ("; ..." if len(missing) > 5 else "")
            raise InputError(
                f"no verdict without all runs; missing at {len(missing)} points: {shown}; want them finished:"
                " tuplet claims run"
            )
        return decide(self._compare(values, seeds))


@final
@dataclass(frozen=True)
class Within(Rule):
    """Every contrast lies within a margin of zero: two one-sided tests each.

    Attributes:
        contrasts: one or more.
        margin: of measurements in [0, 1]; > 0, and smaller than the contrast can be at most.

    Raises:
        InputError: (a ValueError) a margin that no measurement could leave, or nothing to compare.
    """

    contrasts: tuple[Contrast, ...]
    margin: float

    def __post_init__(self) -> None:
        _require_some(self.contrasts)
        largest = min(one.range for one in self.contrasts)
        if not 0 < self.margin < largest:
            raise InputError(
                f"margin is {self.margin}; want a number in (0, {largest:g}), or the claim could not fail"
            )

    @property
    def comparisons(self) -> tuple[Contrast, ...]:
        """All that is compared."""
        return self.contrasts

    @property
    def sentence(self) -> str:
        """The rule in words, for the report."""
        return f"Each within ±{_points(self.margin)} points: {_titles(self.contrasts)}."

    def among(self, points: Collection[Point]) -> Rule | None:
        """The rule where only these points are measured; None where it says nothing of them."""
        left = _among(self.contrasts, points)
        return replace(self, contrasts=left) if left else None

    def _compare(self, values: Values, seeds: Sequence[int]) -> list[Comparison]:
        compared = []
        for one in self.contrasts:
            found, margin = seed_mean(one.by_seed(values, seeds)), self.margin
            inside = both_shown(shown_above(found, -margin), shown_below(found, margin))
            outside = shown_above(found, margin) if found.mean > 0 else shown_below(found, -margin)
            compared.append(Comparison(one.title, found, inside, outside, in_points(found)))
        return compared


@final
@dataclass(frozen=True)
class Above(Rule):
    """Every contrast is larger than a bound.

    Attributes:
        contrasts: one or more.
        by: of measurements in [0, 1]; >= 0, and smaller than the contrast can be at most.

    Raises:
        InputError: (a ValueError) a bound that every or no measurement keeps, or nothing to compare.
    """

    contrasts: tuple[Contrast, ...]
    by: float = 0.0

    def __post_init__(self) -> None:
        _require_some(self.contrasts)
        largest = min(one.range for one in self.contrasts)
        if not 0 <= self.by < largest:
            raise InputError(
                f"by is {self.by}; want a number in [0, {largest:g}), or there is nothing to find"
            )

    @property
    def comparisons(self) -> tuple[Contrast, ...]:
        """All that is compared."""
        return self.contrasts

    @property
    def sentence(self) -> str:
        """The rule in words, for the report."""
        bound = f"{_points(self.by)} points" if self.by else "0"
        return f"Each more than {bound}: {_titles(self.contrasts)}."

    def among(self, points: Collection[Point]) -> Rule | None:
        """The rule where only these points are measured; None where it says nothing of them."""
        left = _among(self.contrasts, points)
        return replace(self, contrasts=left) if left else None

    def _compare(self, values: Values, seeds: Sequence[int]) -> list[Comparison]:
        compared = []
        for one in self.contrasts:
            found = seed_mean(one.by_seed(values, seeds))
            more, fewer = shown_above(found, self.by), shown_below(found, self.by)
            compared.append(Comparison(one.title, found, more, fewer, in_points(found)))
        return compared


@final
@dataclass(frozen=True)
class AtMostTimes(Rule):
    """A cost is at most so many times another, for every pair; judged on logarithms.

    Attributes:
        contrasts: one or more, each of two points with weights 1 and -1.
        factor: > 0; other than 0 and infinity.

    Raises:
        InputError: (a ValueError) no such factor, or nothing to compare.
    """

    contrasts: tuple[Contrast, ...]
    factor: float

    def __post_init__(self) -> None:
        _require_some(self.contrasts)
        if not 0 < self.factor < math.inf:
            raise InputError(
                f"factor is {self.factor}; want a finite number > 0, or the claim could not fail"
            )
        if any(sorted(weight for _, weight in one.weights) != [-1, 1] for one in self.contrasts):
            raise InputError("a ratio is of two points; want one less the other")

    @property
    def comparisons(self) -> tuple[Contrast, ...]:
        """All that is compared."""
        return self.contrasts

    @property
    def sentence(self) -> str:
        """The rule in words, for the report."""
        pairs = _ratio(_titles(self.contrasts))
        return f"Each ratio below {self.factor:g}: {pairs}."

    def among(self, points: Collection[Point]) -> Rule | None:
        """The rule where only these points are measured; None where it says nothing of them."""
        left = _among(self.contrasts, points)
        return replace(self, contrasts=left) if left else None

    def _compare(self, values: Values, seeds: Sequence[int]) -> list[Comparison]:
        logs = {point: {seed: math.log(one) for seed, one in by.items()} for point, by in values.items()}
        bound, compared = math.log(self.factor), []
        for one in self.contrasts:
            found = seed_mean(one.by_seed(logs, seeds))
            below, above = shown_below(found, bound), shown_above(found, bound)
            compared.append(Comparison(_ratio(one.title), found, below, above, as_ratio(found)))
        return compared


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
            raise InputError(f"{len(self.parts)} rules joined; want two or more")

    @property
    def comparisons(self) -> tuple[Contrast, ...]:
        """All that is compared."""
        return tuple(one for part in self.parts for one in part.comparisons)

    @property
    def sentence(self) -> str:
        """The rule in words, for the report."""
        return " And: ".join(part.sentence for part in self.parts)

    def among(self, points: Collection[Point]) -> Rule | None:
        """The rule where only these points are measured; None where one of its parts says nothing of them."""
        left = [part.among(points) for part in self.parts]
        kept = tuple(part for part in left if part is not None)
        return All(kept) if len(kept) == len(self.parts) else None

    def _compare(self, values: Values, seeds: Sequence[int]) -> list[Comparison]:
        return [one for part in self.parts for one in part._compare(values, seeds)]


def _among(contrasts: Sequence[Contrast], points: Collection[Point]) -> tuple[Contrast, ...]:
    left = [one.among(points) for one in contrasts]
    return tuple(one for one in left if one is not None)


def _require_some(contrasts: Sequence[Contrast]) -> None:
    if not contrasts:
        raise InputError("a rule without comparisons could not fail; want one or more")


def _titles(contrasts: Sequence[Contrast]) -> str:
    return "; ".join(one.title for one in contrasts)


def _points(share: float) -> str:
    return f"{100 * share:g}"


def _ratio(title: str) -> str:
    """The title of a difference of logarithms, as that of the ratio that it is."""
    return title.replace(" less ", " over ")
