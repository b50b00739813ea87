"""The report of a study as one self-contained HTML page."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from tuplet.report.pages import page_template
from tuplet.research.claims.claim import METRIC_TITLES
from tuplet.research.claims.figures import claim_figures
from tuplet.research.claims.markdown import HOW_TO_READ
from tuplet.research.claims.report import Section, StudyReport
from tuplet.research.claims.tables import OF_STUDY


def study_page(report: StudyReport) -> str:
    """The report as HTML that needs no other file and no network; equal content gives equal bytes.

    Args:
        report: what it says.
    """
    return page_template("claims.html").render(
        report=report,
        sections=[_section(one) for one in report.sections],
        maps={name: {**one, "svg": Markup(one["svg"])} for name, one in report.maps.items()},
        how_to_read=HOW_TO_READ,
        of_study=OF_STUDY,
        run=sum(section.verdict != "not run" for section in report.sections),
    )


_KINDS = {"holds": "holds", "does not hold": "fails", "undecided": "open", "not run": "missing"}


def _section(section: Section) -> dict[str, Any]:
    claim = section.result.claim
    return {
        "claim": claim,
        "rule": section.result.rule,
        "verdict": section.verdict,
        "why": section.why,
        "decided_by": section.decided_by,
        "kind": _KINDS.get(section.verdict, "missing"),
        "metric": METRIC_TITLES[claim.metric],
        "unit": section.unit,
        "rows": section.rows,
        "settings": section.settings,
        "evidence": section.evidence,
        "failed": section.failed,
        "has_study": any(row.study for row in section.rows),
        "figures": [
            {"svg": Markup(one.svg), "caption": one.caption} for one in claim_figures(section.result)
        ],
    }
