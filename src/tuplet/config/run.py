"""The config of one run, `RunConfig`, and its smaller sections; the larger ones have files of their own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tuplet.config.checks import Check, converts_fields
from tuplet.config.data import DataConfig
from tuplet.config.loss import LossConfig
from tuplet.config.optimizer import OptimizerConfig, ScheduleConfig

Pooling = Literal["avg", "max", "avg+max", "gem", "token"]
BatchNormFreeze = Literal["none", "statistics", "full"]
Selection = Literal["last", "validation", "oracle"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "csv"]
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
Engine = Literal["auto", "torch", "onnx"]
CompileMode = Literal["default", "reduce-overhead"]


@converts_fields
@dataclass(frozen=True)
class ModelConfig:
    """The embedding network."""

    backbone: str = "resnet50.tv_in1k"
    """Any timm model name, or tuplet_convnet, a small network for small images."""
    embedding_dim: int = 512
    """Dimension of the embeddings (D), >= 1."""
    pooling: Pooling = "avg+max"
    """How to pool the feature map into one vector; token: the class token of a transformer."""
    pretrained: bool = True
    """Start from pretrained weights of the backbone: from the file `weights` if it is given, otherwise from
    the hub."""
    weights: Path | None = None
    """Local .safetensors or .pth file with weights of the backbone, loaded strictly."""
    freeze_batch_norm: BatchNormFreeze = "none"
    """BatchNorm layers of the backbone. none: trained; statistics: running statistics stay fixed (the paper's
    "BN freeze"); full: the affine weights stay fixed too."""

    def __post_init__(self) -> None:
        Check(self, "model.").at_least(1, "embedding_dim")


@converts_fields
@dataclass(frozen=True)
class EvaluationConfig:
    """What to measure, on which classes, and when."""

    split: Literal["test", "validation"] = "test"
    """test: measure on the test classes; validation: hold out part of the training classes, measure on those,
    and never touch the test images."""
    validation_folds: int = 4
    """Number of parts, as equal as possible, into which the training classes are divided, >= 2; each fold
    holds one of them out."""
    validation_fold: int = 0
    """The part that is held out, in 0..validation_folds-1; split=validation only."""
    validation_seed: int = 0
    """Seed that decides which classes are in which part, >= 0."""
    selection: Selection = "last"
    """The epoch whose numbers are reported. last: the last; validation: train once for each fold, take the
    number of epochs that is best on average, and train for that long on all training classes; oracle: the
    best epoch on the test classes themselves, to compare with papers that report it."""
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """Values of K for Recall@K, each >= 1."""
    every_epochs: int = 1
    """Epochs from one evaluation to the next, >= 1; the last epoch is always evaluated."""
    diagnose: bool = False
    """In some batches of each epoch, measure what HIST's hypergraph sees and the gradient of each half of the
    loss. Training stays the same, bit for bit. loss.name=hist only; other losses have no such halves and are
    not measured."""
    kmeans_runs: int | None = None
    """Runs of k-means for NMI and AMI, after the last epoch only, >= 0. 0: no clustering; None: ten, or one
    beyond 20,000 images."""

    def __post_init__(self) -> None:
        check = Check(self, "evaluation.")
        check.at_least(2, "validation_folds")
        inside = 0 <= self.validation_fold < self.validation_folds
        check("validation_fold", inside, f"0..{self.validation_folds - 1}")
        check(
            "selection",
            self.split == "test" or self.selection == "last",
            "last, for evaluation.split=validation measures validation classes in any case",
        )
        check.at_least(0, "validation_seed")
        ranks = self.recall_at
        check("recall_at", len(ranks) > 0 and min(ranks) >= 1, "one or more ranks, each 1 or more")
        check.at_least(1, "every_epochs")
        check.at_least(0, "kmeans_runs")


@converts_fields
@dataclass(frozen=True)
class ComputeConfig:
    """Where to compute, with how many processes, and in which precision."""

    accelerator: Accelerator = "auto"
    """auto: a GPU if there is one, otherwise the CPU."""
    devices: int = 1
    """Processes of data-parallel training on each machine, one per device, >= 1; together a divisor of
    data.batch_size."""
    num_nodes: int = 1
    """Machines that train together, >= 1, each with `devices` processes; torchrun or Slurm starts them."""
    shard_classes: bool = False
    """Each process keeps only the parameters of its share of the classes; for more classes than one device
    can hold."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Precision of the backbone; distances in the loss are always float32."""
    compile: bool = False
    """Compile network and loss with torch.compile; the first steps then take a minute or more."""
    compile_mode: CompileMode = "default"
    """Mode of torch.compile; reduce-overhead replays the steps on a GPU as CUDA graphs."""
    num_workers: int = 2
    """Processes that decode images, >= 0; 0: decode in the training process."""

    def __post_init__(self) -> None:
        check = Check(self, "compute.")
        check.at_least(1, "devices", "num_nodes")
        check.at_least(0, "num_workers")

    @property
    def num_processes(self) -> int:
        """Processes that share a batch, over all machines."""
        return self.devices * self.num_nodes


