"""The results of a claims run, from its folder: values by seed, verdicts, and tables over all claims."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
from jaxtyping import Float

from tuplet.config import RunConfig
from tuplet.data.files import write_atomically
from tuplet.data.load import split_of
from tuplet.errors import DataError
from tuplet.evaluation.evaluate import EmbeddedSplit, embed
from tuplet.evaluation.measure import EvalReport
from tuplet.metrics.intervals import SeedMean, seed_mean
from tuplet.metrics.names import headline_metric, metric_title
from tuplet.metrics.retrieval import nearest_neighbours
from tuplet.report import plots
from tuplet.research.bench import frozen_backbone, spread
from tuplet.research.claims.claim import Claim
from tuplet.research.claims.hist_study import TABLE_3, TABLE_3_COLUMNS, TABLE_7, paper_cell, published_values
from tuplet.research.claims.plan import Entry, Plan, run_key
from tuplet.research.claims.rules import Point, Verdict, point_title
from tuplet.research.claims.running import State, Worker, failure_of, run_folder, state_of
from tuplet.training.experiment import Selected, select
from tuplet.training.run_folder import EpochReport, Run

OF_STUDY = "the study: one seed, the best epoch on the test classes (oracle)"

_OF_METHOD = {
    "OA": "Lim et al., as the study quotes them",
    "RE": f"{OF_STUDY}; original settings",
    "TUNE": f"{OF_STUDY}; its own settings",
}

NUM_NEIGHBOURS = 10
"""Number of nearest neighbours of each test image that are compared between two models."""


def measure(plan: Plan, worker: Worker) -> Iterator[str]:
    """Measure what needs finished models, yielding a title before each; nothing is measured twice."""
    folder = worker.folder
    for entry in plan.entries.values():
        if plan.claims[entry.key].metric == "agreement":
            for point in entry.points:
                for seeds in seed_pairs(plan.seeds(entry, point)):
                    first, second = (plan.config(entry, point, seed) for seed in seeds)
                    file = measure_file(folder, "agreement", first, second)
                    if _finished(folder, first, second) and not file.exists():
                        yield f"neighbours shared by seeds {seeds[0]} and {seeds[1]}: {', '.join(point)}"
                        _write(file, _agreement(worker, first, second))
        file = measure_file(folder, "frozen", plan.base)
        if entry.key == "5" and not file.exists():
            yield "the frozen backbone"
            images = worker.images.of(plan.base)
            _write(file, asdict(frozen_backbone(plan.base, fabric=worker.fabric, images=images)))
    config = mapped_run(plan, folder)
    if config is not None and not (file := measure_file(folder, "maps", config)).exists():
        yield "maps of the embeddings"
        parts = _embedded(worker, config, "train", "test")
        names = ("training", config.evaluation.split)
        maps = (plots.embedding_map(part.embeddings, part.labels, part.table.class_names) for part in parts)
        drawn = ({"svg": m.svg, "num_points": m.num_points, "num_classes": m.num_classes} for m in maps)
        _write(file, dict(zip(names, drawn, strict=True)))


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
    nearest = [nearest_neighbours(rows, num_neighbours)[0].numpy() for rows in (first, second)]
    shared = [len(np.intersect1d(a, b)) for a, b in zip(*nearest, strict=True)]
    return float(np.mean(shared)) / num_neighbours


def seed_pairs(seeds: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the seeds two by two, each in one pair only, so that pairs are independent."""
    return list(zip(seeds[::2], seeds[1::2], strict=False))


def measure_file(folder: Path, kind: Literal["agreement", "frozen", "maps"], *configs: RunConfig) -> Path:
    """Return the file of a measurement of one run or two."""
    return folder / "measures" / f"{'-'.join([kind, *map(run_key, configs)])}.json"


def read_measure(file: Path) -> dict[str, Any] | None:
    """Read a measurement; return None if it is not made yet."""
    if not file.exists():
        return None
    tree: dict[str, Any] = json.loads(file.read_text())
    return tree


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


