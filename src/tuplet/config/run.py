"""Everything that decides one run: its sections, of which the smaller ones are here too."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tuplet.config.checks import require
from tuplet.config.data import DataConfig
from tuplet.config.loss import LossConfig
from tuplet.config.optimizer import OptimizerConfig, ScheduleConfig

Pooling = Literal["avg", "max", "avg+max", "gem", "token"]
BatchNormFreeze = Literal["none", "statistics", "full"]
Selection = Literal["last", "validation", "oracle"]


@dataclass(frozen=True)
class ModelConfig:
    """The embedding network."""

    backbone: str = "resnet50.tv_in1k"
    """Any timm model name, or tuplet_convnet, the small network for small images."""
    embedding_dim: int = 512
    """D, >= 1."""
    pooling: Pooling = "avg+max"
    """How the feature map becomes one vector; token is the class token of a transformer."""
    pretrained: bool = True
    """Start from the backbone's pretrained weights: from `weights`, or else from the hub."""
    weights: Path | None = None
    """A local .safetensors or .pth file of the backbone, loaded strictly."""
    freeze_batch_norm: BatchNormFreeze = "none"
    """statistics: running statistics stay fixed (the paper's "BN freeze"); full: the affine weights too."""

    def __post_init__(self) -> None:
        require(self.embedding_dim >= 1, "model.embedding_dim", self.embedding_dim, "1 or more")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, on which classes, and when."""

    split: Literal["test", "validation"] = "test"
    """validation: hold out part of the training classes, measure on those, never touch the test images."""
    validation_folds: int = 4
    """Parts, as equal as can be, of the training classes, >= 2; each fold holds one of them out."""
    validation_fold: int = 0
    """Which part is held out, in 0..validation_folds-1; split=validation only."""
    validation_seed: int = 0
    """Which classes make up each part, >= 0."""
    selection: Selection = "last"
    """Whose epoch's numbers count. last: the last; validation: as many epochs as are best on average over all
    folds, each trained on its own, and then a training on all training classes; oracle: the best epoch on the
    test classes themselves, to compare with papers that report it."""
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """The K of Recall@K, each >= 1."""
    every_epochs: int = 1
    """Measure after every so many epochs, and after the last, >= 1."""
    kmeans_runs: int | None = None
    """k-means runs behind NMI and AMI, after the last epoch only, >= 0; 0 leaves clustering out; None is ten,
    or one beyond 20,000 images."""

    def __post_init__(self) -> None:
        require(self.validation_folds >= 2, "evaluation.validation_folds", self.validation_folds, "2 or more")
        require(
            0 <= self.validation_fold < self.validation_folds,
            "evaluation.validation_fold",
            self.validation_fold,
            f"0..{self.validation_folds - 1}",
        )
        require(
            self.split == "test" or self.selection == "last",
            "evaluation.selection",
            self.selection,
            "last, for evaluation.split=validation measures validation classes in any case",
        )
        require(self.validation_seed >= 0, "evaluation.validation_seed", self.validation_seed, "0 or more")
        require(
            len(self.recall_at) > 0 and min(self.recall_at, default=0) >= 1,
            "evaluation.recall_at",
            self.recall_at,
            "one or more ranks, each 1 or more",
        )
        require(self.every_epochs >= 1, "evaluation.every_epochs", self.every_epochs, "1 or more")
        require((self.kmeans_runs or 0) >= 0, "evaluation.kmeans_runs", self.kmeans_runs, "0 or more")


@dataclass(frozen=True)
class ComputeConfig:
    """On what it runs, how many processes share a batch, and in which precision."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto takes a GPU where there is one."""
    devices: int = 1
    """Processes of data-parallel training, >= 1, dividing data.batch_size."""
    shard_classes: bool = False
    """Each process keeps the parameters of its share of the classes only: for more than one device holds."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Of the backbone; the distances of the loss are float32 always."""
    compile: bool = False
    """Whether torch.compile fuses the network; the first steps then take a minute or more."""
    num_workers: int = 2
    """Processes that decode images, >= 0; 0 decodes in the training process."""

    def __post_init__(self) -> None:
        require(self.devices >= 1, "compute.devices", self.devices, "1 or more")
        require(self.num_workers >= 0, "compute.num_workers", self.num_workers, "0 or more")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides one run: the same config gives the same weights on the same machine."""

    name: str = "run"
    """First part of the run folder's name; letters, digits, '.', '_' and '-'."""
    seed: int = 0
    """Seeds weights, batches and augmentation, >= 0."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        require(
            self.name != "" and all(c.isalnum() or c in "._-" for c in self.name),
            "name",
            self.name,
            "letters, digits, '.', '_' and '-'",
        )
        require(0 <= self.seed < 2**63, "seed", self.seed, "0..2^63-1")
        require(
            self.data.batch_size % self.compute.devices == 0,
            "compute.devices",
            self.compute.devices,
            f"a divisor of data.batch_size = {self.data.batch_size}",
        )
        require(
            not self.compute.shard_classes or self.loss.implementation != "plain",
            "loss.implementation",
            self.loss.implementation,
            "chunked, for compute.shard_classes",
        )
        require(
            self.compute.devices == 1 or self.compute.shard_classes or self.loss.class_fraction == 1,
            "loss.class_fraction",
            self.loss.class_fraction,
            f"1, or compute.shard_classes: each of {self.compute.devices} devices would draw other classes",
        )
        for path, scaled_alike in (
            ("optimizer.class_update", self.optimizer.class_update == "same"),
            ("compute.shard_classes", not self.compute.shard_classes),
        ):
            require(
                scaled_alike or self.compute.precision != "16-mixed",
                "compute.precision",
                self.compute.precision,
                f"bf16-mixed or 32-true, for {path}: its steps would be skipped apart from the others",
            )
        sparse = self.optimizer.class_update == "rowwise" and self.loss.class_fraction < 1
        require(
            not sparse or self.optimizer.clip_norm == 0,
            "optimizer.clip_norm",
            self.optimizer.clip_norm,
            "0, for sparse gradients (class_update = rowwise with class_fraction < 1) have no norm to clip",
        )
        for name, value, common in (
            ("optimizer.class_update", self.optimizer.class_update, "same"),
            ("compute.shard_classes", self.compute.shard_classes, False),
            ("loss.class_fraction", self.loss.class_fraction, 1.0),
        ):
            require(
                self.loss.name == "hist" or value == common,
                name,
                value,
                f"{common!r}, for loss.name = {self.loss.name}: it is there for hist only",
            )
