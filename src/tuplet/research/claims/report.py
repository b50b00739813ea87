"""The report of a claims run: tables and figures, as JSON, Markdown and one HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from tuplet.config import RunConfig
from tuplet.metrics.intervals import SeedMean, interval_of_share
from tuplet.report.markdown import table_head, table_row
from tuplet.report.pages import page_template
from tuplet.report.plots import DASHES, GRID, INK, SERIES, inline_svg, page_axes
from tuplet.research.bench import commits, machines, spread
from tuplet.research.claims.claim import METRIC_TITLES, Axis, Claim, Level
from tuplet.research.claims.plan import Plan
from tuplet.research.claims.results import (
    OF_STUDY,
    Cell,
    ClaimResult,
    Table,
    cost_table,
    diagnosis_table,
    mapped_run,
    measure_file,
    read_measure,
    results,
    table_3,
)
from tuplet.research.claims.rules import HOW_DECIDED, Evidence, Point, point_title
from tuplet.training.environment import current_commit

HOW_TO_READ = (
    f"Each claim's rule was fixed before its runs. {HOW_DECIDED} Numbers are mean ± standard deviation over"
    " seeds, with the 95 % t interval, and how their epoch was selected. Oracle minus last is how far the"
    " best epoch on the test classes is above the last, in points of Recall@1; the study's numbers are such"
    " oracles, of one seed."
)

_STUDY_COLOR = SERIES[7]
_KINDS = {"holds": "holds", "does not hold": "fails", "undecided": "open"}
"""Classes of the verdicts in the page's style sheet."""


class Row(NamedTuple):
    """One line of a claim's table, as text."""

    name: str
    study: str
    """Recall@1 as the HIST study prints it."""
    ours: str
    """Mean and standard deviation over seeds."""
    interval: str
    seeds: str
    """Finished of those planned."""
    flatters: str
    """How much the best epoch on the test classes is above the last, in points."""
    selection: str
    """How the epoch was selected."""


@final
@dataclass(frozen=True)
class Section:
    """One claim of the report.

    Attributes:
        result: of the claim.
        verdict: holds, does not hold, undecided, no verdict or not run.
        why: what is missing for a verdict; empty where there is one.
        decided_by: the comparison that the verdict hangs on, in words; empty without a verdict.
        rows: of its table.
        settings: seeds, epochs and what was left out, a sentence each.
        evidence: each comparison in words.
        failed: runs that failed, and why.
        diagnosis: what the hypergraph did, by point; None if no run measured it.
    """

    result: ClaimResult
    verdict: str
    why: str
    decided_by: str
    rows: tuple[Row, ...]
    settings: tuple[str, ...]
    evidence: tuple[str, ...]
    failed: tuple[str, ...]
    diagnosis: Table | None


@final
@dataclass(frozen=True)
class ClaimsReport:
    """The contents of a report.

    Attributes:
        title: of the page.
        base: what the claims are run on, a sentence.
        sections: by claim.
        table_3: every metric of the losses, where claim 5 was run.
        costs: hours of training.
        maps: figures of the embeddings by split, as `EmbeddingMap` has them; empty without.
        environment: a line on machines and commits.
        commands: that planned the claims run.
    """

    title: str
    base: str
    sections: tuple[Section, ...]
    table_3: Table | None
    costs: Table | None
    maps: Mapping[str, Mapping[str, Any]]
    environment: str
    commands: tuple[str, ...]

    @property
    def run_sections(self) -> list[Section]:
        """The claims of which something was run."""
        return [section for section in self.sections if section.verdict != "not run"]


