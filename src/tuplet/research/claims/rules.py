"""The rules by which a claim holds, fixed before it is run, and the verdicts that they give."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import final

from tuplet.errors import InputError
from tuplet.metrics.intervals import seed_mean
from tuplet.research.claims.contrast import Contrast, Point, Values, point_title
from tuplet.research.claims.verdict import (
    Comparison,
    Verdict,
    as_ratio,
    both_shown,
    decide,
    in_points,
    shown_above,
    shown_below,
)


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
