"""What a study has found so far, read from its folder: numbers by point and seed, and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from tuplet.config import RunConfig
from tuplet.errors import InputError
from tuplet.metrics.intervals import SeedMean, seed_mean
from tuplet.metrics.names import headline_metric
from tuplet.research.claims.claim import Claim, Metric
from tuplet.research.claims.contrast import Point, Values
from tuplet.research.claims.hist_study import printed
from tuplet.research.claims.measures import agreement_file, read_measure, seed_pairs
from tuplet.research.claims.plan import Entry, Plan, run_key
from tuplet.research.claims.running import State, failure_of, run_folder, state_of
from tuplet.research.claims.verdict import Verdict
from tuplet.training.experiment import Selected, select
from tuplet.training.run_folder import EpochReport, Run


@final
@dataclass(frozen=True)
class RunResult:
    """One finished training.

    Attributes:
        key: its folder.
        selected: the measurement that counts.
        flatters: Recall@1 of the best epoch on the test classes less that of the last; None where not every
            epoch was measured, or on validation classes.
        train_seconds: of all its epochs, evaluation apart.
        seconds_per_image: of training.
        environment: what it ran on.
    """

    key: str
    selected: Selected
    flatters: float | None
    train_seconds: float
    seconds_per_image: float
    environment: Mapping[str, Any]


@final
@dataclass(frozen=True)
class Cell:
    """One point of a claim.

    Attributes:
        point: which.
        runs: finished ones, by seed.
        values: of the claim's metric, by seed.
        unfinished: seeds whose runs are not finished.
        failed: why, by seed.
    """

    point: Point
    runs: Mapping[int, RunResult]
    values: Mapping[int, float]
    unfinished: tuple[int, ...]
    failed: Mapping[int, str]

    @property
    def mean(self) -> SeedMean | None:
        """Over the seeds that there are; None without any."""
        return seed_mean([self.values[seed] for seed in sorted(self.values)]) if self.values else None

    @property
    def flatters(self) -> SeedMean | None:
        """How much the best epoch on the test classes flatters; None where it is not known of every run."""
        known = [run.flatters for run in self.runs.values() if run.flatters is not None]
        return seed_mean(known) if known and len(known) == len(self.runs) else None

    @property
    def labels(self) -> tuple[str, ...]:
        """How the numbers' epochs were chosen."""
        return tuple(dict.fromkeys(run.selected.label for run in self.runs.values()))


@final
@dataclass(frozen=True)
class ClaimResult:
    """What was found of one claim.

    Attributes:
        claim: which.
        entry: what was planned; None: nothing.
        cells: by point, in the order of the plan.
        verdict: None where there is none, and `why` says why.
        why: empty where there is a verdict.
        rule: in words, as it is judged: on the points that were planned.
        study: Recall@1 as the study prints it, by point, where data and backbone are its own.
    """

    claim: Claim
    entry: Entry | None
    cells: tuple[Cell, ...]
    verdict: Verdict | None
    why: str
    rule: str
    study: Mapping[Point, float]


def results(plan: Plan, folder: Path) -> list[ClaimResult]:
    """What the study in a folder has found of every claim, in the order of the report."""
    read: dict[str, RunResult | State] = {}
    return [_result(plan, folder, claim, read) for claim in plan.claims.values()]


def _result(plan: Plan, folder: Path, claim: Claim, read: dict[str, RunResult | State]) -> ClaimResult:
    entry = plan.entries.get(claim.key)
    study = printed(claim, plan.base)
    if entry is None:
        return ClaimResult(claim, None, (), None, "not run", claim.rule.sentence, study)
    cells = tuple(_cell(plan, folder, entry, claim.metric, point, read) for point in entry.points)
    rule = claim.rule.among(entry.points)
    if rule is None:
        why = "the points that were planned are too few for its rule"
        return ClaimResult(claim, entry, cells, None, why, claim.rule.sentence, study)
    verdict, why = None, ""
    values: Values = {cell.point: cell.values for cell in cells}
    seeds = plan.seeds(entry)
    if claim.metric == "agreement":
        seeds = tuple(first for first, _ in seed_pairs(seeds))
        if not seeds:
            why = "one seed has no other to agree with; want two or more: --seeds 2"
            return ClaimResult(claim, entry, cells, None, why, rule.sentence, study)
    try:
        verdict = rule.judge(values, seeds)
    except InputError as error:
        why = _why(cells, str(error))
    return ClaimResult(claim, entry, cells, verdict, why, rule.sentence, study)


def _why(cells: Sequence[Cell], error: str) -> str:
    if not any(cell.runs or cell.failed for cell in cells):
        return "not run"
    failed = sum(len(cell.failed) for cell in cells)
    return f"{error}; {failed} failed" if failed else error


def _cell(
    plan: Plan, folder: Path, entry: Entry, metric: Metric, point: Point, read: dict[str, RunResult | State]
) -> Cell:
    runs: dict[int, RunResult] = {}
    unfinished, failed = [], {}
    configs = {seed: plan.config(entry, point, seed) for seed in plan.seeds(entry)}
    for seed, config in configs.items():
        key = run_key(config)
        if key not in read:
            state = state_of(folder, key)
            read[key] = _run_result(folder, key) if state == "finished" else state
        found = read[key]
        if isinstance(found, RunResult):
            runs[seed] = found
        elif found == "failed":
            failed[seed] = failure_of(folder, key)
        else:
            unfinished.append(seed)
    values = _values(folder, metric, configs, runs)
    return Cell(point, runs, values, tuple(unfinished), failed)


def _values(
    folder: Path, metric: Metric, configs: Mapping[int, RunConfig], runs: Mapping[int, RunResult]
) -> dict[int, float]:
    """What is measured at a point, by seed; of a pair of seeds, by the first."""
    if metric == "seconds_per_image":
        return {seed: run.seconds_per_image for seed, run in runs.items()}
    if metric != "agreement":
        return {seed: run.selected.evaluation.retrieval[metric] for seed, run in runs.items()}
    shares = {}
    for first, second in seed_pairs(tuple(configs)):
        found = read_measure(agreement_file(folder, configs[first], configs[second]))
        if found is not None:
            shares[first] = float(found["share"])
    return shares


def _run_result(folder: Path, key: str) -> RunResult:
    run = Run(run_folder(folder, key))
    reports = run.reports()
    seconds = sum(report.train_seconds for report in reports)
    images = sum(report.train_seconds * report.images_per_second for report in reports)
    environment = run.read_json(run.environment_file)
    selected = select(run.config, reports)
    return RunResult(key, selected, _flatters(run.config, reports), seconds, seconds / images, environment)


def _flatters(config: RunConfig, reports: Sequence[EpochReport]) -> float | None:
    """How much better the best epoch is than the last, in the first Recall@K; epoch 0 is one of them."""
    measured = [report.evaluation.retrieval for report in reports if report.evaluation is not None]
    if config.evaluation.split != "test" or len(measured) < len(reports):
        return None
    name = headline_metric(measured[-1])
    return None if name is None else max(one[name] for one in measured) - measured[-1][name]
