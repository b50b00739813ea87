"""Verdicts, and the tests over seeds that they rest on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final

from scipy.stats import t as student

from tuplet.metrics.intervals import SeedMean, holm

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
