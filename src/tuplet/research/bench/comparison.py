"""What the trainings of a comparison measured, and how far each loss is from the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from tuplet.config import LossName, RunConfig
from tuplet.data.splits import Split
from tuplet.evaluation.evaluate import embed_split, evaluate
from tuplet.evaluation.measure import EvalReport
from tuplet.metrics.intervals import SeedMean, class_totals, holm, seed_mean, sign_flips
from tuplet.metrics.retrieval import retrieval_scores, score_columns
from tuplet.models.embedder import Embedder
from tuplet.research.bench.protocol import Protocol, Trial, best_trial, trials
from tuplet.training.experiment import embed_images, select


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
    """Return the value of each metric for each query, averaged over the seeds, and the queries' classes."""
    columns = []
    for run in protocol.finished_runs(name):
        queries, gallery = embed_images(run, images, fabric)
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
