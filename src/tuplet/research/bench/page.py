"""Compare losses under one protocol: the trainings, what they measure, and the page of results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from lightning_fabric import Fabric
from optuna.trial import TrialState
from torch import Tensor, nn

from tuplet.config import LossName, RunConfig, shortened
from tuplet.config.overrides import override
from tuplet.data.splits import Split
from tuplet.errors import SettingsError
from tuplet.evaluation.evaluate import embed_split, evaluate
from tuplet.evaluation.measure import EvalReport
from tuplet.metrics.intervals import (
    SeedMean,
    class_totals,
    holm,
    interval_of_share,
    seed_mean,
    sign_flips,
)
from tuplet.metrics.names import headline_metric, metric_title
from tuplet.metrics.retrieval import retrieval_scores, score_columns
from tuplet.models.embedder import Embedder
from tuplet.research.tuning.search import SamplerName, Search, open_search
from tuplet.research.tuning.space import wide_space
from tuplet.training.environment import short_commit
from tuplet.training.experiment import epochs_of_runs, seed_folder, select
from tuplet.training.run_folder import EpochReport, Run


@dataclass(frozen=True)
class Protocol:
    """What every loss of a comparison gets alike.

    Attributes:
        losses: the configs to compare, by loss, alike but for the loss and what it needs; the others are
            compared with the first.
        num_trials: settings tried for each loss on validation classes, >= 1; the first are the config's own,
            and 1 tries none.
        num_seeds: final trainings of each loss, >= 1.
        metric: of the validation classes, by which the settings are selected: a name in
            `EvalReport.retrieval`.
        folder: of the runs.
        sampler: of the other settings, from `wide_space`.
        trial_epochs: length of a trial's training, 1..schedule.epochs, with the schedule shortened in
            proportion; None: as long as the final ones.
    """

    losses: Mapping[LossName, RunConfig]
    num_trials: int
    num_seeds: int
    metric: str
    folder: Path
    sampler: SamplerName = "gp"
    trial_epochs: int | None = None

    def search(self, name: LossName) -> Search:
        """Return the search of one loss: its own settings first, then what the sampler draws."""
        config = self.losses[name]
        if self.trial_epochs is not None:
            config = shortened(config, self.trial_epochs)
        return Search(
            config,
            wide_space(config),
            self.folder / name,
            num_trials=self.num_trials,
            metric=self.metric,
            sampler=self.sampler,
            study=f"bench-{name}",
        )

    def run_folder(self, name: LossName, seed: int) -> Path:
        """Return the folder of the final training of a loss with one seed."""
        return seed_folder(self.folder / name, seed)

    def finished_runs(self, name: LossName) -> list[Run]:
        """Return the final trainings of a loss, a run a seed."""
        return [Run(self.run_folder(name, seed)) for seed in range(self.num_seeds)]


@dataclass(frozen=True)
class Trial:
    """One setting that was tried for a loss.

    Attributes:
        changes: new values by dotted path; none for the config's own settings.
        value: the metric on the validation classes, in [0, 1]; None where the training diverged.
        seconds: of training.
    """

    changes: dict[str, Any]
    value: float | None
    seconds: float


@dataclass(frozen=True)
class LossResult:
    """One loss over its seeds.

    Attributes:
        name: of the loss.
        trials: settings that were tried; empty where nothing was selected.
        changes: the selected settings, by dotted path, where they are not the published ones.
        labels: which epoch counts and why, by seed.
        metrics: retrieval metrics, "nmi" and "ami" where they were measured, in [0, 1].
        train_seconds: of each final training, without the folds that select its epochs.
        trial_seconds: of all trials together.
        environments: of the final trainings.
    """

    name: LossName
    trials: tuple[Trial, ...]
    changes: dict[str, Any]
    labels: tuple[str, ...]
    metrics: dict[str, SeedMean]
    train_seconds: SeedMean
    trial_seconds: float
    environments: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Difference:
    """How far a loss is from the first one, in one metric.

    Attributes:
        name: of the loss.
        metric: its name.
        over_seeds: the loss less the first one, seed by seed, with the paired t interval and test.
        p_over_seeds: of that test, adjusted by Holm for the number of losses; None for a single seed.
        p_over_classes: of swapping the two losses, averaged over seeds, in any test class (`sign_flips`),
            adjusted likewise; None with selection oracle, whose networks are not kept.
    """

    name: LossName
    metric: str
    over_seeds: SeedMean
    p_over_seeds: float | None
    p_over_classes: float | None


@dataclass(frozen=True)
class BenchResult:
    """The result of a comparison.

    Attributes:
        frozen: what the backbone's pooled features measure before any training.
        losses: in the protocol's order.
        differences: of every loss but the first, by metric.
    """

    frozen: EvalReport
    losses: tuple[LossResult, ...]
    differences: tuple[Difference, ...]


def train_loss(
    protocol: Protocol, name: LossName, *, fabric: Fabric, images: Split
) -> Iterator[tuple[Run, EpochReport]]:
    """Train each seed of one loss with its best settings, and yield each epoch as it ends, with its run.

    What is finished in the protocol's folder is not repeated.

    Raises: InputError: as `epochs_of_runs` does, or every trial diverged.
    """
    config = override(protocol.losses[name], best_trial(protocol, name).changes)
    for seed in range(protocol.num_seeds):
        folder = protocol.run_folder(name, seed)
        yield from epochs_of_runs(replace(config, seed=seed), folder, fabric=fabric, images=images)


def trials(protocol: Protocol, name: LossName) -> list[Trial]:
    """Return the settings that were tried for a loss, in order; none where there was nothing to select."""
    if protocol.num_trials == 1:
        return []
    tried = []
    for trial in open_search(protocol.search(name)).study.get_trials():
        if trial.state == TrialState.COMPLETE:
            changes = {} if "recipe" in trial.user_attrs else dict(trial.params)
            value = None if "diverged" in trial.user_attrs else trial.value
            tried.append(Trial(changes, value, trial.user_attrs["seconds"]))
    return tried


def best_trial(protocol: Protocol, name: LossName) -> Trial:
    """Return the trial of a loss that was best on the validation classes, the first of equals.

    Raises: SettingsError: every trial diverged or failed.
    """
    if protocol.num_trials == 1:
        return Trial({}, None, 0.0)
    finished = [(trial.value, trial) for trial in trials(protocol, name) if trial.value is not None]
    if not finished:
        raise SettingsError(
            f"every trial of {name} diverged; want one that does not: lower optimizer.lr_backbone",
            subject=name,
        )
    return max(finished, key=lambda trial: trial[0])[1]


def compare_losses(protocol: Protocol, *, fabric: Fabric, images: Split) -> BenchResult:
    """Collect the result of a protocol.

    Args:
        protocol: whose runs are finished, all of them.
        fabric: launched; one rank.
        images: all of them, as `load_data` gives them.
    """
    losses = tuple(_loss_result(protocol, name) for name in protocol.losses)
    config = next(iter(protocol.losses.values()))
    metrics = [metric for metric in losses[0].metrics if metric not in ("nmi", "ami")]
    p_over_classes = None
    if config.evaluation.selection != "oracle":
        columns = [_mean_columns(protocol, name, metrics, fabric, images) for name in protocol.losses]
        p_over_classes = _swap_tests(columns)
    differences = []
    for place, metric in enumerate(metrics):
        over_seeds = [_seed_difference(losses[0], other, metric) for other in losses[1:]]
        p_values = [test.p_value for test in over_seeds if test.p_value is not None]
        adjusted = holm(p_values) if p_values else [None] * len(over_seeds)
        for row, other in enumerate(losses[1:]):
            p_classes = None if p_over_classes is None else p_over_classes[place][row]
            differences.append(Difference(other.name, metric, over_seeds[row], adjusted[row], p_classes))
    return BenchResult(frozen_backbone(config, fabric=fabric, images=images), losses, tuple(differences))


def frozen_backbone(config: RunConfig, *, fabric: Fabric, images: Split) -> EvalReport:
    """Measure the backbone on the test images before any training, without the embedding layer.

    Args:
        config: its model, with its pooling, and its data and evaluation.
        fabric: launched; one rank.
        images: whose test images search the gallery, or themselves.
    """
    torch.manual_seed(config.seed)
    network = fabric.setup_module(_Pooled(Embedder(**asdict(config.model)))).eval()
    workers = config.compute.num_workers
    queries, gallery = embed_split(network, images, config.data, fabric=fabric, num_workers=workers)
    return evaluate(queries, config.evaluation, clustering=True, gallery=gallery, intervals=True)


class _Pooled(nn.Module):
    def __init__(self, network: Embedder) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.pooled(pixels)


def _loss_result(protocol: Protocol, name: LossName) -> LossResult:
    runs = protocol.finished_runs(name)
    reports = [run.reports() for run in runs]
    selected = [select(run.config, epochs) for run, epochs in zip(runs, reports, strict=True)]
    values: dict[str, list[float]] = {metric: [] for metric in selected[0].evaluation.retrieval}
    for result in selected:
        for metric, value in result.evaluation.retrieval.items():
            values[metric].append(value)
        clusters = result.evaluation.clustering
        if clusters is not None:
            values.setdefault("nmi", []).append(clusters.nmi_mean)
            values.setdefault("ami", []).append(clusters.ami_mean)
    tried = tuple(trials(protocol, name))
    return LossResult(
        name,
        tried,
        best_trial(protocol, name).changes,
        tuple(result.label for result in selected),
        {metric: seed_mean(of_seeds) for metric, of_seeds in values.items()},
        seed_mean([sum(epoch.train_seconds for epoch in epochs) for epochs in reports]),
        sum(trial.seconds for trial in tried),
        tuple(run.read_json(run.environment_file) for run in runs),
    )


def _seed_difference(first: LossResult, other: LossResult, metric: str) -> SeedMean:
    pairs = zip(first.metrics[metric].values, other.metrics[metric].values, strict=True)
    return seed_mean([value - of_first for of_first, value in pairs])


def _mean_columns(
    protocol: Protocol, name: LossName, metrics: Sequence[str], fabric: Fabric, images: Split
) -> tuple[Float64[np.ndarray, "n M"], Int64[np.ndarray, " n"]]:
    """Return what each query adds to each metric on average over the seeds, and the queries' classes."""
    columns = []
    for run in protocol.finished_runs(name):
        network = fabric.setup_module(run.embedder()).eval()
        workers = run.config.compute.num_workers
        queries, gallery = embed_split(network, images, run.config.data, fabric=fabric, num_workers=workers)
        scores = retrieval_scores(
            queries.embeddings,
            queries.labels,
            most_before=max(run.config.evaluation.recall_at),
            gallery=None if gallery is None else gallery.embeddings,
            gallery_labels=None if gallery is None else gallery.labels,
        )
        columns.append(score_columns(scores, metrics))
        classes = queries.labels[scores.queries.cpu().numpy()]
    return np.mean(columns, axis=0), classes


