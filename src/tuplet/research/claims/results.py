"""The results of a claims run, from its folder: measurements of finished runs, values by seed, verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float
from lightning_fabric import Fabric

from tuplet.config import RunConfig
from tuplet.data.files import write_atomically
from tuplet.data.load import split_of
from tuplet.errors import DataError
from tuplet.evaluation.evaluate import EmbeddedSplit, EvalReport, embed
from tuplet.metrics.intervals import SeedMean, seed_mean
from tuplet.metrics.names import headline_metric
from tuplet.metrics.retrieval import nearest_neighbours
from tuplet.report import plots
from tuplet.research.bench import frozen_backbone
from tuplet.research.claims.claim import Claim
from tuplet.research.claims.hist_study import published_values
from tuplet.research.claims.plan import Entry, Plan, run_key
from tuplet.research.claims.rules import Point, Verdict
from tuplet.research.claims.running import State, failure_of, run_folder, state_of
from tuplet.training.experiment import ImageCache, Selected, select
from tuplet.training.run_folder import EpochReport, Run

NUM_NEIGHBOURS = 10
"""Nearest others of each test image, of which two models may share some."""


def measure(plan: Plan, folder: Path, *, fabric: Fabric, images: ImageCache) -> Iterator[str]:
    """Measure what takes finished models, and yield what it is before each; nothing is measured twice.

    Args:
        plan: of the claims run.
        folder: of the claims run.
        fabric: launched; one rank.
        images: of the runs.
    """
    for entry in plan.entries.values():
        if plan.claims[entry.key].metric == "agreement":
            for point in entry.points:
                for seeds in seed_pairs(plan.seeds(entry)):
                    first, second = (plan.config(entry, point, seed) for seed in seeds)
                    file = agreement_file(folder, first, second)
                    if _finished(folder, first, second) and not file.exists():
                        yield f"neighbours shared by seeds {seeds[0]} and {seeds[1]}: {', '.join(point)}"
                        _write(file, _agreement(folder, first, second, fabric=fabric, images=images))
        file = frozen_file(folder, plan.base)
        if entry.key == "5" and not file.exists():
            yield "the frozen backbone"
            images_of_base = images.of(plan.base)
            _write(file, asdict(frozen_backbone(plan.base, fabric=fabric, images=images_of_base)))
    config = mapped_run(plan, folder)
    if config is not None and not maps_file(folder, config).exists():
        yield "maps of the embeddings"
        parts = _embedded(folder, config, fabric=fabric, images=images)
        names = ("training", config.evaluation.split)
        maps = (plots.embedding_map(one.embeddings, one.labels, one.table.class_names) for one in parts)
        _write(maps_file(folder, config), dict(zip(names, map(asdict, maps), strict=True)))


def shared_neighbours(
    first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "N E"], *, num_neighbours: int
) -> float:
    """Compute the mean share of each row's nearest others, by cosine, that two embeddings have in common.

    Args:
        first: embeddings by one model, finite.
        second: by another, of the same N items in the same order.
        num_neighbours: how many others, in 1..N-1.
    Returns: in [0, 1].
    """
    one, other = (nearest_neighbours(each, num_neighbours)[0].numpy() for each in (first, second))
    shared = [len(np.intersect1d(a, b)) for a, b in zip(one, other, strict=True)]
    return float(np.mean(shared)) / num_neighbours


def seed_pairs(seeds: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the seeds two by two, each in one pair only, so that pairs are independent."""
    return list(zip(seeds[::2], seeds[1::2], strict=False))


def agreement_file(folder: Path, first: RunConfig, second: RunConfig) -> Path:
    """Return the file of the agreement of two runs."""
    return folder / "measures" / f"agreement-{run_key(first)}-{run_key(second)}.json"


def frozen_file(folder: Path, base: RunConfig) -> Path:
    """Return the file of what the frozen backbone measures."""
    return folder / "measures" / f"frozen-{run_key(base)}.json"


def maps_file(folder: Path, config: RunConfig) -> Path:
    """Return the file of the maps of a run's embeddings."""
    return folder / "measures" / f"maps-{run_key(config)}.json"


def read_measure(file: Path) -> dict[str, Any] | None:
    """Read a measurement; return None if it is not made yet."""
    if not file.exists():
        return None
    tree: dict[str, Any] = json.loads(file.read_text())
    return tree


def read_frozen(folder: Path, base: RunConfig) -> EvalReport | None:
    """Read what the frozen backbone measures; return None if it is not measured yet."""
    tree = read_measure(frozen_file(folder, base))
    return None if tree is None else EvalReport.from_dict(tree)


def mapped_run(plan: Plan, folder: Path) -> RunConfig | None:
    """Return the finished run whose embeddings are mapped: the first seed at a claim's published point."""
    for entry in plan.entries.values():
        claim = plan.claims[entry.key]
        if claim.base == "on" and claim.published in entry.points:
            config = plan.config(entry, claim.published, plan.base.seed)
            if _finished(folder, config):
                return config
    return None


def _finished(folder: Path, *configs: RunConfig) -> bool:
    return all(state_of(folder, run_key(config)) == "finished" for config in configs)


