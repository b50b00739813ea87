"""The tables of a report that are of no single claim: the losses as in Table 3, the hours as in Table 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from tuplet.evaluation.evaluate import EvalReport
from tuplet.metrics.intervals import SeedMean, seed_mean
from tuplet.metrics.names import metric_title
from tuplet.research.claims.contrast import point_title
from tuplet.research.claims.plan import Plan
from tuplet.research.claims.published import TABLE_3, TABLE_3_COLUMNS, TABLE_7, study_cell
from tuplet.research.claims.results import Cell, ClaimResult, RunResult

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
    cell = study_cell(plan.base)
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