def _swap_tests(
    columns: Sequence[tuple[Float64[np.ndarray, "n M"], Int64[np.ndarray, " n"]]],
) -> list[tuple[float, ...]]:
    """Return, by metric, the adjusted p-values of every loss but the first."""
    (first, classes), *others = columns
    p_values = [sign_flips(class_totals(other - first, classes)[0]).p_values for other, _ in others]
    return [holm(of_metric) for of_metric in zip(*p_values, strict=True)]


def comparison_page(protocol: Protocol, result: BenchResult, *, command: str) -> str:
    """Write the comparison as Markdown: scores, differences, settings, cost, and how to read them.

    Args:
        protocol: what every loss got.
        result: of the comparison.
        command: that wrote the page.
    """
    config = next(iter(protocol.losses.values()))
    frozen = result.frozen
    metrics = list(frozen.retrieval)
    shown = [headline_metric(frozen.retrieval) or metrics[0], "map_at_r"]
    gallery = "" if frozen.num_gallery is None else f" in a gallery of {frozen.num_gallery:,}"
    seeds = f"Seeds 0..{protocol.num_seeds - 1}" if protocol.num_seeds > 1 else "Seed 0 only: no intervals"
    labels = sorted({label for loss in result.losses for label in loss.labels})
    an_own = "an epoch of its own for each run (comparison.json names it)"
    environments = [environment for loss in result.losses for environment in loss.environments]
    lines = [
        f"# Losses compared: {config.name}",
        "",
        f"{frozen.num_images:,} test images of {frozen.num_classes:,} classes never trained on,"
        f" {frozen.num_queries:,} queries{gallery}. {seeds}.",
        f"Selection: {labels[0] if len(labels) == 1 else an_own}.",
        _settings_line(protocol),
        "",
        *_score_table(protocol, result, shown),
        "",
        *_difference_table(result, shown),
        *_setting_table(protocol, result),
        *_cost_table(result),
        f"Wall-clock time of training alone. {machines(environments)}; commit {commits(environments)}.",
        "",
        f"    {command}",
        "",
    ]
    return "\n".join(lines)


