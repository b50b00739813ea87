"""Everything that decides one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tuplet.config.checks import require
from tuplet.config.data import DataConfig
from tuplet.config.evaluation import EvaluationConfig
from tuplet.config.loss import LossConfig
from tuplet.config.model import ModelConfig
from tuplet.config.optimizer import OptimizerConfig, ScheduleConfig


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