def _embedded(worker: Worker, config: RunConfig, *parts: Literal["train", "test"]) -> Iterator[EmbeddedSplit]:
    """Embed the images of some parts by the network of a finished run."""
    run = Run(run_folder(worker.folder, run_key(config)))
    split = split_of(worker.images.of(config), config)
    network = worker.fabric.setup_module(run.embedder()).eval()
    tables, workers = {"train": split.train, "test": split.test}, config.compute.num_workers
    for part in parts:
        yield embed(network, tables[part], config.data, fabric=worker.fabric, num_workers=workers)


def _agreement(worker: Worker, first: RunConfig, second: RunConfig) -> dict[str, float]:
    test, same = (next(_embedded(worker, config, "test")) for config in (first, second))
    num_neighbours = min(NUM_NEIGHBOURS, len(test.table) - 1)
    share = shared_neighbours(test.embeddings, same.embeddings, num_neighbours=num_neighbours)
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
        diagnosis: of its last epoch, by name, with the cross entropy of the HGNN; empty without
            `evaluation.diagnose`, or of a loss without a hypergraph.
    """

    key: str
    selected: Selected
    flatters: float | None
    train_seconds: float
    seconds_per_image: float
    environment: Mapping[str, Any]
    diagnosis: Mapping[str, float]


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
    seeds = {point: plan.seeds(entry, point) for point in rule.points}
    if claim.metric == "agreement":
        seeds = {point: tuple(first for first, _ in seed_pairs(own)) for point, own in seeds.items()}
        if not all(seeds.values()):
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
    configs = {seed: plan.config(entry, point, seed) for seed in plan.seeds(entry, point)}
    for seed, config in configs.items():
        key = run_key(config)
        if key not in read:
            state = state_of(folder, key)
            read[key] = _run_result(folder, key) if state == "finished" else state
        result = read[key]
        if isinstance(result, RunResult):
            runs[seed] = result
        elif result == "failed":
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
        tree = read_measure(measure_file(folder, "agreement", configs[first], configs[second]))
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
    last = reports[-1]
    diagnosis = {**last.diagnosis, "cross_entropy": last.losses["cross_entropy"]} if last.diagnosis else {}
    flatters = _flatters(run.config, reports)
    return RunResult(key, selected, flatters, seconds, seconds / images, environment, diagnosis)


def _flatters(config: RunConfig, reports: Sequence[EpochReport]) -> float | None:
    """Return how much better the best epoch is than the last in the first Recall@K; 0 is one of them."""
    measured = [report.evaluation.retrieval for report in reports if report.evaluation is not None]
    if config.evaluation.split != "test" or len(measured) < len(reports):
        return None
    name = headline_metric(measured[-1])
    return None if name is None else max(scores[name] for scores in measured) - measured[-1][name]


@final
@dataclass(frozen=True)
class Table:
    """A table of text with a line above it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Measurement(NamedTuple):
    """One column of the diagnosis."""

    name: str
    """As `tuplet.losses.diagnosis.diagnose` has it."""
    title: str
    factor: float
    digits: int


MEASUREMENTS = (
    Measurement("own_share", "own share, %", 100, 0),
    Measurement("differences_left", "differences left, %", 100, 0),
    Measurement("hgnn_accuracy", "HGNN accuracy, %", 100, 1),
    Measurement("distribution_gradient", "gradient of L_D", 1, 3),
    Measurement("hypergraph_gradient", "of lambda_s L_CE", 1, 3),
    Measurement("gradient_cosine", "cosine", 1, 2),
    Measurement("log_variance", "log-variance", 1, 2),
    Measurement("cross_entropy", "cross entropy", 1, 2),
)


