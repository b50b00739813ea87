"""The report of a claims run: tables and figures, as JSON, Markdown and one HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tuplet.config import RunConfig
from tuplet.evaluation.evaluate import EvalReport
from tuplet.metrics.intervals import SeedMean, interval_of_share, seed_mean
from tuplet.metrics.names import metric_title
from tuplet.report.pages import page_template
from tuplet.report.plots import DASHES, GRID, HEIGHT, INK, SERIES, WIDTH, inline_svg
from tuplet.research.claims.claim import METRIC_TITLES, Axis, Level
from tuplet.research.claims.hist_study import TABLE_3, TABLE_3_COLUMNS, TABLE_7, paper_cell
from tuplet.research.claims.plan import Plan
from tuplet.research.claims.results import (
    Cell,
    ClaimResult,
    RunResult,
    mapped_run,
    maps_file,
    read_frozen,
    read_measure,
    results,
)
from tuplet.research.claims.rules import HOW_DECIDED, Evidence, Point, point_title
from tuplet.training.environment import current_commit, short_commit

OF_STUDY = "the study: one seed, the best epoch on the test classes (oracle)"
_OF_METHOD = {
    "OA": "Lim et al., as the study quotes them",
    "RE": f"{OF_STUDY}; original settings",
    "TUNE": f"{OF_STUDY}; its own settings",
}
FROZEN = "frozen backbone"


@final
@dataclass(frozen=True)
class Table:
    """A table of text with a line above it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table_3(plan: Plan, found: Sequence[ClaimResult], frozen: EvalReport | None) -> Table | None:
    """Every metric of each loss, of the frozen backbone, and the study's own rows where there are any.

    Args:
        plan: of the study.
        found: of all claims.
        frozen: what the backbone measures without training; None: not measured.

    Returns: None where claim 5 has no finished run.
    """
    result = next(one for one in found if one.claim.key == "5")
    cells = [cell for cell in result.cells if cell.runs]
    if not cells:
        return None
    metrics = list(next(iter(cells[0].runs.values())).selected.evaluation.retrieval)
    rows = [(point_title(cell.point), *_scores(cell, metrics), "; ".join(cell.labels)) for cell in cells]
    if frozen is not None:
        clusters = "" if frozen.clustering is None else f"{100 * frozen.clustering.nmi_mean:.1f}"
        scores = [f"{100 * frozen.retrieval[one]:.1f}" for one in metrics]
        rows.append((FROZEN, *scores, clusters, "nothing trained"))
    cell_of_study = paper_cell(plan.base)
    if cell_of_study is not None:
        backbone, data = cell_of_study
        printed = [f"R@{one.rpartition('_')[2]}" for one in metrics]
        for method, by_data in TABLE_3[backbone].items():
            known = dict(zip(TABLE_3_COLUMNS[data], by_data[data], strict=True))
            scores = [f"{known[one]:.1f}" if one in known else "" for one in printed]
            rows.append((f"[{method}] HIST", *scores, f"{known['NMI']:.1f}", _OF_METHOD[method]))
    head = ("%", *map(metric_title, metrics), "NMI", "selection")
    return Table("As the study's Table 3: mean and standard deviation over seeds.", head, tuple(rows))


def _scores(cell: Cell, metrics: Sequence[str]) -> list[str]:
    reports = [cell.runs[seed].selected.evaluation for seed in sorted(cell.runs)]
    clusters = [one.clustering.nmi_mean for one in reports if one.clustering is not None]
    scores = [spread(seed_mean([one.retrieval[metric] for one in reports])) for metric in metrics]
    return [*scores, spread(seed_mean(clusters)) if len(clusters) == len(reports) else ""]