def claims_report(plan: Plan, folder: Path) -> ClaimsReport:
    """Collect the report of the claims run in a folder, from what is finished there."""
    of_claims = results(plan, folder)
    runs = {run.key: run for result in of_claims for cell in result.cells for run in cell.runs.values()}
    environments = [run.environment for run in runs.values()]
    judged = commits([{"commit": current_commit()}])
    where = f"{machines(environments)}; trained at commit {commits(environments)}, judged at commit {judged}."
    mapped = mapped_run(plan, folder)
    maps = None if mapped is None else read_measure(measure_file(folder, "maps", mapped))
    return ClaimsReport(
        f"The study on {plan.base.name}",
        _base_sentence(plan.base),
        tuple(_section(plan, result) for result in of_claims),
        table_3(plan, folder, of_claims),
        cost_table(plan, of_claims, runs),
        maps or {},
        where if runs else "",
        plan.commands,
    )


def _base_sentence(base: RunConfig) -> str:
    data, loss = base.data, base.loss
    source = f"{data.source} images" if data.root is None else f"{data.source} images in {data.root.name}"
    return (
        f"Base: {base.model.backbone} on {source}, {base.schedule.epochs} epochs, batches of"
        f" {data.batch_size}; HIST with tau = {loss.tau:g}, alpha = {loss.alpha:g}, lambda_s ="
        f" {loss.lambda_s:g}, {loss.num_layers} layers of {loss.hidden_dim}; D = {base.model.embedding_dim}."
        + (" Measured on validation classes." if base.evaluation.split == "validation" else "")
    )


def _section(plan: Plan, result: ClaimResult) -> Section:
    entry, verdict = result.entry, result.verdict
    settings = []
    if entry is not None:
        seeds = plan.seeds(entry)
        single = f"Seed {seeds[0]}: no interval."
        fewer = ", fewer at some points" if entry.seeds_by_point else ""
        settings.append(f"Seeds {seeds[0]} to {seeds[-1]}{fewer}." if len(seeds) > 1 else single)
        if result.claim.base == "glyphs":
            settings.append("On generated characters, whatever the study is run on.")
        if entry.not_asked:
            settings.append(f"Not asked for: {'; '.join(entry.not_asked)}.")
        if entry.left_out:
            settings.append(f"For the budget: {'; '.join(entry.left_out)}.")
        if entry.rule != result.claim.rule.sentence:
            settings.append(f"The rule was changed after the runs were planned; it was: {entry.rule}")
    failed = [(cell.point, *failure) for cell in result.cells for failure in cell.failed.items()]
    outcome = "no verdict" if verdict is None else verdict.outcome
    return Section(
        result,
        "not run" if result.why == "not run" else outcome,
        result.why[:1].upper() + result.why[1:],
        "" if verdict is None else f"{verdict.decisive.title}: {verdict.decisive.words}",
        tuple(_row(result, cell) for cell in result.cells),
        tuple(settings),
        tuple(
            f"{item.title}: {item.words}: {item.outcome}" for item in (verdict.evidence if verdict else ())
        ),
        tuple(f"{point_title(point)}, seed {seed}: {why}" for point, seed, why in failed),
        diagnosis_table(result),
    )


def _row(result: ClaimResult, cell: Cell) -> Row:
    factor = _factor(result.claim)
    study, mean, flatters = result.study.get(cell.point), cell.mean, cell.flatters
    planned = len(cell.runs) + len(cell.unfinished) + len(cell.failed)
    pairs = f"{len(cell.values)} of {planned // 2} pairs"
    interval = ""
    if mean is not None and mean.low is not None:
        digits = 1 if factor == 100 else 2
        interval = " to ".join(f"{factor * end:.{digits}f}" for end in _interval(result.claim, mean))
    missing = "not compared yet" if len(cell.runs) > 1 else "not run"
    return Row(
        point_title(cell.point),
        "" if study is None else _printed(100 * study),
        missing if mean is None else spread(mean, factor),
        interval,
        pairs if result.claim.metric == "agreement" else f"{len(cell.runs)} of {planned}",
        "not measured" if flatters is None else f"{100 * flatters.mean:+z.1f}",
        "; ".join(cell.labels),
    )


