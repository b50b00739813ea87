"""One run as frozen dataclasses: data, model, loss, optimizer, schedule, evaluation, compute.

Every value is checked when it is made and none is changed afterwards. The command line, the YAML file of a
run and the tuner all read these same fields (`overrides.py` changes, writes and reads them).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tuplet.errors import InputError

Distance = Literal["mahalanobis", "euclidean", "cosine", "manhattan"]
Implementation = Literal["auto", "chunked", "compiled", "plain"]
Pooling = Literal["avg", "max", "avg+max", "gem", "token"]
BatchNormFreeze = Literal["none", "statistics", "full"]
Augmentation = Literal["crop-flip", "affine", "none"]


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise InputError(f"{name} is {value!r}; want {wanted}")


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are split by class, and how they become batches."""

    source: Literal["folder", "glyphs"] = "folder"
    """folder: images on disk below `root`; glyphs: characters drawn by a seeded program, no files needed."""
    root: Path | None = None
    """Folder of train/<class>/* and test/<class>/*, or of <class>/*, to be split; source=folder only."""
    train_fraction: float = 0.5
    """Share of the classes of root/<class>/* that trains, in (0, 1); ignored where root/train exists."""
    split_seed: int | None = None
    """None: the first classes by name train. A number: a random share of them, drawn with this seed."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """An image that cannot be read: stop with its path, or read all once before, skip and list those."""
    glyph_train_classes: int = 100
    """Generated characters that train, >= 2; source=glyphs only."""
    glyph_test_classes: int = 100
    """Generated characters that are only queried, >= 2; source=glyphs only."""
    glyphs_per_class: int = 20
    """Drawings of each generated character, >= 2; source=glyphs only."""
    image_size: int = 224
    """Side of the square the network sees, pixels, >= 8."""
    resize: int = 256
    """Short side before the centre crop at test, pixels, >= image_size."""
    augmentation: Augmentation = "crop-flip"
    """Training: crop-flip is RandomResizedCrop and a horizontal flip; affine is for characters; or none."""
    quarter_turns: bool = False
    """Each training class turned by 90, 180 and 270 degrees is another class: for characters."""
    cache: Literal["none", "memory"] = "none"
    """memory: decode once and keep every image, short side at `resize`, as uint8. For sets that fit."""
    sampler: Literal["random", "per-class"] = "random"
    """random: shuffled; per-class: `images_per_class` images of each class that is in the batch."""
    batch_size: int = 32
    """Images a step over all ranks, N, >= 2."""
    images_per_class: int = 4
    """Images a class in a batch, >= 1, dividing batch_size; sampler=per-class only."""

    def __post_init__(self) -> None:
        _require(0 < self.train_fraction < 1, "data.train_fraction", self.train_fraction, "a share in (0, 1)")
        for name in ("glyph_train_classes", "glyph_test_classes", "glyphs_per_class", "batch_size"):
            _require(getattr(self, name) >= 2, f"data.{name}", getattr(self, name), "2 or more")
        _require(
            self.split_seed is None or self.split_seed >= 0, "data.split_seed", self.split_seed, "0 or more"
        )
        _require(self.image_size >= 8, "data.image_size", self.image_size, "8 pixels or more")
        _require(
            self.resize >= self.image_size,
            "data.resize",
            self.resize,
            f"at least data.image_size = {self.image_size}",
        )
        _require(self.images_per_class >= 1, "data.images_per_class", self.images_per_class, "1 or more")
        if self.sampler == "per-class":
            _require(
                self.batch_size % self.images_per_class == 0,
                "data.images_per_class",
                self.images_per_class,
                f"a divisor of data.batch_size = {self.batch_size}",
            )


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
        _require(self.embedding_dim >= 1, "model.embedding_dim", self.embedding_dim, "1 or more")


@dataclass(frozen=True)
class LossConfig:
    """The HIST loss (Eq. 1-6)."""

    tau: float = 32.0
    """Temperature of the distribution loss (Eq. 2), > 0."""
    alpha: float = 0.9
    """Decay of the semantic tuplets per unit of distance (Eq. 3), > 0."""
    lambda_s: float = 1.0
    """Weight of the hypergraph's cross entropy (Eq. 6), >= 0; 0 leaves the HGNN out."""
    hidden_dim: int = 512
    """Width h of the hidden propagations, >= 1."""
    num_layers: int = 2
    """Propagations L of the HGNN, >= 1."""
    distance: Distance = "mahalanobis"
    """Distance between a sample and a class distribution."""
    implementation: Implementation = "auto"
    """chunked: constant extra memory, for any number of classes; compiled: the same, fused by torch.compile;
    plain: the readable functions in order; auto: plain for few classes, where it is faster, else chunked."""
    class_fraction: float = 1.0
    """Share of the classes that a step sums over, in (0, 1]: the batch's, and others drawn anew each step."""

    def __post_init__(self) -> None:
        _require(self.tau > 0, "loss.tau", self.tau, "a number > 0")
        _require(self.alpha > 0, "loss.alpha", self.alpha, "a number > 0")
        _require(self.lambda_s >= 0, "loss.lambda_s", self.lambda_s, "a number >= 0")
        _require(self.hidden_dim >= 1, "loss.hidden_dim", self.hidden_dim, "1 or more")
        _require(self.num_layers >= 1, "loss.num_layers", self.num_layers, "1 or more")
        _require(
            0 < self.class_fraction <= 1, "loss.class_fraction", self.class_fraction, "a share in (0, 1]"
        )
        _require(
            self.class_fraction == 1 or self.implementation != "plain",
            "loss.implementation",
            self.implementation,
            f"chunked, for loss.class_fraction = {self.class_fraction}",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its four parameter groups."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam, AdamW, or SGD with Nesterov momentum 0.9."""
    lr_backbone: float = 1e-4
    """Learning rate of the backbone, >= 0."""
    lr_embedding: float = 1e-4
    """Learning rate of the embedding layer, >= 0."""
    lr_distributions: float = 1e-1
    """Learning rate of the class means and log-variances (lr-D of Tables 8 and 9), >= 0."""
    lr_hgnn: float = 1e-3
    """Learning rate of the hypergraph network (lr-HGNN of Tables 8 and 9), >= 0."""
    weight_decay: float = 1e-4
    """Of every group, >= 0."""
    class_update: Literal["same", "rowwise"] = "same"
    """Of means, log-variances and output weights. rowwise: Adam without momentum and weight decay, with one
    second moment a class; for so many classes that the optimizer costs more than the loss."""
    clip_norm: float = 0.0
    """Largest norm of the joint gradient of network and loss, >= 0; 0 leaves it as it is."""

    def __post_init__(self) -> None:
        for name in (
            "lr_backbone",
            "lr_embedding",
            "lr_distributions",
            "lr_hgnn",
            "weight_decay",
            "clip_norm",
        ):
            _require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "a number >= 0")