def cost_table(plan: Plan, found: Sequence[ClaimResult], runs: Mapping[str, RunResult]) -> Table | None:
    """Hours of training: of one run at the published setting, and of the whole study.

    Args:
        plan: of the study.
        found: of all claims.
        runs: all finished ones, by key.

    Returns: None without any.
    """
    if not runs:
        return None
    rows = []
    for one in found:
        mine = {run.key: run for cell in one.cells for run in cell.runs.values()}
        if mine:
            base = _published_seconds(one)
            hours = sum(_device_seconds(run) for run in mine.values()) / 3600
            rows.append((one.claim.title, str(len(mine)), _minutes(base), f"{hours:.2f}"))
    total = sum(_device_seconds(run) for run in runs.values()) / 3600
    rows.append(("all, shared runs once", str(len(runs)), "", f"{total:.2f}"))
    caption = "As the study's Table 7: hours of training on one device, evaluation apart."
    cell = paper_cell(plan.base)
    if cell is not None:
        caption += f" The study: {TABLE_7[cell[0]][cell[1]]:g} hours a training on a V100."
    return Table(caption, ("claim", "runs", "minutes a run, published setting", "hours in all"), tuple(rows))


def _published_seconds(result: ClaimResult) -> float | None:
    seconds = [
        _device_seconds(run)
        for cell in result.cells
        if cell.point == result.claim.published
        for run in cell.runs.values()
    ]
    return sum(seconds) / len(seconds) if seconds else None


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:.1f}"


def _device_seconds(run: RunResult) -> float:
    return run.train_seconds * int(run.environment.get("ranks", 1))


def spread(value: SeedMean, factor: float = 100.0) -> str:
    """A mean, and its standard deviation where there are several seeds."""
    digits = 1 if factor == 100 else 2
    std = "" if value.std is None else f" ± {factor * value.std:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{std}"


_STUDY_COLOR = SERIES[7]


@final
@dataclass(frozen=True)
class ClaimFigure:
    """One figure of a claim, as SVG to inline in HTML, and what stands below it."""

    svg: str
    caption: str


def claim_figures(result: ClaimResult) -> list[ClaimFigure]:
    """The figures of a claim: by its axes a curve, several, dots, or a heat map and the study's beside it.

    Args:
        result: of one claim; empty where nothing of it is finished.
    """
    cells = {cell.point: cell for cell in result.cells if cell.mean is not None}
    if not cells:
        return []
    axes, title = result.claim.axes, METRIC_TITLES[result.claim.metric]
    spread = "Mean over seeds, with its 95 % interval where there are several."
    if len(axes) == 2 and all(axis.numeric for axis in axes):
        ours = {point: round(_shown(result, cell).mean, 1) for point, cell in cells.items()}
        maps = [ClaimFigure(_heat_map(title, axes, ours), f"Ours: {title}, mean over seeds.")]
        if result.study:
            theirs = {point: 100 * value for point, value in result.study.items()}
            caption = "The study: Recall@1, %, one seed, the best epoch on the test classes."
            maps.append(ClaimFigure(_heat_map("Recall@1", axes, theirs), caption))
        return maps
    if result.study:
        spread += " Crosses: the study's, of one seed and the best epoch on the test classes."
    if axes[0].numeric:
        return [ClaimFigure(_curves(result, cells, title), spread)]
    return [ClaimFigure(_dots(result, cells, title), spread)]


@final
@dataclass(frozen=True)
class _Shown:
    """A mean and the half-widths of its interval, in the unit of the figure."""

    mean: float
    below: float
    above: float


def _shown(result: ClaimResult, cell: Cell) -> _Shown:
    factor = 1000.0 if result.claim.metric == "seconds_per_image" else 100.0
    mean = cell.mean
    assert mean is not None  # cells without are left out
    low, high = interval(mean, most=math.inf if factor == 1000 else 1.0)
    return _Shown(factor * mean.mean, factor * (mean.mean - low), factor * (high - mean.mean))


def printed_share(percent: float) -> str:
    """A percentage with one digit behind the point, or two where the study prints two."""
    return f"{percent:.2f}".removesuffix("0")


def interval(mean: SeedMean, *, most: float = 1.0) -> tuple[float, float]:
    """The ends of the t interval, as far as the scale goes; the mean itself for a single seed."""
    return interval_of_share(mean, most=most) or (mean.mean, mean.mean)