def diagnosis_table(result: ClaimResult) -> Table | None:
    """Return the diagnoses of the hypergraph at each point, means over seeds; None if no run has any."""
    rows = []
    for cell in result.cells:
        found = [run.diagnosis for run in cell.runs.values() if run.diagnosis]
        if found:
            means = [
                f"{one.factor * sum(run[one.name] for run in found) / len(found):.{one.digits}f}"
                for one in MEASUREMENTS
            ]
            rows.append((point_title(cell.point), *means))
    if not rows:
        return None
    caption = (
        "What the hypergraph did on training batches of the last epoch; mean over seeds. With lambda_s = 0"
        " the cross entropy is not computed, and shown as 0."
    )
    return Table(caption, (result.claim.axes[0].title, *(one.title for one in MEASUREMENTS)), tuple(rows))


def table_3(plan: Plan, folder: Path, of_claims: Sequence[ClaimResult]) -> Table | None:
    """Return every metric of each loss and of the frozen backbone, and the study's rows on its data."""
    result = next(result for result in of_claims if result.claim.key == "5")
    cells = [cell for cell in result.cells if cell.runs]
    if not cells:
        return None
    metrics = list(next(iter(cells[0].runs.values())).selected.evaluation.retrieval)
    rows = [(point_title(cell.point), *_scores(cell, metrics), "; ".join(cell.labels)) for cell in cells]
    tree = read_measure(measure_file(folder, "frozen", plan.base))
    if tree is not None:
        frozen = EvalReport.from_dict(tree)
        clusters = "" if frozen.clustering is None else f"{100 * frozen.clustering.nmi_mean:.1f}"
        scores = [f"{100 * frozen.retrieval[metric]:.1f}" for metric in metrics]
        rows.append(("frozen backbone", *scores, clusters, "nothing trained"))
    of_study = paper_cell(plan.base)
    if of_study is not None:
        backbone, data = of_study
        columns = [f"R@{metric.rpartition('_')[2]}" for metric in metrics]
        for method, by_data in TABLE_3[backbone].items():
            known = dict(zip(TABLE_3_COLUMNS[data], by_data[data], strict=True))
            scores = [f"{known[metric]:.1f}" if metric in known else "" for metric in columns]
            rows.append((f"[{method}] HIST", *scores, f"{known['NMI']:.1f}", _OF_METHOD[method]))
    head = ("%", *map(metric_title, metrics), "NMI", "selection")
    return Table("As the study's Table 3: mean and standard deviation over seeds.", head, tuple(rows))


def _scores(cell: Cell, metrics: Sequence[str]) -> list[str]:
    reports = [cell.runs[seed].selected.evaluation for seed in sorted(cell.runs)]
    clusters = [report.clustering.nmi_mean for report in reports if report.clustering is not None]
    scores = [spread(seed_mean([report.retrieval[metric] for report in reports])) for metric in metrics]
    return [*scores, spread(seed_mean(clusters)) if len(clusters) == len(reports) else ""]


def cost_table(plan: Plan, of_claims: Sequence[ClaimResult], runs: Mapping[str, RunResult]) -> Table | None:
    """Return hours of training: of one run at the published setting, and of all; None without any."""
    if not runs:
        return None

    def seconds(run: RunResult) -> float:
        return run.train_seconds * int(run.environment.get("ranks", 1))

    rows = []
    for result in of_claims:
        own = {run.key: run for cell in result.cells for run in cell.runs.values()}
        at_published = [
            seconds(run)
            for cell in result.cells
            if cell.point == result.claim.published
            for run in cell.runs.values()
        ]
        minutes = f"{sum(at_published) / len(at_published) / 60:.1f}" if at_published else ""
        if own:
            hours = sum(map(seconds, own.values())) / 3600
            rows.append((result.claim.title, str(len(own)), minutes, f"{hours:.2f}"))
    total = sum(map(seconds, runs.values())) / 3600
    rows.append(("all, shared runs once", str(len(runs)), "", f"{total:.2f}"))
    caption = "As the study's Table 7: hours of training on one device, evaluation apart."
    cell = paper_cell(plan.base)
    if cell is not None:
        caption += f" The study: {TABLE_7[cell[0]][cell[1]]:g} hours a training on a V100."
    return Table(caption, ("claim", "runs", "minutes a run, published setting", "hours in all"), tuple(rows))
