"""The study's settings as tables: Tables 8 and 9 (tuned) and Table 2 (original).

References:
    Yuan and Le-Phuoc, "[Re] Hypergraph-Induced Semantic Tuplet Loss for Deep Metric Learning", ReScience C
    9.2 #8, 2023; what its tables do not say, from the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

from tuplet.config import (
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    Source,
)


class Network(NamedTuple):
    """What the recipes of one table share: the network and its optimizer."""

    name: str
    """In the name of a recipe."""
    title: str
    backbone: str
    """The name that timm has for it."""
    optimizer: Literal["adam", "adamw"]
    table: int


RESNET50 = Network("resnet50", "ResNet-50", "resnet50.tv_in1k", "adam", 9)
BN_INCEPTION = Network("bn-inception", "BN-Inception", "bn_inception", "adamw", 8)


class PaperRun(NamedTuple):
    """A row of Table 8 or 9, and what Table 2 has of the original paper for it."""

    source: Source
    network: Network
    tau: float
    alpha: float
    lambda_s: float
    lr: float
    """Of the backbone and of the embedding layer: the tables have one number for both."""
    lr_distributions: float
    lr_hgnn: float
    weight_decay: float
    epochs: int
    """Without the warm-up, as the authors' code counts."""
    step_epochs: int
    freeze_batch_norm: bool
    """As in the authors' code: running statistics stay fixed, affine weights learn after the warm-up."""
    original: tuple[float, float, float]
    """tau, alpha and lambda_s of the original paper."""


# The study's tables contradict each other in one number: alpha of cars with BN-Inception.
PAPER_RUNS = (
    # tau, alpha, lambda_s; lr, lr_distributions, lr_hgnn, weight_decay; epochs, step, BN freeze; the original
    PaperRun("cub", RESNET50, 24.0, 1.15, 1.0, 1.2e-4, 1e-1, 6e-4, 5e-5, 40, 5, True, (32.0, 1.1, 1.0)),
    PaperRun("cars", RESNET50, 32.0, 0.9, 0.8, 1e-4, 1e-1, 1e-3, 1e-4, 50, 10, True, (32.0, 0.9, 1.0)),
    PaperRun("sop", RESNET50, 20.0, 2.1, 0.5, 1e-4, 1e-2, 1e-3, 1e-4, 60, 10, False, (16.0, 2.0, 1.0)),
    PaperRun("cub", BN_INCEPTION, 20.0, 0.95, 1.2, 1e-4, 5e-2, 5e-4, 1e-4, 30, 5, True, (16.0, 1.0, 1.0)),
    PaperRun("cars", BN_INCEPTION, 22.0, 1.0, 1.5, 1e-4, 1e-1, 5e-4, 5e-5, 60, 10, True, (24.0, 0.9, 1.0)),
    PaperRun("sop", BN_INCEPTION, 12.0, 1.55, 1.5, 1e-4, 1e-2, 1e-3, 1e-4, 60, 10, False, (16.0, 1.6, 1.0)),
)
CONTRADICTION = """

The study's tables contradict each other here, and only here. This is Table 8, which has the whole
configuration; `--loss.alpha 0.9` is Table 2."""


def paper_run(row: PaperRun) -> RunConfig:
    """Return the run of one row of Tables 8 and 9, all else as the study's protocol has it.

    The protocol: images of 224 pixels cropped from 256, random batches of 32, average and maximum of the map
    summed, 512 dimensions, 512 hidden ones, two propagations, one epoch of warm-up, then learning rates that
    fall in steps.
    """
    recall_at = (1, 10, 100, 1000) if row.source == "sop" else (1, 2, 4, 8)
    return RunConfig(
        name=f"{row.source}-{row.network.name}",
        data=DataConfig(source=row.source, image_size=224, augmentation="crop-flip", batch_size=32),
        model=ModelConfig(
            backbone=row.network.backbone,
            embedding_dim=512,
            pooling="avg+max",
            freeze_batch_norm="statistics" if row.freeze_batch_norm else "none",
        ),
        loss=LossConfig(tau=row.tau, alpha=row.alpha, lambda_s=row.lambda_s, hidden_dim=512, num_layers=2),
        optimizer=OptimizerConfig(
            name=row.network.optimizer,
            lr_backbone=row.lr,
            lr_embedding=row.lr,
            lr_distributions=row.lr_distributions,
            lr_hgnn=row.lr_hgnn,
            weight_decay=row.weight_decay,
        ),
        schedule=ScheduleConfig(
            epochs=1 + row.epochs,
            warmup_epochs=1,
            decay="step",
            step_epochs=row.step_epochs,
            step_gamma=0.5,
        ),
        evaluation=EvaluationConfig(recall_at=recall_at),
    )


def original_run(row: PaperRun) -> RunConfig:
    """Return the run with the three numbers of Table 2; the study prints no others of the original paper."""
    tau, alpha, lambda_s = row.original
    run = paper_run(row)
    loss = replace(run.loss, tau=tau, alpha=alpha, lambda_s=lambda_s)
    return replace(run, name=f"{run.name}-original", loss=loss)


def documented(purpose: str, build: Callable[..., RunConfig], *arguments: object) -> Callable[[], RunConfig]:
    """Return a recipe that calls `build`, with its purpose as its docstring, which the commands print."""
    recipe = partial(build, *arguments)
    recipe.__doc__ = purpose
    return recipe


def _tuned_purpose(row: PaperRun) -> str:
    network = row.network
    note = ", where cars has alpha 1.0; its Table 2 has 0.9" if network == BN_INCEPTION else ""
    purpose = f"{network.title}, as the study tuned it (Table {network.table}{note})."
    return purpose + CONTRADICTION if note and row.source == "cars" else purpose


def _original_purpose(row: PaperRun) -> str:
    numbers = "with the original paper's tau, alpha and lambda_s (Table 2)"
    return f"{row.network.title}, {numbers}; all else is Table {row.network.table}'s."


PAPER_RECIPES: dict[str, Callable[[], RunConfig]] = {
    build(row).name: documented(purpose(row), build, row)
    for build, purpose in ((paper_run, _tuned_purpose), (original_run, _original_purpose))
    for row in PAPER_RUNS
}