def _curves(result: ClaimResult, cells: Mapping[Point, Cell], title: str) -> str:
    first, *others = result.claim.axes
    names = [level.name for level in others[0].levels] if others else [""]
    places = {level.name: place for place, level in enumerate(_present(first, cells))}

    def draw(axes: Axes) -> None:
        for i, name in enumerate(names):
            points = [(level, (level, name) if name else (level,)) for level in places]
            aside = 0.06 * (i - (len(names) - 1) / 2)  # so that no interval hides another
            rows = [
                (places[level] + aside, _shown(result, cells[point]))
                for level, point in points
                if point in cells
            ]
            if rows:
                _line(axes, rows, i, name)
            study = [(places[level], 100 * result.study[p]) for level, p in points if p in result.study]
            if study:
                axes.plot(*zip(*study, strict=True), "x", color=_STUDY_COLOR, markersize=7, label="the study")
        axes.set_xticks(range(len(places)), [level.label for level in _present(first, cells)])
        axes.set_xlabel(first.title, color=INK)
        axes.set_ylabel(_unit(title), color=INK)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        if others or result.study:
            axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK)

    return _figure(f"{title} by {first.title}", draw)


def _line(axes: Axes, rows: Sequence[tuple[float, _Shown]], i: int, name: str) -> None:
    color, dashes = SERIES[i % len(SERIES)], DASHES[i % len(DASHES)]
    x = [place for place, _ in rows]
    means = [one.mean for _, one in rows]
    bars = [[one.below for _, one in rows], [one.above for _, one in rows]]
    axes.errorbar(
        x, means, yerr=bars, fmt=f"{dashes}o", color=color, linewidth=2, markersize=4, elinewidth=1.4,
        capsize=3, label=name or "ours",
    )  # fmt: skip


def _dots(result: ClaimResult, cells: Mapping[Point, Cell], title: str) -> str:
    axis = result.claim.axes[0]
    levels = _present(axis, cells)

    def draw(axes: Axes) -> None:
        for place, level in enumerate(levels):
            shown = _shown(result, cells[(level.name,)])
            bars = [[shown.below], [shown.above]]
            axes.errorbar([shown.mean], [place], xerr=bars, fmt="o", color=SERIES[0], markersize=5, capsize=3)
            if (level.name,) in result.study:
                axes.plot([100 * result.study[(level.name,)]], [place], "x", color=_STUDY_COLOR, markersize=7)
        axes.set_yticks(range(len(levels)), [level.label for level in levels])
        axes.invert_yaxis()
        axes.margins(y=0.12)
        axes.set_xlabel(_unit(title), color=INK)
        axes.grid(axis="x", color=GRID, linewidth=0.8)

    return _figure(f"{title} by {axis.title}", draw)


def _heat_map(title: str, both: Sequence[Axis], values: Mapping[Point, float]) -> str:
    """Values of two axes in shaded squares, the first axis across."""
    across, down = ([one for one in axis.levels if _any(values, i, one.name)] for i, axis in enumerate(both))
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
                axes.text(x, y, printed_share(value), ha="center", va="center", color=INK, weight="bold")
        axes.set_xlim(-0.55, len(across) - 0.45)
        axes.set_ylim(-0.55, len(down) - 0.45)
        axes.set_xticks(range(len(across)), [level.label for level in across])
        axes.set_yticks(range(len(down)), [level.label for level in down])
        axes.set_xlabel(both[0].title, color=INK)
        axes.set_ylabel(both[1].title, color=INK)

    return _figure(f"{title} by {both[0].title} and {both[1].title}", draw)


def _figure(description: str, draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": description, "font.size": 11.5})
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.tick_params(which="both", length=0, colors=INK)
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)
        return inline_svg(figure, description)


def _present(axis: Axis, cells: Mapping[Point, Cell]) -> list[Level]:
    return [level for level in axis.levels if _any(cells, 0, level.name)]


def _any(points: Mapping[Point, object], place: int, name: str) -> bool:
    return any(point[place] == name for point in points)


def _unit(title: str) -> str:
    return f"{title}, {'ms' if title.startswith('training') else '%'}"


@final
@dataclass(frozen=True)
class Row:
    """One line of a claim's table, as text.

    Attributes:
        name: the point.
        study: what the study prints.
        ours: mean and standard deviation over seeds.
        interval: 95 %.
        seeds: finished of those planned.
        flatters: how much the best epoch on the test classes is above the last, in points.
        selection: how the epoch was chosen.
    """

    name: str
    study: str
    ours: str
    interval: str
    seeds: str
    flatters: str
    selection: str


