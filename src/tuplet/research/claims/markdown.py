"""The report of a study as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tuplet.research.claims.claim import METRIC_TITLES
from tuplet.research.claims.report import Section, StudyReport
from tuplet.research.claims.tables import Table
from tuplet.research.claims.verdict import HOW_DECIDED

HOW_TO_READ = (
    f"Each claim's rule was fixed before its runs. {HOW_DECIDED} Numbers are mean ± standard deviation over"
    " seeds, with the 95 % t interval, and how their epoch was selected. Oracle less last is how far the best"
    " epoch on the test classes is above the last, in points of Recall@1; the study's numbers are such"
    " oracles, of one seed."
)


def study_markdown(report: StudyReport) -> str:
    """The report as a page of Markdown; the figures are in the HTML page.

    Args:
        report: what it says.
    """
    lines = [f"# {report.title}", "", report.base, "", HOW_TO_READ, ""]
    lines += ["| claim | | the study | here |", "| --- | --- | --- | --- |"]
    for section in report.sections:
        claim = section.result.claim
        here = f"**{section.verdict}**" + (f". {section.decided_by}" if section.decided_by else "")
        lines.append(f"| {claim.key} | {claim.statement} | {claim.found or 'did not look'} | {here} |")
    for section in report.sections:
        if section.verdict != "not run":
            lines += ["", *_section(section)]
    for title, table in (("Losses, every metric", report.table_3), ("Cost", report.costs)):
        if table is not None:
            lines += ["", f"## {title}", "", table.caption, "", *_table(table)]
    lines += ["", report.environment, "", *(f"    {command}" for command in report.commands), ""]
    return "\n".join(lines)


def _section(section: Section) -> list[str]:
    claim, result = section.result.claim, section.result
    lines = [
        f"## {claim.key}: {claim.title}",
        "",
        f"{claim.statement} ({claim.source}.)",
        *([f"The study: {claim.found}."] if claim.found else []),
        "",
        f"Rule: {result.rule}",
        "",
        f"**{section.why or section.verdict.capitalize()}.**",
    ]
    if section.settings or claim.reading:
        lines += ["", " ".join([*section.settings, claim.reading]).strip()]
    if section.rows:
        title = METRIC_TITLES[claim.metric]
        lines += [
            "",
            f"| {title}, {section.unit} | the study | ours | 95 % | seeds | oracle less last | selection |",
            "| --- | ---: | ---: | --- | ---: | ---: | --- |",
        ]
        for row in section.rows:
            cells = (row.name, row.study, row.ours, row.interval, row.seeds, row.flatters, row.selection)
            lines.append(f"| {' | '.join(cells)} |")
    if section.evidence:
        lines += ["", *(f"- {one}" for one in section.evidence)]
    if section.failed:
        lines += ["", "Failed:", *(f"- {one}" for one in section.failed)]
    return lines


def _table(table: Table) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = f"| --- |{' ---: |' * (len(table.head) - 1)}"
    return [line(table.head), rule, *map(line, table.rows)]
