"""What a report of a study says, in words and numbers that Markdown and HTML share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from tuplet.config import RunConfig
from tuplet.metrics.intervals import SeedMean
from tuplet.research.claims.contrast import point_title
from tuplet.research.claims.figures import interval, printed_share
from tuplet.research.claims.measures import mapped_run, maps_file, read_frozen, read_measure
from tuplet.research.claims.plan import Plan
from tuplet.research.claims.results import Cell, ClaimResult, RunResult, results
from tuplet.research.claims.tables import Table, cost_table, spread, table_3
from tuplet.research.claims.verdict import Evidence
from tuplet.training.environment import current_commit, short_commit


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
