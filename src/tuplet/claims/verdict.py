"""Verdicts, and the tests over seeds that they rest on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final

from scipy.stats import t as student

from tuplet.claims.contrast import Contrast
from tuplet.comparison import holm
from tuplet.metrics.seeds import SeedMean

Outcome: TypeAlias = Literal["holds", "does not hold", "undecided"]

SIGNIFICANCE = 0.05
"""Largest p that decides, after Holm's adjustment for the number of comparisons."""

HOW_DECIDED = (
    "A claim holds where every comparison of its rule is shown to be as the rule wants it, does not hold"
    " where one is shown to be otherwise, and is undecided at this number of seeds in all other cases."
    " Shown: by one-sided t tests over seeds, the same seeds at every point, at 5 %, adjusted by Holm for"
    " the number of comparisons; within a margin by two of them, one a side."
)
"""What all rules have in common, for the report."""


@final
@dataclass(frozen=True)
class Evidence:
    """One comparison and what it says.

    Attributes:
        title: what is compared.
        outcome: of this comparison alone.
        over_seeds: its value with its interval over seeds; of a ratio, that of its logarithm.
        p_holds: adjusted; small where the comparison supports the claim.
        p_fails: adjusted; small where it contradicts it.
        words: the value and its interval, in the unit of the report.
    """

    title: str
    outcome: Outcome
    over_seeds: SeedMean
    p_holds: float | None
    p_fails: float | None
    words: str


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
            return min(against, key=lambda one: 1.0 if one.p_fails is None else one.p_fails)
        return max(self.evidence, key=lambda one: 1.0 if one.p_holds is None else one.p_holds)


def family_verdict(
    contrasts: Sequence[Contrast],
    found: Sequence[SeedMean],
    supports: Sequence[float | None],
    contradicts: Sequence[float | None],
    words: Callable[[SeedMean], str],
) -> Verdict:
    """What one family of comparisons says, its p-values adjusted for their number.

    Args:
        contrasts: what is compared.
        found: the value of each over seeds.
        supports: p-value of each that is small where it supports the claim; None for a single seed.
        contradicts: p-value of each that is small where it contradicts the claim.
        words: a value with its interval, in the unit of the report.
    """
    for_it, against_it = _adjusted(supports), _adjusted(contradicts)
    rows = zip(contrasts, found, for_it, against_it, strict=True)
    evidence = tuple(
        Evidence(one.title, _outcome(p_for, p_against), over_seeds, p_for, p_against, words(over_seeds))
        for one, over_seeds, p_for, p_against in rows
    )
    return Verdict(together([one.outcome for one in evidence]), evidence)


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several comparisons that must all hold: one that does not decides, then one that is undecided."""
    if "does not hold" in outcomes:
        return "does not hold"
    return "undecided" if "undecided" in outcomes else "holds"


def _outcome(p_holds: float | None, p_fails: float | None) -> Outcome:
    if p_holds is not None and p_holds <= SIGNIFICANCE:
        return "holds"
    return "does not hold" if p_fails is not None and p_fails <= SIGNIFICANCE else "undecided"


def _adjusted(p_values: Sequence[float | None]) -> Sequence[float | None]:
    known = [one for one in p_values if one is not None]
    return holm(known) if len(known) == len(p_values) else [None] * len(p_values)


def shown_above(found: SeedMean, bound: float) -> float | None:
    """The p-value of a true mean of `bound` or less, of a one-sided t test; None for a single seed.

    Values that are all the same have no spread, and are above the bound or not: p is 0 or 1.
    """
    if found.std is None:
        return None
    count = len(found.values)
    gap, error = found.mean - bound, found.std / math.sqrt(count)
    if error == 0:
        return float(gap <= 0)
    return float(student.sf(gap / error, count - 1))


def shown_below(found: SeedMean, bound: float) -> float | None:
    """The p-value of a true mean of `bound` or more; None for a single seed."""
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