@dataclass(frozen=True)
class ScheduleConfig:
    """How long, and how the learning rates fall."""

    epochs: int = 50
    """Passes over the training images, >= 1, warm-up included."""
    warmup_epochs: int = 1
    """First epochs in which the backbone's weights rest and the learning rates stand still, 0..epochs."""
    decay: Literal["step", "cosine", "none"] = "step"
    """step: times `step_gamma` every `step_epochs`; cosine: to zero over the epochs after the warm-up."""
    step_epochs: int = 10
    """k of the paper's Step(k/g), >= 1."""
    step_gamma: float = 0.5
    """g of the paper's Step(k/g), in (0, 1]."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "schedule.epochs", self.epochs, "1 or more")
        _require(
            0 <= self.warmup_epochs <= self.epochs,
            "schedule.warmup_epochs",
            self.warmup_epochs,
            f"0..{self.epochs}",
        )
        _require(self.step_epochs >= 1, "schedule.step_epochs", self.step_epochs, "1 or more")
        _require(0 < self.step_gamma <= 1, "schedule.step_gamma", self.step_gamma, "a factor in (0, 1]")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, on which classes, and when."""

    split: Literal["test", "validation"] = "test"
    """validation: hold out part of the training classes, measure on those, never touch the test images."""
    validation_fraction: float = 0.25
    """Share of the training classes held out, in (0, 1); split=validation only."""
    validation_seed: int = 0
    """Which classes are held out; split=validation only."""
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """The K of Recall@K, each >= 1."""
    every_epochs: int = 1
    """Measure after every so many epochs, and after the last, >= 1."""
    kmeans_runs: int | None = None
    """k-means runs behind NMI and AMI, after the last epoch only, >= 0; 0 leaves clustering out; None is ten,
    or one beyond 20,000 images."""

    def __post_init__(self) -> None:
        _require(
            0 < self.validation_fraction < 1,
            "evaluation.validation_fraction",
            self.validation_fraction,
            "a share in (0, 1)",
        )
        _require(self.validation_seed >= 0, "evaluation.validation_seed", self.validation_seed, "0 or more")
        _require(
            len(self.recall_at) > 0 and min(self.recall_at, default=0) >= 1,
            "evaluation.recall_at",
            self.recall_at,
            "one or more ranks, each 1 or more",
        )
        _require(self.every_epochs >= 1, "evaluation.every_epochs", self.every_epochs, "1 or more")
        _require((self.kmeans_runs or 0) >= 0, "evaluation.kmeans_runs", self.kmeans_runs, "0 or more")


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
    num_workers: int = 2
    """Processes that decode images, >= 0; 0 decodes in the training process."""

    def __post_init__(self) -> None:
        _require(self.devices >= 1, "compute.devices", self.devices, "1 or more")
        _require(self.num_workers >= 0, "compute.num_workers", self.num_workers, "0 or more")


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
        _require(
            self.name != "" and all(c.isalnum() or c in "._-" for c in self.name),
            "name",
            self.name,
            "letters, digits, '.', '_' and '-'",
        )
        _require(0 <= self.seed < 2**63, "seed", self.seed, "0..2^63-1")
        _require(
            self.data.batch_size % self.compute.devices == 0,
            "compute.devices",
            self.compute.devices,
            f"a divisor of data.batch_size = {self.data.batch_size}",
        )
        _require(
            not self.compute.shard_classes or self.loss.implementation != "plain",
            "loss.implementation",
            self.loss.implementation,
            "chunked, for compute.shard_classes",
        )
        sparse = self.optimizer.class_update == "rowwise" and self.loss.class_fraction < 1
        _require(
            not sparse or self.optimizer.clip_norm == 0,
            "optimizer.clip_norm",
            self.optimizer.clip_norm,
            "0, for sparse gradients (class_update = rowwise with class_fraction < 1) have no norm to clip",
        )
