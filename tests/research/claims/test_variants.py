"""The claims on variants of HIST: points that can be run on any base, and some of them by name."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from fabricated import fabricate_entry

from tuplet.config.overrides import override
from tuplet.errors import SettingsError
from tuplet.recipes.catalogue import recipe
from tuplet.research.claims.plan import (
    Plan,
    claims_of,
    entry_at,
    full_entry,
    glyphs,
    jobs_of,
    read_plan,
    write_plan,
)
from tuplet.research.claims.report import claims_report, report_html
from tuplet.research.claims.rules import Point

REFERENCES = [("plain HIST",), ("L_D alone",), ("Proxy-Anchor",)]
BASES = [glyphs(), recipe("cars-half-lite0"), recipe("cub-2010-lite0")]


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_every_point_is_another_run(base) -> None:
    for key in ("variants", "ema"):
        claim = claims_of(base)[key]
        configs = {point: claim.config(point, base) for point in claim.points}
        assert len(set(configs.values())) == len(configs)
        assert configs[claim.published] == base
        assert {config.loss.name for config in configs.values()} == {"hist", "proxy-anchor"}


def test_every_variant_is_compared_with_plain_hist_and_with_a_rival() -> None:
    rule = claims_of(glyphs())["variants"].rule
    compared = [[point for point, _ in contrast.weights] for contrast in rule.comparisons]
    first = [point for point, _ in compared]
    assert first == [point for point in dict.fromkeys(first) for _ in range(2)]
    assert {other for _, other in compared} == {REFERENCES[0], REFERENCES[2]}


def test_points_that_are_named_are_run_beside_their_rivals(tmp_path: Path) -> None:
    base = recipe("cars-half-lite0")
    claim = claims_of(base)["variants"]
    entry = entry_at(claim, 5, ["own share 0.5", "unit variance"])
    assert entry.points == (*REFERENCES, ("own share 0.5",), ("unit variance",))
    assert "gain 5" in entry.not_asked
    assert len(entry.not_asked) + len(entry.points) == len(claim.points)
    rule = claim.rule.among(entry.points)
    assert rule is not None
    assert len(rule.comparisons) == 4
    assert len(jobs_of(Plan(base), [entry])) == 5 * 5
    assert entry_at(claim, 5, []) == full_entry(claim, 5)
    write_plan(Plan(base).including([entry], "tuplet claims run variants"), tmp_path)
    plan = read_plan(tmp_path)
    assert plan is not None
    assert plan.entries["variants"].not_asked == entry.not_asked


def test_an_axis_without_a_named_level_stays_whole() -> None:
    claim = claims_of(glyphs())["ema"]
    entry = entry_at(claim, 2, ["decay = 0.99"])
    decays, losses = ("decay = 0", "decay = 0.99"), ("hist", "proxy-anchor")
    assert entry.points == tuple(itertools.product(decays, losses))


def test_both_claims_have_a_report_with_figures(tmp_path: Path) -> None:
    plan = Plan(override(glyphs(), {"schedule.epochs": 1, "schedule.warmup_epochs": 0}))
    names = ["own share 0.5", "decay = 0.99"]
    entries = [entry_at(plan.claims[key], 3, names) for key in ("variants", "ema")]
    plan = plan.including(entries, "tuplet claims run variants,ema")
    gain = {"own share 0.5": 0.1, "decay = 0.99": 0.05}

    def recall(point: Point, seed: int) -> float:
        return 0.5 + gain.get(point[0], 0.0) + 0.001 * seed * len(point[0])

    for entry in entries:
        fabricate_entry(tmp_path, plan, entry, recall)
    write_plan(plan, tmp_path)
    report = claims_report(plan, tmp_path)
    page = report_html(report)
    assert "Not asked for: L_CE trains the HGNN alone" in page
    assert page.count("<svg") >= 2
    told = {section.result.claim.key: section.verdict for section in report.sections}
    assert told["variants"] == told["ema"] == "holds"


def test_screening_is_on_validation_classes() -> None:
    base = override(recipe("cars-half-lite0"), {"evaluation.split": "validation"})
    claim = claims_of(base)["variants"]
    assert {claim.config(point, base).evaluation.split for point in claim.points} == {"validation"}


def test_a_base_that_has_a_variant_already_is_refused() -> None:
    base = override(glyphs(), {"schedule.ema": 0.99})
    with pytest.raises(SettingsError) as error:
        jobs_of(Plan(base), [full_entry(claims_of(base)["variants"], 1)])
    assert error.value.subject == "claim variants"