@final
@dataclass(frozen=True)
class Section:
    """One claim of the report.

    Attributes:
        result: what was found.
        verdict: holds, does not hold, undecided, no verdict or not run.
        why: what is missing for a verdict; empty where there is one.
        decided_by: the comparison that the verdict hangs on, in words; empty without a verdict.
        rows: of its table.
        unit: of the numbers in it.
        settings: seeds, epochs and what was left out, a sentence each.
        evidence: each comparison in words.
        failed: runs that failed, and why.
    """

    result: ClaimResult
    verdict: str
    why: str
    decided_by: str
    rows: tuple[Row, ...]
    unit: str
    settings: tuple[str, ...]
    evidence: tuple[str, ...]
    failed: tuple[str, ...]


@final
@dataclass(frozen=True)
class ClaimsReport:
    """Everything that a report shows.

    Attributes:
        title: of the page.
        base: what the study is run on, a sentence.
        sections: by claim.
        table_3: every metric of the losses, where claim 5 was run.
        costs: hours of training.
        maps: figures of the embeddings by split, as `EmbeddingMap` has them; empty without.
        environment: a line on machines and commits.
        commands: that planned the study.
    """

    title: str
    base: str
    sections: tuple[Section, ...]
    table_3: Table | None
    costs: Table | None
    maps: Mapping[str, Mapping[str, Any]]
    environment: str
    commands: tuple[str, ...]


def claims_report(plan: Plan, folder: Path) -> ClaimsReport:
    """The report of the study in a folder, from what is finished there."""
    found = results(plan, folder)
    runs = {run.key: run for one in found for cell in one.cells for run in cell.runs.values()}
    mapped = mapped_run(plan, folder)
    maps = None if mapped is None else read_measure(maps_file(folder, mapped))
    return ClaimsReport(
        f"The study on {plan.base.name}",
        _base_sentence(plan.base),
        tuple(_section(plan, one) for one in found),
        table_3(plan, found, read_frozen(folder, plan.base)),
        cost_table(plan, found, runs),
        maps or {},
        _environment(list(runs.values())),
        plan.commands,
    )


def _base_sentence(base: RunConfig) -> str:
    data, loss = base.data, base.loss
    source = f"{data.source} images" if data.root is None else f"{data.source} images in {data.root.name}"
    return (
        f"Base: {base.model.backbone} on {source}, {base.schedule.epochs} epochs, batches of"
        f" {data.batch_size}; HIST with tau = {loss.tau:g}, alpha = {loss.alpha:g}, lambda_s ="
        f" {loss.lambda_s:g}, {loss.num_layers} layers of {loss.hidden_dim}; D = {base.model.embedding_dim}."
    )


def _section(plan: Plan, result: ClaimResult) -> Section:
    entry = result.entry
    verdict: str = "no verdict" if result.verdict is None else result.verdict.outcome
    if entry is None or result.why == "not run":
        verdict = "not run"
    settings = []
    if entry is not None:
        seeds = plan.seeds(entry)
        settings.append(
            f"Seeds {seeds[0]} to {seeds[-1]}." if len(seeds) > 1 else f"Seed {seeds[0]}: no interval."
        )
        if result.claim.base == "glyphs":
            settings.append("On generated characters, whatever the study is run on.")
        if entry.left_out:
            settings.append(f"For the budget: {'; '.join(entry.left_out)}.")
        if entry.rule != result.claim.rule.sentence:
            settings.append(f"The rule was changed after the runs were planned; it was: {entry.rule}")
    evidence = result.verdict.evidence if result.verdict is not None else ()
    return Section(
        result,
        verdict,
        result.why[:1].upper() + result.why[1:],
        "" if result.verdict is None else _compared(result.verdict.decisive),
        tuple(_row(result, cell) for cell in result.cells),
        "ms" if result.claim.metric == "seconds_per_image" else "%",
        tuple(settings),
        tuple(f"{_compared(one)}: {one.outcome}" for one in evidence),
        tuple(
            f"{point_title(cell.point)}, seed {seed}: {why}"
            for cell in result.cells
            for seed, why in cell.failed.items()
        ),
    )


def _compared(one: Evidence) -> str:
    return f"{one.title}: {one.words}"