def _factor(claim: Claim) -> float:
    """Return the factor from a measurement to its displayed unit: milliseconds or percent."""
    return 1000.0 if claim.metric == "seconds_per_image" else 100.0


def _unit(claim: Claim) -> str:
    return "ms" if claim.metric == "seconds_per_image" else "%"


def _printed(percent: float) -> str:
    """Return a percentage with one digit behind the point, or two where the study prints two."""
    return f"{percent:.2f}".removesuffix("0")


def _interval(claim: Claim, mean: SeedMean) -> tuple[float, float]:
    """Return the ends of the t interval, as far as the scale goes; the mean twice for a single seed."""
    most = math.inf if claim.metric == "seconds_per_image" else 1.0
    return interval_of_share(mean, most=most) or (mean.mean, mean.mean)


def report_json(report: ClaimsReport) -> str:
    """Return the numbers behind a report as indented JSON, from which others can compute all verdicts again.

    Shares are in [0, 1], times in seconds. A comparison is a difference of shares, or of the logarithms of
    times; its p-values are not adjusted. null stands for what is not known.
    """
    tree = {
        "title": report.title,
        "base": report.base,
        "commands": report.commands,
        "environment": report.environment,
        "claims": {section.result.claim.key: _json_section(section) for section in report.run_sections},
    }
    return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _diagnosis_by_seed(cell: Cell) -> dict[str, dict[str, float | None]]:
    diagnoses = {seed: cell.runs[seed].diagnosis for seed in sorted(cell.runs) if cell.runs[seed].diagnosis}
    return {
        # NaN, such as of embeddings without any spread, is no JSON.
        str(seed): {name: value if math.isfinite(value) else None for name, value in diagnosis.items()}
        for seed, diagnosis in diagnoses.items()
    }


def _json_section(section: Section) -> dict[str, Any]:
    def point(cell: Cell) -> dict[str, Any]:
        return {
            "point": point_title(cell.point),
            "selection": list(cell.labels),
            "values_by_seed": {str(seed): cell.values[seed] for seed in sorted(cell.values)},
            **({"diagnosis_by_seed": diagnosis} if (diagnosis := _diagnosis_by_seed(cell)) else {}),
            "failed_by_seed": {str(seed): why for seed, why in cell.failed.items()},
        }

    def comparison(item: Evidence) -> dict[str, Any]:
        mean = {name: getattr(item.over_seeds, name) for name in ("mean", "low", "high")}
        p_values = {"p_holds": item.p_holds, "p_fails": item.p_fails}
        return {"title": item.title, **mean, **p_values, "outcome": item.outcome}

    result = section.result
    return {
        "statement": result.claim.statement,
        "rule": result.rule,
        "verdict": section.verdict,
        "metric": result.claim.metric,
        "points": [point(cell) for cell in result.cells],
        "comparisons": [comparison(item) for item in (result.verdict.evidence if result.verdict else ())],
    }


