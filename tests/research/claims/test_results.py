"""What a study's folder says: numbers, verdicts, and pages, of fabricated runs."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fabricated import fabricate, fabricate_entry
from html_page import Page

from tuplet.config.overrides import override
from tuplet.data.files import write_atomically
from tuplet.recipes.catalogue import recipe
from tuplet.research.claims.budget import thinned
from tuplet.research.claims.plan import Plan, entry_at, full_entry, glyphs, run_key
from tuplet.research.claims.report import (
    claim_figures,
    claims_report,
    report_html,
    report_json,
    report_markdown,
)
from tuplet.research.claims.results import (
    MEASUREMENTS,
    ClaimResult,
    diagnosis_table,
    measure_file,
    results,
    seed_pairs,
    shared_neighbours,
)
from tuplet.research.claims.rules import Point
from tuplet.research.claims.running import Job, record_failure, run_folder


@pytest.fixture
def plan() -> Plan:
    return Plan(override(glyphs(), {"schedule.epochs": 2}))


def of(plan: Plan, folder: Path, key: str) -> ClaimResult:
    return next(one for one in results(plan, folder) if one.claim.key == key)


def layers(point: Point, seed: int) -> float:
    return 0.8 + 0.001 * seed - (0.05 if point == ("L = 5",) else 0.0) + 0.0005 * (len(point[0]) * seed % 3)


def test_numbers_and_verdict_are_those_of_the_runs(tmp_path: Path, plan: Plan) -> None:
    entry = full_entry(plan.claims["2"], 3)
    plan = plan.including([entry], "tuplet claims run 2")
    fabricate_entry(tmp_path, plan, entry, layers)
    found = of(plan, tmp_path, "2")
    assert found.verdict is not None
    assert found.verdict.outcome == "does not hold"
    assert [one.outcome for one in found.verdict.evidence] == ["holds", "holds", "holds", "does not hold"]
    for cell in found.cells:
        values = [layers(cell.point, seed) for seed in range(3)]
        assert cell.mean is not None
        assert cell.mean.mean == pytest.approx(statistics.fmean(values))
        assert cell.mean.std == pytest.approx(statistics.stdev(values))
        assert cell.labels == ("last epoch of 2",)
    told = json.loads(report_json(claims_report(plan, tmp_path)))["claims"]
    assert list(told) == ["2"]
    assert told["2"]["verdict"] == "does not hold"
    for point, cell in zip(told["2"]["points"], found.cells, strict=True):
        wanted = {str(seed): layers(cell.point, seed) for seed in range(3)}
        assert point["values_by_seed"] == pytest.approx(wanted)
    last = told["2"]["comparisons"][-1]
    gaps = [layers(("L = 5",), seed) - layers(("L = 2",), seed) for seed in range(3)]
    assert last["mean"] == pytest.approx(statistics.fmean(gaps))
    assert (last["outcome"], last["p_fails"]) == (
        "does not hold",
        found.verdict.evidence[-1].p_fails,
    )
    page = report_markdown(claims_report(plan, tmp_path))
    assert "| 2 | HIST performs consistently whatever the number of layers" in page
    mean = statistics.fmean(layers(("L = 5",), seed) for seed in range(3))
    assert f"| L = 5 |  | {100 * mean:.1f} ± " in page
    assert "L = 5 minus L = 2: -5.0 points (95 %: " in page
    assert "| **does not hold**. L = 5 minus L = 2: -5.0 points (95 %: " in page
    others = [key for key in plan.claims if key != "2"]
    assert f"\nNot run: {', '.join(others)}.\n" in page


def test_an_incomplete_study_has_no_verdict(tmp_path: Path, plan: Plan) -> None:
    entry = full_entry(plan.claims["hgnn"], 2)
    plan = plan.including([entry], "tuplet claims run hgnn")
    assert of(plan, tmp_path, "hgnn").why == "not run"
    report = claims_report(plan, tmp_path)
    assert {section.verdict for section in report.sections} == {"not run"}
    first = plan.config(entry, ("with HGNN",), 0)
    fabricate(tmp_path, first, [0.1, 0.2, 0.3])
    found = of(plan, tmp_path, "hgnn")
    assert found.verdict is None
    assert found.why.startswith(
        "no verdict without all runs; missing at 2 points: with HGNN (seed 1); without"
    )
    page = report_markdown(claims_report(plan, tmp_path))
    assert not re.search(r"\*\*(Holds|Does not hold|Undecided)\.\*\*", page)
    assert "| without HGNN |  | not run |  | 0 of 2 |" in page


def test_a_comparison_is_over_the_seeds_that_its_points_share(tmp_path: Path, plan: Plan) -> None:
    claim = plan.claims["2"]
    plan = plan.including([entry_at(claim, 4, ["L = 1"])], "first")
    plan = plan.including([plan.extended(entry_at(claim, 2, ["L = 5"]))], "second")
    entry = plan.entries["2"]
    for point in entry.points:
        for seed in plan.seeds(entry, point):
            fabricate(tmp_path, plan.config(entry, point, seed), [layers(point, seed)] * 3)
    found = of(plan, tmp_path, "2")
    assert [(cell.point, len(cell.runs), cell.unfinished) for cell in found.cells] == [
        (("L = 1",), 4, ()),
        (("L = 2",), 4, ()),
        (("L = 5",), 2, ()),
    ]
    assert found.verdict is not None
    first, last = (len(one.over_seeds.values) for one in found.verdict.evidence)
    assert (first, last) == (4, 2)
    page = report_markdown(claims_report(plan, tmp_path))
    assert "Seeds 0 to 3, fewer at some points." in page
    assert "| 2 of 2 |" in page


def test_a_diagnosis_is_shown_beside_the_verdict(tmp_path: Path, plan: Plan) -> None:
    plan = plan.including([full_entry(plan.claims["hgnn"], 2)], "tuplet claims run hgnn")
    measurements = dict.fromkeys((one.name for one in MEASUREMENTS[:-1]), 0.5)
    for seed, share in enumerate((0.1, 0.2)):
        config = plan.config(plan.entries["hgnn"], ("with HGNN",), seed)
        fabricate(tmp_path, config, [0.1, 0.2, 0.3], diagnosis={**measurements, "own_share": share})
    fabricate(tmp_path, plan.config(plan.entries["hgnn"], ("without HGNN",), 0), [0.1, 0.2, 0.3])
    table = diagnosis_table(of(plan, tmp_path, "hgnn"))
    assert table is not None
    assert table.rows == (("with HGNN", "15", "50", "50.0", "0.500", "0.500", "0.50", "0.50", "0.25"),)
    report = claims_report(plan, tmp_path)
    assert "| with HGNN | 15 | 50 |" in report_markdown(report)
    assert "differences left" in report_html(report)
    assert "validation" not in report.base
    with_hgnn, without = json.loads(report_json(report))["claims"]["hgnn"]["points"]
    assert with_hgnn["diagnosis_by_seed"]["1"] == {**measurements, "own_share": 0.2, "cross_entropy": 0.25}
    assert "diagnosis_by_seed" not in without


def test_the_report_says_where_numbers_are_of_validation_classes(tmp_path: Path) -> None:
    plan = Plan(override(glyphs(), {"evaluation.split": "validation"}))
    assert claims_report(plan, tmp_path).base.endswith("Measured on validation classes.")


def test_a_run_that_was_only_begun_is_not_counted(tmp_path: Path, plan: Plan) -> None:
    entry = full_entry(plan.claims["hgnn"], 1)
    plan = plan.including([entry], "x")
    run = fabricate(tmp_path, plan.config(entry, ("with HGNN",), 0), [0.1, 0.2, 0.3])
    assert of(plan, tmp_path, "hgnn").cells[0].values == {0: 0.3}
    run.model_folder.rmdir()
    assert of(plan, tmp_path, "hgnn").cells[0].unfinished == (0,)


def test_failed_runs_are_told_and_keep_the_verdict_back(tmp_path: Path, plan: Plan) -> None:
    entry = full_entry(plan.claims["hgnn"], 2)
    plan = plan.including([entry], "x")
    config = plan.config(entry, ("without HGNN",), 1)
    tmp_path.joinpath("runs").mkdir()
    record_failure(tmp_path, Job(run_key(config), config, "t"), "it\ndiverged", lasting=True)
    fabricate_entry(tmp_path, plan, replace(entry, num_seeds=1), lambda point, seed: 0.5)
    fabricate(tmp_path, plan.config(entry, ("with HGNN",), 1), [0.5] * 3)
    found = of(plan, tmp_path, "hgnn")
    assert found.verdict is None
    assert found.why.endswith("1 failed")
    report = claims_report(plan, tmp_path)
    assert "without HGNN, seed 1: it diverged" in report_markdown(report)
    assert "without HGNN, seed 1: it diverged" in report_html(report)


def test_how_much_the_oracle_flatters(tmp_path: Path, plan: Plan) -> None:
    entry = full_entry(plan.claims["hgnn"], 2)
    plan = plan.including([entry], "x")
    for seed, recalls in enumerate(([0.3, 0.6, 0.5], [0.2, 0.5, 0.52])):
        fabricate(tmp_path, plan.config(entry, ("with HGNN",), seed), recalls)
        fabricate(tmp_path, plan.config(entry, ("without HGNN",), seed), [0.3, None, 0.5])
    with_it, without = of(plan, tmp_path, "hgnn").cells
    assert with_it.flatters is not None
    assert with_it.flatters.mean == pytest.approx((0.1 + 0.0) / 2)
    assert without.flatters is None
    page = report_markdown(claims_report(plan, tmp_path))
    assert "| 2 of 2 | +5.0 | last epoch of 2 |" in page
    assert "| 2 of 2 | not measured | last epoch of 2 |" in page


def test_the_selection_of_the_base_stands_at_its_numbers(tmp_path: Path) -> None:
    base = override(glyphs(), {"schedule.epochs": 2, "evaluation.selection": "oracle"})
    plan = Plan(base)
    entry = full_entry(plan.claims["hgnn"], 2)
    plan = plan.including([entry], "x")
    for point in entry.points:
        for seed in range(2):
            fabricate(tmp_path, plan.config(entry, point, seed), [0.3, 0.6, 0.5])
    cell = of(plan, tmp_path, "hgnn").cells[0]
    assert cell.values == {0: 0.6, 1: 0.6}
    assert cell.labels == ("oracle: epoch 1 of 2, the best on the test classes themselves",)
    assert (
        report_markdown(claims_report(plan, tmp_path)).count("the best on the test classes themselves |") == 2
    )


def test_agreement_is_of_pairs_of_seeds(tmp_path: Path, plan: Plan) -> None:
    entry = full_entry(plan.claims["agreement"], 5)
    plan = plan.including([entry], "x")
    assert seed_pairs(plan.seeds(entry)) == [(0, 1), (2, 3)]
    fabricate_entry(tmp_path, plan, entry, lambda point, seed: 0.5)
    (tmp_path / "measures").mkdir()
    shares = {"hist": (0.6, 0.62), "proxy-anchor": (0.5, 0.521), "multi-similarity": (0.4, 0.418)}
    for (loss,), values in ((point, shares[point[0]]) for point in entry.points):
        for (first, second), share in zip(((0, 1), (2, 3)), values, strict=True):
            file = measure_file(
                tmp_path, "agreement", *(plan.config(entry, (loss,), seed) for seed in (first, second))
            )
            write_atomically(file, f'{{"share": {share}}}'.encode())
    found = of(plan, tmp_path, "agreement")
    assert found.cells[0].values == {0: 0.6, 2: 0.62}
    assert found.verdict is not None
    assert found.verdict.outcome == "holds"


def test_cost_is_read_from_the_epochs(tmp_path: Path, plan: Plan) -> None:
    entry = full_entry(plan.claims["cost"], 3)
    entry = replace(entry, points=(("C = 20,000", "hist"), ("C = 100", "hist")))
    plan = plan.including([entry], "x")
    for point, rate in zip(entry.points, (40.0, 100.0), strict=True):
        for seed in range(3):
            config = plan.config(entry, point, seed)
            fabricate(tmp_path, config, [0.5] * (config.schedule.epochs + 1), rate=rate)
    found = of(plan, tmp_path, "cost")
    assert [cell.values[0] for cell in found.cells] == pytest.approx([1 / 40, 1 / 100])
    assert found.verdict is not None
    assert found.verdict.outcome == "does not hold"
    assert "2.50 times" in found.verdict.evidence[0].words
    assert "| C = 20,000 · hist |  | 25.00 ± 0.00 |" in report_markdown(claims_report(plan, tmp_path))


def test_the_study_s_numbers_stand_beside_ours_on_its_data(tmp_path: Path) -> None:
    base = override(recipe("cars-resnet50"), {"schedule.epochs": 2})
    plan = Plan(base)
    entries = [thinned(plan.claims[key], full_entry(plan.claims[key], 2)) for key in ("5", "distances")]
    points = (("tau = 8", "lambda_s = 1.5"), ("tau = 32", "lambda_s = 1"))
    entries.append(replace(full_entry(plan.claims["4"], 2), points=points))
    plan = plan.including(entries, "x")
    for entry in entries:
        fabricate_entry(tmp_path, plan, entry, lambda point, seed: 0.8 + 0.01 * seed)
    report = claims_report(plan, tmp_path)
    page = report_markdown(report)
    assert "| tau = 8 · lambda_s = 1.5 | 78.63 | 80.5 ± 0.7 |" in page
    assert "| euclidean | 87.2 |" in page
    assert "| [TUNE] HIST | 90.2 | 94.5 | 96.8 |  | 75.8 | the study: one seed," in page
    assert "The study: 0.6 hours a training on a V100." in page
    figures = {one.claim.key: claim_figures(one) for one in results(plan, tmp_path)}
    assert len(figures["4"]) == 2  # ours, and the study's Figure 3b
    assert ">83.05<" in figures["4"][1].svg
    assert ">89.93<" in figures["4"][1].svg
    assert ">80.5<" in figures["4"][0].svg
    assert "Crosses: the study's" in figures["5"][0].caption


def test_the_page_is_whole_and_says_the_same(tmp_path: Path, plan: Plan) -> None:
    entry = full_entry(plan.claims["2"], 3)
    other = thinned(plan.claims["4"], full_entry(plan.claims["4"], 2))
    other = replace(other, left_out=("without tau = 16 & <more>",))
    plan = plan.including([entry, other], "tuplet claims run 2,4 --on 'a & b'")
    fabricate_entry(tmp_path, plan, entry, layers)
    fabricate_entry(tmp_path, plan, other, lambda point, seed: 0.7 + 0.01 * (seed + len(point[0])))
    report = claims_report(plan, tmp_path)
    html = report_html(report)
    assert html == report_html(claims_report(plan, tmp_path))
    page = Page(html)
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.attributes("a")} <= set(ids)
    assert [given for _, given in page.tags if {"src", "onclick"} & given.keys()] == []
    for section in report.sections:
        assert section.result.claim.statement in page.text
        if section.verdict != "not run":
            assert section.result.rule in page.text
            assert all(line in page.text for line in section.evidence)
            assert all(row.ours in page.text and row.selection in page.text for row in section.rows)
    assert "without tau = 16 & <more>" in page.text
    assert html.count("<svg") == 2


def test_a_rule_that_was_changed_after_the_runs_is_told(tmp_path: Path, plan: Plan) -> None:
    entry = replace(full_entry(plan.claims["hgnn"], 2), rule="Each more than 9 points: something else.")
    plan = plan.including([entry], "x")
    fabricate_entry(tmp_path, plan, entry, lambda point, seed: 0.5)
    page = report_markdown(claims_report(plan, tmp_path))
    assert "The rule was changed after the runs were planned; it was: Each more than 9 points" in page


def test_a_thinned_grid_is_judged_on_what_was_planned(tmp_path: Path, plan: Plan) -> None:
    entry = replace(full_entry(plan.claims["2"], 3), points=(("L = 1",), ("L = 2",), ("L = 5",)))
    plan = plan.including([entry], "x")
    fabricate_entry(tmp_path, plan, entry, layers)
    found = of(plan, tmp_path, "2")
    assert found.rule == "Each within ±2 points: L = 1 minus L = 2; L = 5 minus L = 2."
    assert found.verdict is not None
    assert len(found.verdict.evidence) == 2
    assert run_folder(tmp_path, run_key(plan.config(entry, ("L = 1",), 0))).exists()


def test_shared_neighbours_against_loops() -> None:
    generator = np.random.default_rng(0)
    first = generator.standard_normal((12, 4)).astype(np.float32)
    second = (first + 0.6 * generator.standard_normal((12, 4))).astype(np.float32)

    def nearest(rows: np.ndarray, i: int) -> set[int]:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        order = sorted((j for j in range(12) if j != i), key=lambda j: -float(unit[i] @ unit[j]))
        return set(order[:3])

    wanted = np.mean([len(nearest(first, i) & nearest(second, i)) / 3 for i in range(12)])
    assert 0 < wanted < 1
    assert shared_neighbours(first, second, num_neighbours=3) == pytest.approx(wanted)
    assert shared_neighbours(first, 5 * first, num_neighbours=3) == 1.0


def test_pairs_of_seeds_are_disjoint() -> None:
    assert seed_pairs((3, 4, 5, 6, 7)) == [(3, 4), (5, 6)]
    assert seed_pairs((3,)) == []