def _row(result: ClaimResult, cell: Cell) -> Row:
    factor = 1000.0 if result.claim.metric == "seconds_per_image" else 100.0
    study, mean, flatters = result.study.get(cell.point), cell.mean, cell.flatters
    planned = len(cell.runs) + len(cell.unfinished) + len(cell.failed)
    return Row(
        point_title(cell.point),
        "" if study is None else printed_share(100 * study),
        _without_value(cell) if mean is None else spread(mean, factor),
        "" if mean is None or mean.low is None else _ends(mean, factor),
        f"{len(cell.values)} of {planned // 2} pairs"
        if result.claim.metric == "agreement"
        else f"{len(cell.runs)} of {planned}",
        "not measured" if flatters is None else f"{100 * flatters.mean:+.1f}",
        "; ".join(cell.labels),
    )


def _without_value(cell: Cell) -> str:
    return "not compared yet" if len(cell.runs) > 1 else "not run"


def _ends(value: SeedMean, factor: float) -> str:
    digits = 1 if factor == 100 else 2
    low, high = interval(value, most=1.0 if factor == 100 else float("inf"))
    return f"{factor * low:.{digits}f} to {factor * high:.{digits}f}"


def _environment(runs: Sequence[RunResult]) -> str:
    if not runs:
        return ""

    def every(name: str) -> str:
        return ", ".join(dict.fromkeys(str(run.environment.get(name, "unknown")) for run in runs))

    commits = ", ".join(dict.fromkeys(short_commit(run.environment) for run in runs))
    return (
        f"{every('processor')}, {every('cores')} cores, threads: {every('threads')}, device"
        f" {every('device')}; torch {every('torch')}; trained at commit {commits}, judged at commit"
        f" {short_commit({'commit': current_commit()})}."
    )


def report_json(report: ClaimsReport) -> str:
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
        "claims": {section.result.claim.key: _json_section(section) for section in sections},
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def _json_section(section: Section) -> dict[str, Any]:
    result = section.result
    return {
        "statement": result.claim.statement,
        "rule": result.rule,
        "verdict": section.verdict,
        "metric": result.claim.metric,
        "points": [_json_point(cell) for cell in result.cells],
        "comparisons": [_json_comparison(one) for one in (result.verdict.evidence if result.verdict else ())],
    }


def _json_point(cell: Cell) -> dict[str, Any]:
    return {
        "point": point_title(cell.point),
        "selection": list(cell.labels),
        "values_by_seed": {str(seed): cell.values[seed] for seed in sorted(cell.values)},
        "failed_by_seed": {str(seed): why for seed, why in cell.failed.items()},
    }


def _json_comparison(one: Evidence) -> dict[str, Any]:
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


HOW_TO_READ = (
    f"Each claim's rule was fixed before its runs. {HOW_DECIDED} Numbers are mean ± standard deviation over"
    " seeds, with the 95 % t interval, and how their epoch was selected. Oracle less last is how far the best"
    " epoch on the test classes is above the last, in points of Recall@1; the study's numbers are such"
    " oracles, of one seed."
)


def report_markdown(report: ClaimsReport) -> str:
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
            lines += ["", *_markdown_section(section)]
    for title, table in (("Losses, every metric", report.table_3), ("Cost", report.costs)):
        if table is not None:
            lines += ["", f"## {title}", "", table.caption, "", *_markdown_table(table)]
    lines += ["", report.environment, "", *(f"    {command}" for command in report.commands), ""]
    return "\n".join(lines)


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


def _markdown_table(table: Table) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = f"| --- |{' ---: |' * (len(table.head) - 1)}"
    return [line(table.head), rule, *map(line, table.rows)]


def report_html(report: ClaimsReport) -> str:
    """The report as HTML that needs no other file and no network; equal content gives equal bytes.

    Args:
        report: what it says.
    """
    return page_template("claims.html").render(
        report=report,
        sections=[_html_section(one) for one in report.sections],
        maps={name: {**one, "svg": Markup(one["svg"])} for name, one in report.maps.items()},
        how_to_read=HOW_TO_READ,
        of_study=OF_STUDY,
        run=sum(section.verdict != "not run" for section in report.sections),
    )


_KINDS = {"holds": "holds", "does not hold": "fails", "undecided": "open", "not run": "missing"}


def _html_section(section: Section) -> dict[str, Any]:
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