def report_markdown(report: ClaimsReport) -> str:
    """Return the report as a page of Markdown; the figures are in the HTML page."""
    lines = [f"# {report.title}", "", report.base, "", HOW_TO_READ, ""]
    lines += table_head(["claim", "", "the study", "here"], "llll")
    for section in report.run_sections:
        claim = section.result.claim
        here = f"**{section.verdict}**" + (f". {section.decided_by}" if section.decided_by else "")
        lines.append(table_row([claim.key, claim.statement, claim.found or "did not look", here]))
    not_run = [section.result.claim.key for section in report.sections if section.verdict == "not run"]
    if not_run:
        lines += ["", f"Not run: {', '.join(not_run)}."]
    for section in report.run_sections:
        lines += ["", *_markdown_section(section)]
    for title, table in (("Losses, every metric", report.table_3), ("Cost", report.costs)):
        if table is not None:
            lines += ["", f"## {title}", "", *_markdown_table(table)]
    lines += ["", report.environment, "", *(f"    {command}" for command in report.commands), ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    head = table_head(table.head, "l" + "r" * (len(table.head) - 1))
    return [table.caption, "", *head, *map(table_row, table.rows)]


def _markdown_section(section: Section) -> list[str]:
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
        metric = f"{METRIC_TITLES[claim.metric]}, {_unit(claim)}"
        head = [metric, "the study", "ours", "95 %", "seeds", "oracle minus last", "selection"]
        lines += ["", *table_head(head, "lrrlrrl")]
        lines += map(table_row, section.rows)
    if section.evidence:
        lines += ["", *(f"- {line}" for line in section.evidence)]
    if section.diagnosis is not None:
        lines += ["", *_markdown_table(section.diagnosis)]
    if section.failed:
        lines += ["", "Failed:", *(f"- {line}" for line in section.failed)]
    return lines


def report_html(report: ClaimsReport) -> str:
    """Return the report as HTML that needs no other file and no network; equal content gives equal bytes."""
    return page_template("claims.html").render(
        report=report,
        sections=[_html_section(section) for section in report.sections],
        maps={name: {**figure, "svg": Markup(figure["svg"])} for name, figure in report.maps.items()},
        how_to_read=HOW_TO_READ,
        of_study=OF_STUDY,
        run=len(report.run_sections),
    )


def _html_section(section: Section) -> dict[str, Any]:
    claim = section.result.claim
    return {
        **vars(section),
        "claim": claim,
        "rule": section.result.rule,
        "kind": _KINDS.get(section.verdict, "missing"),
        "metric": METRIC_TITLES[claim.metric],
        "unit": _unit(claim),
        "has_study": any(row.study for row in section.rows),
        "figures": [
            {"svg": Markup(figure.svg), "caption": figure.caption} for figure in claim_figures(section.result)
        ],
    }


class ClaimFigure(NamedTuple):
    """One figure of a claim, as SVG to inline in HTML, and its caption."""

    svg: str
    caption: str


def claim_figures(result: ClaimResult) -> list[ClaimFigure]:
    """Draw a claim, by its axes: curves (Figure 2), dots, or heat maps (Figure 3), the study's beside ours.

    Args:
        result: of one claim; nothing is drawn where none of it is finished.
    """
    cells = {cell.point: cell for cell in result.cells if cell.mean is not None}
    if not cells:
        return []
    axes, title = result.claim.axes, METRIC_TITLES[result.claim.metric]
    caption = "Mean over seeds, with its 95 % interval where there are several."
    if len(axes) == 2 and all(axis.numeric for axis in axes):
        ours = {point: round(_shown(result, cell)[0], 1) for point, cell in cells.items()}
        maps = [ClaimFigure(_heat_map(title, axes, ours), f"Ours: {title}, mean over seeds.")]
        if result.study:
            theirs = {point: 100 * value for point, value in result.study.items()}
            caption = "The study: Recall@1, %, one seed, the best epoch on the test classes."
            maps.append(ClaimFigure(_heat_map("Recall@1", axes, theirs), caption))
        return maps
    if result.study:
        caption += " Crosses: the study's, of one seed and the best epoch on the test classes."
    draw = _curves if axes[0].numeric else _dots
    return [ClaimFigure(draw(result, cells, title), caption)]


def _shown(result: ClaimResult, cell: Cell) -> tuple[float, float, float]:
    """Return a mean and the half-widths of its interval below and above, in the unit of the figure."""
    factor, mean = _factor(result.claim), cell.mean
    assert mean is not None  # cells without are left out
    low, high = _interval(result.claim, mean)
    return factor * mean.mean, factor * (mean.mean - low), factor * (high - mean.mean)


def _curves(result: ClaimResult, cells: Mapping[Point, Cell], title: str) -> str:
    first, *others = result.claim.axes
    names = [level.name for level in others[0].levels] if others else [""]
    places = {level.name: place for place, level in enumerate(_present(first, 0, cells))}

    def draw(axes: Axes) -> None:
        for i, name in enumerate(names):
            points = [(level, (level, name) if name else (level,)) for level in places]
            aside = 0.06 * (i - (len(names) - 1) / 2)  # so that no interval hides another
            rows = [
                (places[level] + aside, *_shown(result, cells[point]))
                for level, point in points
                if point in cells
            ]
            if rows:
                x, means, below, above = zip(*rows, strict=True)
                color, dashes = SERIES[i % len(SERIES)], DASHES[i % len(DASHES)]
                axes.errorbar(
                    x, means, yerr=[below, above], fmt=f"{dashes}o", color=color, linewidth=2, markersize=4,
                    elinewidth=1.4, capsize=3, label=name or "ours",
                )  # fmt: skip
            study = [(places[level], 100 * result.study[p]) for level, p in points if p in result.study]
            if study:
                axes.plot(*zip(*study, strict=True), "x", color=_STUDY_COLOR, markersize=7, label="the study")
        axes.set_xticks(range(len(places)), [level.label for level in _present(first, 0, cells)])
        axes.set_xlabel(first.title, color=INK)
        axes.set_ylabel(f"{title}, {_unit(result.claim)}", color=INK)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        if others or result.study:
            axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK)

    return _figure(f"{title} by {first.title}", draw)