@converts_fields
@dataclass(frozen=True)
class RunConfig:
    """Configuration of one run: the same config gives the same weights on the same machine."""

    name: str = "run"
    """First part of the run folder's name; letters, digits, '.', '_' and '-'."""
    seed: int = 0
    """Seed of weights, batches and augmentation, >= 0."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        check = Check(self)
        named = self.name != "" and all(c.isalnum() or c in "._-" for c in self.name)
        check("name", named, "letters, digits, '.', '_' and '-'")
        check("seed", 0 <= self.seed < 2**63, "0..2^63-1")
        self._check_batch(check)
        self._check_classes_of_a_process(check)
        self._check_fused(check)
        self._check_steps(check)
        self._check_loss(check)

    def _check_batch(self, check: Check) -> None:
        compute = self.compute
        batch_size, num_processes = self.data.batch_size, compute.num_processes
        machines = f" in all on {compute.num_nodes} machines" if compute.num_nodes > 1 else ""
        check(
            "compute.devices",
            batch_size % num_processes == 0,
            f"a divisor of data.batch_size = {batch_size}{machines}",
        )
        share = f"the {batch_size // num_processes} images of a process"
        check(
            "data.accumulate",
            batch_size // num_processes % self.data.accumulate == 0,
            f"a divisor of data.batch_size = {batch_size}" if num_processes == 1 else f"a divisor of {share}",
        )

    def _check_classes_of_a_process(self, check: Check) -> None:
        loss, compute = self.loss, self.compute
        check(
            "loss.implementation",
            not compute.shard_classes or loss.implementation != "plain",
            "chunked, for compute.shard_classes",
        )
        check(
            "loss.class_fraction",
            compute.num_processes == 1 or compute.shard_classes or loss.class_fraction == 1,
            f"1, or compute.shard_classes: each of {compute.num_processes} devices would draw other classes",
        )
        check(
            "loss.label_smoothing",
            not compute.shard_classes or loss.label_smoothing == 0,
            "0, for compute.shard_classes: no process has the scores of all classes",
        )
        check(
            "loss.matryoshka",
            not compute.shard_classes or not loss.matryoshka,
            "(), for compute.shard_classes: no process has the scores of all classes",
        )
        dim = self.model.embedding_dim
        below = f"widths below model.embedding_dim = {dim}"
        check("loss.matryoshka", max(loss.matryoshka, default=0) < dim, below)
        check(
            "evaluation.diagnose",
            not (self.evaluation.diagnose and compute.shard_classes),
            "False, for compute.shard_classes: no process has all classes",
        )

    def _check_fused(self, check: Check) -> None:
        loss, compute = self.loss, self.compute
        fused = compute.compile or loss.implementation == "compiled"
        for name in ("tau_end", "lambda_s_end"):
            wanted = "None, for compute.compile or loss.implementation = compiled: fused for one value"
            check(f"loss.{name}", not fused or getattr(loss, name) is None, wanted)

    def _check_steps(self, check: Check) -> None:
        compute = self.compute
        rowwise, sampled = self.optimizer.class_update == "rowwise", self.loss.class_fraction < 1
        # 16-mixed scales the loss, and skips the steps of an optimizer whose gradients overflow. Parameters
        # that another optimizer or another rank holds would take theirs all the same.
        for path, own_steps in (
            ("optimizer.class_update", rowwise),
            ("compute.shard_classes", compute.shard_classes),
        ):
            check(
                "compute.precision",
                not own_steps or compute.precision != "16-mixed",
                f"bf16-mixed or 32-true, for {path}: its steps would be skipped apart from the others",
            )
        check(
            "optimizer.clip_norm",
            not (rowwise and sampled) or self.optimizer.clip_norm == 0,
            "0, for sparse gradients (class_update = rowwise with class_fraction < 1) have no norm to clip",
        )

    def _check_loss(self, check: Check) -> None:
        loss, compute = self.loss, self.compute
        for name, common, given in (
            ("optimizer.class_update", "same", self.optimizer.class_update),
            ("optimizer.weight_decay_distributions", None, self.optimizer.weight_decay_distributions),
            ("compute.shard_classes", False, compute.shard_classes),
            ("loss.class_fraction", 1.0, loss.class_fraction),
        ):
            wanted = f"{common!r}, for loss.name = {loss.name}: it is there for hist only"
            check(name, loss.name == "hist" or given == common, wanted)


def shortened(config: RunConfig, epochs: int) -> RunConfig:
    """Return the config of the same run in fewer epochs, its learning rates falling as fast in proportion.

    Args:
        config: of the run.
        epochs: 1..config.schedule.epochs.
    """
    schedule = config.schedule
    steps = max(1, round(schedule.step_epochs * epochs / schedule.epochs))
    warmup = min(schedule.warmup_epochs, epochs - 1)
    short = replace(schedule, epochs=epochs, step_epochs=steps, warmup_epochs=warmup, stop_after=None)
    return replace(config, schedule=short)
