"""What a report of a study says, in words and numbers that Markdown and HTML share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from tuplet.claims.contrast import Point, point_title
from tuplet.claims.figures import interval, printed_share
from tuplet.claims.measures import mapped_run, maps_file, read_frozen, read_measure
from tuplet.claims.plan import Plan
from tuplet.claims.published import TABLE_3, TABLE_3_COLUMNS, TABLE_7, study_cell
from tuplet.claims.results import Cell, ClaimResult, RunResult, results
from tuplet.claims.verdict import Evidence
from tuplet.config import RunConfig
from tuplet.environment import short_commit
from tuplet.evaluation import EvalReport
from tuplet.metrics.names import metric_title
from tuplet.metrics.seeds import SeedMean, seed_mean

OF_STUDY = "the study: one seed, the best epoch on the test classes (oracle)"
_OF_METHOD = {
    "OA": "Lim et al., as the study quotes them",
    "RE": f"{OF_STUDY}; original settings",
    "TUNE": f"{OF_STUDY}; its own settings",
}
FROZEN = "frozen backbone"


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
class Table:
    """A table of text with a line above it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@final
@dataclass(frozen=True)
class StudyReport:
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


def study_report(plan: Plan, folder: Path) -> StudyReport:
    """The report of the study in a folder, from what is finished there."""
    found = results(plan, folder)
    runs = {run.key: run for one in found for cell in one.cells for run in cell.runs.values()}
    mapped = mapped_run(plan, folder)
    maps = None if mapped is None else read_measure(maps_file(folder, mapped))
    return StudyReport(
        f"The study on {plan.base.name}",
        _base_sentence(plan.base),
        tuple(_section(plan, one) for one in found),
        _table_3(plan, found, read_frozen(folder, plan.base)),
        _costs(plan, found, runs),
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


def spread(value: SeedMean, factor: float = 100.0) -> str:
    """A mean, and its standard deviation where there are several seeds."""
    digits = 1 if factor == 100 else 2
    std = "" if value.std is None else f" ± {factor * value.std:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{std}"


def _ends(value: SeedMean, factor: float) -> str:
    digits = 1 if factor == 100 else 2
    low, high = interval(value, most=1.0 if factor == 100 else float("inf"))
    return f"{factor * low:.{digits}f} to {factor * high:.{digits}f}"


def _table_3(plan: Plan, found: Sequence[ClaimResult], frozen: EvalReport | None) -> Table | None:
    """Every metric of each loss, of the frozen backbone, and the study's own rows where there are any."""
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
    cell_of_study = study_cell(plan.base)
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


def _costs(plan: Plan, found: Sequence[ClaimResult], runs: Mapping[str, RunResult]) -> Table | None:
    """Hours of training: of one run at the published setting, and of the whole study."""
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
    cell = study_cell(plan.base)
    if cell is not None:
        caption += f" The study: {TABLE_7[cell[0]][cell[1]]:g} hours a training on a V100."
    return Table(caption, ("claim", "runs", "minutes a run, published setting", "hours in all"), tuple(rows))


def _published_seconds(result: ClaimResult) -> float | None:
    seconds = [
        _device_seconds(run)
        for cell in result.cells
        if cell.point == _published(result)
        for run in cell.runs.values()
    ]
    return sum(seconds) / len(seconds) if seconds else None


def _published(result: ClaimResult) -> Point:
    return result.claim.published


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:.1f}"


def _device_seconds(run: RunResult) -> float:
    return run.train_seconds * int(run.environment.get("ranks", 1))


def _environment(runs: Sequence[RunResult]) -> str:
    if not runs:
        return ""

    def every(name: str) -> str:
        return ", ".join(dict.fromkeys(str(run.environment.get(name, "unknown")) for run in runs))

    commits = ", ".join(dict.fromkeys(short_commit(run.environment) for run in runs))
    return (
        f"{every('processor')}, {every('cores')} cores, threads: {every('threads')}, device"
        f" {every('device')}; torch {every('torch')}; commit {commits}."
    )