def _dots(result: ClaimResult, cells: Mapping[Point, Cell], title: str) -> str:
    axis = result.claim.axes[0]
    levels = _present(axis, 0, cells)

    def draw(axes: Axes) -> None:
        for place, level in enumerate(levels):
            mean, below, above = _shown(result, cells[(level.name,)])
            bars = [[below], [above]]
            axes.errorbar([mean], [place], xerr=bars, fmt="o", color=SERIES[0], markersize=5, capsize=3)
            if (level.name,) in result.study:
                axes.plot([100 * result.study[(level.name,)]], [place], "x", color=_STUDY_COLOR, markersize=7)
        axes.set_yticks(range(len(levels)), [level.label for level in levels])
        axes.invert_yaxis()
        axes.margins(y=0.12)
        axes.set_xlabel(f"{title}, {_unit(result.claim)}", color=INK)
        axes.grid(axis="x", color=GRID, linewidth=0.8)

    return _figure(f"{title} by {axis.title}", draw)


def _heat_map(title: str, both: Sequence[Axis], values: Mapping[Point, float]) -> str:
    """Draw the values of two axes in shaded squares, the first axis across."""
    across, down = (_present(axis, place, values) for place, axis in enumerate(both))
    low, high = min(values.values()), max(values.values())

    def draw(axes: Axes) -> None:
        for x, column in enumerate(across):
            for y, row in enumerate(down):
                value = values.get((column.name, row.name))
                if value is None:
                    axes.text(x, y, "–", ha="center", va="center", color=INK)
                    continue
                shade = 0.06 + 0.38 * ((value - low) / (high - low) if high > low else 0.5)
                square = Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=SERIES[0], alpha=shade, lw=0)
                axes.add_patch(square)
                axes.text(x, y, _printed(value), ha="center", va="center", color=INK, weight="bold")
        axes.set_xlim(-0.55, len(across) - 0.45)
        axes.set_ylim(-0.55, len(down) - 0.45)
        axes.set_xticks(range(len(across)), [level.label for level in across])
        axes.set_yticks(range(len(down)), [level.label for level in down])
        axes.set_xlabel(both[0].title, color=INK)
        axes.set_ylabel(both[1].title, color=INK)

    return _figure(f"{title} by {both[0].title} and {both[1].title}", draw)


def _figure(description: str, draw: Callable[[Axes], None]) -> str:
    with page_axes(description) as (figure, axes):
        draw(axes)
        return inline_svg(figure, description)


def _present(axis: Axis, place: int, points: Mapping[Point, object]) -> list[Level]:
    """Return the levels of an axis, by its place in the points, that some point has."""
    return [level for level in axis.levels if any(point[place] == level.name for point in points)]