def table_row(cells: Sequence[str]) -> str:
    """Return one row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def spread(value: SeedMean, factor: float = 100.0) -> str:
    """Return a mean times a factor, and its standard deviation where there are several seeds."""
    digits = 1 if factor == 100 else 2
    std = "" if value.std is None else f" ± {factor * value.std:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{std}"


def machines(environments: Sequence[Mapping[str, Any]]) -> str:
    """Return what the trainings ran on, in words; where they differ, each value once."""

    def every(name: str) -> str:
        return ", ".join(dict.fromkeys(str(environment.get(name, "unknown")) for environment in environments))

    return (
        f"{every('processor')}, {every('cores')} cores, threads: {every('threads')}, device"
        f" {every('device')}; torch {every('torch')}"
    )


def commits(environments: Sequence[Mapping[str, Any]]) -> str:
    """Return the commits of the trainings, each once."""
    return ", ".join(dict.fromkeys(map(short_commit, environments)))


def _settings_line(protocol: Protocol) -> str:
    if protocol.num_trials == 1:
        return "Settings: as published, nothing tried."
    config = next(iter(protocol.losses.values()))
    folds, epochs = config.evaluation.validation_folds, config.schedule.epochs
    length = "" if protocol.trial_epochs in (None, epochs) else f" of {protocol.trial_epochs} epochs each"
    return (
        f"Settings: the best of {protocol.num_trials} trials a loss{length} by"
        f" {metric_title(protocol.metric)} on validation classes, fold 0 of {folds} of the"
        " training classes; never on test classes."
    )


def _score_table(protocol: Protocol, result: BenchResult, shown: Sequence[str]) -> list[str]:
    clusterings = ["nmi", "ami"] if "nmi" in result.losses[0].metrics else []
    head = [cell for metric in shown for cell in (metric_title(metric), "95 %")]
    rows = [
        table_row(["%", *head, *(metric.upper() for metric in clusterings)]),
        table_row(["---", *["---:", "---"] * len(shown), *["---:"] * len(clusterings)]),
    ]
    for loss in result.losses:
        cells = [cell for m in shown for cell in (spread(loss.metrics[m]), _interval(loss.metrics[m]))]
        rows.append(table_row([loss.name, *cells, *(spread(loss.metrics[m]) for m in clusterings)]))
    frozen = result.frozen
    cells = [cell for metric in shown for cell in (_percent(frozen.retrieval[metric]), "")]
    if clusterings:
        both = frozen.clustering
        cells += ["", ""] if both is None else [_percent(both.nmi_mean), _percent(both.ami_mean)]
    pretrained = next(iter(protocol.losses.values())).model.pretrained
    title = "pretrained backbone, frozen" if pretrained else "untrained backbone"
    return [*rows, table_row([title, *cells])]


def _difference_table(result: BenchResult, shown: Sequence[str]) -> list[str]:
    if not result.differences:
        return []
    head = [cell for m in shown for cell in (metric_title(m), "95 %", "p seeds", "p classes")]
    rows = [
        f"Less {result.losses[0].name}, in points: mean over seeds of the paired differences, its 95 % t"
        " interval, p of the paired t test, and p of swapping the two losses in any test class.",
        "",
        f"| {table_row(head)}",
        table_row(["---", *["---:", "---", "---:", "---:"] * len(shown)]),
    ]
    for loss in result.losses[1:]:
        cells = [
            cell
            for metric in shown
            for difference in result.differences
            if (difference.name, difference.metric) == (loss.name, metric)
            for cell in _difference(difference)
        ]
        rows.append(table_row([loss.name, *cells]))
    others = len(result.losses) - 1
    return [*rows, "", f"Both p are adjusted by Holm for the number of rows, {others}, metric by metric.", ""]


def _difference(difference: Difference) -> tuple[str, ...]:
    low, high = difference.over_seeds.low, difference.over_seeds.high
    interval = "" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
    return (
        f"{100 * difference.over_seeds.mean:+.1f}",
        interval,
        _p(difference.p_over_seeds),
        _p(difference.p_over_classes),
    )


def _setting_table(protocol: Protocol, result: BenchResult) -> list[str]:
    if protocol.num_trials == 1:
        return []
    first = f"{metric_title(protocol.metric)} on validation classes: first trial"
    rows = [
        table_row(["settings", first, "best", "changed"]),
        table_row(["---", "---:", "---:", "---"]),
    ]
    for loss in result.losses:
        values = [trial.value for trial in loss.trials]
        best = max((value for value in values if value is not None), default=None)
        changes = ", ".join(f"{path}={value}" for path, value in loss.changes.items()) or "nothing"
        rows.append(table_row([loss.name, _percent(values[0]), _percent(best), changes]))
    firsts = "The first trial has the recipe's own settings of HIST, and each rival's published ones."
    return [*rows, "", firsts, ""]


def _cost_table(result: BenchResult) -> list[str]:
    gpus = any(environment.get("device") != "cpu" for environment in result.losses[0].environments)
    hours = "GPU hours" if gpus else "hours"
    rows = [
        table_row(["cost", "training, minutes a seed", f"{hours}, seeds and trials"]),
        table_row(["---", "---:", "---:"]),
    ]
    for loss in result.losses:
        ranks = int(loss.environments[0].get("ranks", 1)) if gpus else 1
        total = ranks * (sum(loss.train_seconds.values) + loss.trial_seconds) / 3600
        rows.append(table_row([loss.name, f"{loss.train_seconds.mean / 60:.1f}", f"{total:.2f}"]))
    return [*rows, ""]


def _interval(value: SeedMean) -> str:
    ends = interval_of_share(value)
    return "" if ends is None else " to ".join(map(_percent, ends))


def _percent(value: float | None) -> str:
    return "diverged" if value is None else f"{100 * value:.1f}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
