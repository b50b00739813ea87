"""Verdicts against scipy's own tests, and rules that could not fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tuplet.errors import DataError, SettingsError
from tuplet.research.claims.rules import (
    Above,
    All,
    AtMostTimes,
    Contrast,
    Rule,
    Values,
    Within,
    falls_less,
    minus,
    trend,
)

A, B, C, D = ("a",), ("b",), ("c",), ("d",)
SEEDS = range(5)


def values(**rows: list[float]) -> Values:
    return {(name,): dict(enumerate(row)) for name, row in rows.items()}


def random_values(seed: int, gaps: list[float], spread: float = 0.004) -> Values:
    generator = np.random.default_rng(seed)
    rows = [0.6 + gap + spread * generator.standard_normal(5) for gap in [0.0, *gaps]]
    return {(name,): dict(enumerate(row.tolist())) for name, row in zip("abcd", rows, strict=False)}


def differences(found: Values, first: tuple[str], second: tuple[str]) -> np.ndarray:
    return np.array([found[first][seed] - found[second][seed] for seed in SEEDS])


def stepped_down(p_values: list[float]) -> list[float]:
    """Holm, from its definition: the largest of (m - j) p_(j) over all that are no larger."""
    count = len(p_values)
    ranked = sorted(p_values)
    return [min(1.0, max((count - j) * ranked[j] for j in range(count) if ranked[j] <= p)) for p in p_values]


@pytest.mark.parametrize("seed", range(6))
def test_equivalence_is_two_one_sided_tests(seed: int) -> None:
    found = random_values(seed, [0.0, 0.014, 0.05], spread=0.006)
    rule = Within((minus(B, A), minus(C, A), minus(D, A)), 0.02)
    inside, outside = [], []
    for other in (B, C, D):
        gap = differences(found, other, A)
        low = stats.ttest_1samp(gap, -0.02, alternative="greater").pvalue
        high = stats.ttest_1samp(gap, 0.02, alternative="less").pvalue
        inside.append(max(low, high))
        side, bound = ("greater", 0.02) if gap.mean() > 0 else ("less", -0.02)
        outside.append(stats.ttest_1samp(gap, bound, alternative=side).pvalue)
    verdict = rule.judge(found, SEEDS)
    assert [one.p_holds for one in verdict.evidence] == pytest.approx(inside)
    assert [one.p_fails for one in verdict.evidence] == pytest.approx(outside)
    assert [one.p_fails_adjusted for one in verdict.evidence] == pytest.approx(stepped_down(outside))
    # The claim does not hold, so that those for it are picked from several.
    for one, p_in, p_out in zip(verdict.evidence, stepped_down(inside), stepped_down(outside), strict=True):
        wanted = "holds" if p_in <= 0.05 else "does not hold" if p_out <= 0.05 else "undecided"
        assert one.outcome == wanted
    assert verdict.outcome == "does not hold"  # b is 5 points off


def test_the_three_outcomes_of_equivalence() -> None:
    rule = Within((minus(B, A),), 0.02)
    alike = values(a=[0.5, 0.6, 0.55, 0.58, 0.52], b=[0.501, 0.598, 0.552, 0.581, 0.519])
    assert rule.judge(alike, SEEDS).outcome == "holds"
    apart = values(a=[0.5, 0.6, 0.55, 0.58, 0.52], b=[0.45, 0.55, 0.49, 0.52, 0.47])
    assert rule.judge(apart, SEEDS).outcome == "does not hold"
    noisy = values(a=[0.5, 0.6, 0.55, 0.58, 0.52], b=[0.6, 0.5, 0.57, 0.5, 0.6])
    assert rule.judge(noisy, SEEDS).outcome == "undecided"


def test_the_decisive_comparison() -> None:
    rule = Within((minus(B, A), minus(C, A), minus(D, A)), 0.02)
    outcomes = {}
    for gaps in ([0.002, 0.012, 0.004], [0.0, 0.02, 0.001], [0.04, 0.08, 0.001]):
        verdict = rule.judge(random_values(0, gaps), SEEDS)
        outcomes[verdict.outcome] = verdict.decisive.title
    assert outcomes == {"holds": "c minus a", "undecided": "c minus a", "does not hold": "c minus a"}
    everything = All((rule, Above((minus(A, D),))))
    verdict = everything.judge(random_values(0, [0.0, 0.001, 0.05]), SEEDS)
    assert (verdict.outcome, verdict.decisive.title) == ("does not hold", "a minus d")


@pytest.mark.parametrize("seed", range(6))
def test_better_is_a_one_sided_paired_test(seed: int) -> None:
    found = random_values(seed, [-0.02, -0.006])
    verdict = Above((minus(A, B), minus(A, C)), 0.005).judge(found, SEEDS)
    gaps = [differences(found, A, other) for other in (B, C)]
    more = [stats.ttest_1samp(gap, 0.005, alternative="greater").pvalue for gap in gaps]
    fewer = [stats.ttest_1samp(gap, 0.005, alternative="less").pvalue for gap in gaps]
    assert [one.p_holds for one in verdict.evidence] == pytest.approx(more)
    assert [one.p_fails_adjusted for one in verdict.evidence] == pytest.approx(stepped_down(fewer))


def test_what_holds_by_itself_is_adjusted_unless_all_hold() -> None:
    def judged(last: float) -> list[tuple[float | None, str]]:
        found = values(
            a=[0.53, 0.51, 0.55, 0.50, 0.52],
            b=[0.50, 0.51, 0.52, 0.49, 0.50],
            c=[0.53, 0.48, 0.52, 0.49, 0.50],
            d=[one + last for one in (0.53, 0.51, 0.55, 0.50, 0.52)],
        )
        verdict = Above((minus(A, B), minus(A, C), minus(A, D))).judge(found, SEEDS)
        return [(one.p_holds, one.outcome) for one in verdict.evidence]

    (first, _), (second, _), _ = together = judged(-0.1)
    assert first is not None
    assert 0.05 / 3 < first < 0.05
    assert second == pytest.approx(first)
    assert [outcome for _, outcome in together] == ["holds"] * 3
    assert [outcome for _, outcome in judged(0.0)] == ["undecided"] * 3


def test_pairing_is_by_seed() -> None:
    # Far apart between seeds and close within: an unpaired test would see nothing.
    found = values(a=[0.1, 0.5, 0.9, 0.3, 0.7], b=[0.09, 0.489, 0.891, 0.288, 0.69])
    assert Above((minus(A, B),)).judge(found, SEEDS).outcome == "holds"
    shuffled = {**found, B: dict(zip(SEEDS, [0.69, 0.09, 0.489, 0.891, 0.288], strict=True))}
    assert Above((minus(A, B),)).judge(shuffled, SEEDS).outcome == "undecided"


@pytest.mark.parametrize("seed", range(4))
def test_a_trend_is_the_slope_of_a_fitted_line(seed: int) -> None:
    found = random_values(seed, [0.01, 0.02, 0.04])
    numbers = [8.0, 16.0, 24.0, 40.0]
    one = trend([A, B, C, D], numbers)
    for place in SEEDS:
        slope = np.polyfit(numbers, [found[point][place] for point in (A, B, C, D)], 1)[0]
        assert one.by_seed(found, [place]) == pytest.approx([slope * 32])
    two = one.among({A, D})
    assert two is not None
    assert two.by_seed(found, [0]) == pytest.approx([found[D][0] - found[A][0]])
    assert one.among({B}) is None


def test_falls_less_is_a_difference_of_differences() -> None:
    found: Values = {
        ("0 %", "x"): {0: 0.9},
        ("20 %", "x"): {0: 0.8},
        ("0 %", "y"): {0: 0.95},
        ("20 %", "y"): {0: 0.7},
    }
    contrast = falls_less((("0 %", "x"), ("20 %", "x")), (("0 %", "y"), ("20 %", "y")))
    assert contrast.by_seed(found, [0]) == pytest.approx([0.15])
    assert contrast.title == "change of x from 0 % to 20 %, minus that of y"


def test_cost_is_judged_as_a_ratio() -> None:
    rule = AtMostTimes((minus(B, A),), 2.0)
    cheap = values(a=[1.0, 2.0, 4.0, 1.0, 2.0], b=[1.5, 2.9, 6.2, 1.6, 3.0])
    verdict = rule.judge(cheap, SEEDS)
    logs = np.log([cheap[B][seed] / cheap[A][seed] for seed in SEEDS])
    p_value = stats.ttest_1samp(logs, np.log(2), alternative="less").pvalue
    assert verdict.evidence[0].p_holds == pytest.approx(p_value)
    assert verdict.outcome == "holds"
    assert verdict.evidence[0].words.startswith("1.52 times (95 %: 1.45 to 1.59")
    assert verdict.evidence[0].title == "b over a"
    dear = values(a=[1.0, 2.0, 4.0, 1.0, 2.0], b=[2.5, 4.9, 10.2, 2.6, 5.0])
    assert rule.judge(dear, SEEDS).outcome == "does not hold"


@pytest.mark.parametrize(
    ("outcomes", "wanted"),
    [
        ((0.05, 0.05), "holds"),
        ((0.05, -0.05), "does not hold"),
        ((0.05, None), "undecided"),
        ((-0.05, None), "does not hold"),
    ],
)
def test_all_parts_must_hold(outcomes: tuple[float | None, ...], wanted: str) -> None:
    generator = np.random.default_rng(0)
    noise = 0.002 * generator.standard_normal(5)
    wild = 0.2 * np.array([1, -1, 1, -1, 0.1])
    rows = {A: np.full(5, 0.5)}
    for point, gap in zip((B, C), outcomes, strict=True):
        rows[point] = rows[A] + (wild if gap is None else gap + noise)
    found = {point: dict(enumerate(row.tolist())) for point, row in rows.items()}
    rule = All((Above((minus(B, A),)), Above((minus(C, A),))))
    assert rule.judge(found, SEEDS).outcome == wanted


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_no_difference_is_seldom_called_one(seed: int, count: int) -> None:
    """Whatever chance does, what it calls shown must be what its interval says."""
    generator = np.random.default_rng(seed)
    found = {point: dict(enumerate(generator.random(count).tolist())) for point in (A, B)}
    (evidence,) = Above((minus(A, B),)).judge(found, range(count)).evidence
    gap = [found[A][place] - found[B][place] for place in range(count)]
    low, high = stats.t.interval(0.9, count - 1, np.mean(gap), stats.sem(gap))
    assert (evidence.outcome == "holds") == (low >= 0)
    assert (evidence.outcome == "does not hold") == (high <= 0)


def test_a_false_alarm_is_as_rare_as_was_said() -> None:
    """Where nothing differs, one of four comparisons is called different in 5 % of all studies or fewer."""
    generator = np.random.default_rng(1)
    rule = Above(tuple(minus(A, other) for other in (B, C, D)))
    wrong = 0
    for _ in range(400):
        found = {p: dict(enumerate(generator.standard_normal(4).tolist())) for p in (A, B, C, D)}
        wrong += any(one.outcome == "does not hold" for one in rule.judge(found, range(4)).evidence)
    assert wrong <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5


def test_one_seed_decides_nothing_and_no_spread_decides() -> None:
    one = values(a=[0.9], b=[0.1])
    verdict = Above((minus(A, B),)).judge(one, [0])
    assert verdict.outcome == "undecided"
    assert verdict.evidence[0].words == "+80.0 points (one seed: no interval)"
    same = values(a=[0.5, 0.52, 0.6], b=[0.5, 0.52, 0.6])
    assert Within((minus(A, B),), 0.02).judge(same, [0, 1, 2]).outcome == "holds"
    assert Above((minus(A, B),), 0.01).judge(same, [0, 1, 2]).outcome == "does not hold"


def test_two_seeds_that_agree_by_chance_decide_nothing() -> None:
    """Recall@1 counts images: two differences of just one point are no proof of a difference of a point."""
    found = values(a=[0.75, 0.76], b=[0.76, 0.77])
    assert Within((minus(B, A),), 0.02).judge(found, [0, 1]).outcome == "undecided"
    assert Above((minus(B, A),)).judge(found, [0, 1]).outcome == "undecided"


def test_a_claim_of_two_rules_is_wrongly_refuted_no_oftener_than_was_said() -> None:
    """At the very bounds of both rules, either of which could refute it."""
    generator = np.random.default_rng(2)
    rule = All((Within((minus(B, A), minus(C, A)), 0.02), Above((minus(D, A),), 0.01)))
    at_bounds = {A: 0.0, B: 0.02, C: -0.02, D: 0.01}
    wrong = 0
    for _ in range(1000):
        found = {
            point: dict(enumerate((0.5 + gap + 0.01 * generator.standard_normal(5)).tolist()))
            for point, gap in at_bounds.items()
        }
        wrong += rule.judge(found, SEEDS).outcome == "does not hold"
    assert wrong <= 1000 * 0.05 + 2 * (1000 * 0.05 * 0.95) ** 0.5


def test_a_claim_holds_where_each_of_its_comparisons_does() -> None:
    """Three p-values of 4 %, all of which must be small, need no adjustment; one of them against it does."""
    gaps = np.array([-1.0, 0.0, 1.0, 2.0, -2.0]) / 1000
    mean = float(stats.t.isf(0.04, 4) * stats.sem(gaps))
    rows = {A: np.full(5, 0.5)} | dict.fromkeys((B, C, D), 0.5 + mean + gaps)
    found = {point: dict(enumerate(row.tolist())) for point, row in rows.items()}
    assert Above((minus(B, A), minus(C, A), minus(D, A))).judge(found, SEEDS).outcome == "holds"
    assert Above((minus(A, B), minus(A, C), minus(A, D))).judge(found, SEEDS).outcome == "undecided"
    assert Above((minus(A, B),)).judge(found, SEEDS).outcome == "does not hold"


def test_missing_runs_are_listed_and_no_verdict_is_given() -> None:
    found = values(a=[0.5, 0.6], b=[0.5])
    with pytest.raises(DataError) as error:
        All((Above((minus(A, B),)), Above((minus(A, C),)))).judge(found, [0, 1])
    assert error.value.given == (B, C)
    with pytest.raises(DataError):
        Above((minus(A, B),)).judge(found, [])


@pytest.mark.parametrize(
    ("make", "subject"),
    [
        *(
            (lambda margin=margin: Within((minus(B, A),), margin), "margin")
            for margin in (1, 0, -0.1, math.nan)
        ),
        (lambda: Within((), 0.02), "contrasts"),
        (lambda: Above(()), "contrasts"),
        *((lambda bound=bound: Above((minus(B, A),), bound), "by") for bound in (-0.5, 1.0)),
        *((lambda bound=bound: AtMostTimes((minus(B, A),), bound), "factor") for bound in (math.inf, 0.0)),
        (lambda: AtMostTimes((trend([A, B, C], [0, 1, 3]),), 2.0), "contrasts"),
        (lambda: All((Above((minus(B, A),)),)), "parts"),
        (lambda: minus(A, A), "points"),
        (lambda: Contrast("alone", ((A, 1.0),)), "points"),
        (lambda: Contrast("sum", ((A, 1.0), (B, 1.0))), "weights"),
        (lambda: trend([A], [1.0]), "points"),
    ],
)
def test_what_could_not_fail_is_refused(make, subject: str) -> None:
    with pytest.raises(SettingsError) as error:
        make()
    assert error.value.subject == subject


def test_a_smaller_grid_keeps_what_can_still_be_said() -> None:
    rule = All((Within((minus(B, A), minus(C, A)), 0.02), Above((minus(A, D),))))
    assert rule.among({A, B, D}).points == {A, B, D}  # type: ignore[union-attr]
    assert rule.among({A, B}) is None
    left: Rule | None = Within((minus(B, A), minus(C, A)), 0.02).among({A, C})
    assert left == Within((minus(C, A),), 0.02)


def test_sentences_say_what_is_compared() -> None:
    x, y = ("tau = 8", "lambda_s = 1"), ("tau = 8", "lambda_s = 2")
    assert Within((minus(y, x),), 0.02).sentence == (
        "Each within ±2 points: lambda_s = 2 minus lambda_s = 1 at tau = 8."
    )
    assert Above((minus(A, B),), 0.005).sentence == "Each more than 0.5 points: a minus b."
    assert AtMostTimes((minus(A, B),), 2.0).sentence == "Each ratio below 2: a over b."


def test_a_difference_that_rounds_to_zero_has_no_minus() -> None:
    measured = values(a=[0.5000, 0.5002], b=[0.5001, 0.5002])
    (evidence,) = Within((minus(A, B),), 0.02).judge(measured, range(2)).evidence
    assert evidence.over_seeds.mean < 0
    assert evidence.words.startswith("+0.0 points")