def _embedded(
    folder: Path, config: RunConfig, *, fabric: Fabric, images: ImageCache
) -> tuple[EmbeddedSplit, EmbeddedSplit]:
    """Embed the training and the test images of a finished run."""
    run = Run(run_folder(folder, run_key(config)))
    split = split_of(images.of(config), config)
    network = fabric.setup_module(run.embedder()).eval()
    train, test = (
        embed(network, table, config.data, fabric=fabric, num_workers=config.compute.num_workers)
        for table in (split.train, split.test)
    )
    return train, test


def _agreement(
    folder: Path, first: RunConfig, second: RunConfig, *, fabric: Fabric, images: ImageCache
) -> dict[str, float]:
    one, other = (_embedded(folder, it, fabric=fabric, images=images)[1] for it in (first, second))
    num_neighbours = min(NUM_NEIGHBOURS, len(one.table) - 1)
    share = shared_neighbours(one.embeddings, other.embeddings, num_neighbours=num_neighbours)
    return {"share": share, "num_neighbours": num_neighbours}


def _write(file: Path, tree: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(tree, indent=1) + "\n").encode())


@final
@dataclass(frozen=True)
class RunResult:
    """One finished training.

    Attributes:
        key: its folder.
        selected: the measurement that counts.
        flatters: Recall@1 of the best epoch on the test classes less that of the last; None where not every
            epoch was measured, or on validation classes.
        train_seconds: of all its epochs, without evaluation.
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
        values: of the claim's metric, by seed; of a pair of seeds, by the first.
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
        """The mean over the seeds that there are; None without any."""
        return seed_mean([self.values[seed] for seed in sorted(self.values)]) if self.values else None

    @property
    def flatters(self) -> SeedMean | None:
        """How much the best epoch on the test classes flatters; None where it is not known of every run."""
        known = [run.flatters for run in self.runs.values() if run.flatters is not None]
        return seed_mean(known) if known and len(known) == len(self.runs) else None

    @property
    def labels(self) -> tuple[str, ...]:
        """How the epochs of the numbers were selected."""
        return tuple(dict.fromkeys(run.selected.label for run in self.runs.values()))


@final
@dataclass(frozen=True)
class ClaimResult:
    """The result of one claim.

    Attributes:
        claim: which.
        entry: what was planned; None: nothing.
        rule: in words, as it is judged: on the points that were planned.
        study: Recall@1 as the HIST study prints it, by point, where data and backbone are its own.
        cells: by point, in the order of the plan.
        verdict: None where there is none, and `why` says why.
        why: empty where there is a verdict.
    """

    claim: Claim
    entry: Entry | None
    rule: str
    study: Mapping[Point, float]
    cells: tuple[Cell, ...] = ()
    verdict: Verdict | None = None
    why: str = ""


def results(plan: Plan, folder: Path) -> list[ClaimResult]:
    """Return the result of every claim so far, in the order of the report."""
    read: dict[str, RunResult | State] = {}
    return [_result(plan, folder, claim, read) for claim in plan.claims.values()]


def _result(plan: Plan, folder: Path, claim: Claim, read: dict[str, RunResult | State]) -> ClaimResult:
    entry = plan.entries.get(claim.key)
    result = ClaimResult(claim, entry, claim.rule.sentence, published_values(claim, plan.base))
    if entry is None:
        return replace(result, why="not run")
    cells = tuple(_cell(plan, folder, entry, point, read) for point in entry.points)
    result = replace(result, cells=cells)
    rule = claim.rule.among(entry.points)
    if rule is None:
        return replace(result, why="the points that were planned are too few for its rule")
    result = replace(result, rule=rule.sentence)
    seeds = plan.seeds(entry)
    if claim.metric == "agreement":
        seeds = tuple(first for first, _ in seed_pairs(seeds))
        if not seeds:
            why = "one seed has no other to agree with; want two or more: --seeds 2"
            return replace(result, why=why)
    try:
        return replace(result, verdict=rule.judge({cell.point: cell.values for cell in cells}, seeds))
    except DataError as error:
        if not any(cell.runs or cell.failed for cell in cells):
            return replace(result, why="not run")
        failed = sum(len(cell.failed) for cell in cells)
        return replace(result, why=f"{error}; {failed} failed" if failed else str(error))


def _cell(plan: Plan, folder: Path, entry: Entry, point: Point, read: dict[str, RunResult | State]) -> Cell:
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
    metric = plan.claims[entry.key].metric
    if metric == "seconds_per_image":
        values = {seed: run.seconds_per_image for seed, run in runs.items()}
    elif metric == "agreement":
        values = _agreements(folder, configs)
    else:
        values = {seed: run.selected.evaluation.retrieval[metric] for seed, run in runs.items()}
    return Cell(point, runs, values, tuple(unfinished), failed)


def _agreements(folder: Path, configs: Mapping[int, RunConfig]) -> dict[int, float]:
    shares = {}
    for first, second in seed_pairs(tuple(configs)):
        tree = read_measure(agreement_file(folder, configs[first], configs[second]))
        if tree is not None:
            shares[first] = float(tree["share"])
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
    """Return how much better the best epoch is than the last in the first Recall@K; 0 is one of them."""
    measured = [report.evaluation.retrieval for report in reports if report.evaluation is not None]
    if config.evaluation.split != "test" or len(measured) < len(reports):
        return None
    name = headline_metric(measured[-1])
    return None if name is None else max(one[name] for one in measured) - measured[-1][name]
