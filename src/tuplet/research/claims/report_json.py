"""A study's report as JSON: every seed's value and every test, so that others can compute again."""

from __future__ import annotations

import json
from typing import Any

from tuplet.research.claims.contrast import point_title
from tuplet.research.claims.report import Section, StudyReport
from tuplet.research.claims.results import Cell
from tuplet.research.claims.verdict import Evidence


def study_json(report: StudyReport) -> str:
    """The numbers behind a report, as indented JSON.

    Shares are in [0, 1], times in seconds. A comparison is a difference of shares, or of the logarithms of
    times; its p-values are not adjusted. null stands for what is not known.
    """
    sections = [section for section in report.sections if section.verdict != "not run"]
    tree = {
        "title": report.title,
        "base": report.base,
        "commands": report.commands,
        "environment": report.environment,
        "claims": {section.result.claim.key: _section(section) for section in sections},
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def _section(section: Section) -> dict[str, Any]:
    result = section.result
    return {
        "statement": result.claim.statement,
        "rule": result.rule,
        "verdict": section.verdict,
        "metric": result.claim.metric,
        "points": [_point(cell) for cell in result.cells],
        "comparisons": [_comparison(one) for one in (result.verdict.evidence if result.verdict else ())],
    }


def _point(cell: Cell) -> dict[str, Any]:
    return {
        "point": point_title(cell.point),
        "selection": list(cell.labels),
        "values_by_seed": {str(seed): cell.values[seed] for seed in sorted(cell.values)},
        "failed_by_seed": {str(seed): why for seed, why in cell.failed.items()},
    }


def _comparison(one: Evidence) -> dict[str, Any]:
    found = one.comparison.over_seeds
    return {
        "title": one.title,
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "p_holds": one.comparison.p_holds,
        "p_fails": one.comparison.p_fails,
        "outcome": one.outcome,
    }
