"""Settings of training: the optimizer, the number of epochs, and the schedule of the learning rates."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from tuplet.config.checks import Check, converts_fields


@converts_fields
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
    lr_proxies: float = 1e-2
    """Learning rate of a rival's proxies, centres or class weights, >= 0; not used by hist."""
    weight_decay: float = 1e-4
    """Weight decay of every group, >= 0."""
    weight_decay_distributions: float | None = None
    """Weight decay of the class means and log-variances, >= 0; None: weight_decay."""
    class_update: Literal["same", "rowwise"] = "same"
    """How class means, log-variances and output weights are updated. same: by the optimizer in `name`;
    rowwise: by Adam without momentum and weight decay, with one second moment per class; for so many classes
    that the optimizer costs more than the loss."""
    clip_norm: float = 0.0
    """Largest norm of the joint gradient of network and loss, >= 0; 0: no clipping."""

    def __post_init__(self) -> None:
        check = Check(self, "optimizer.")
        for field in fields(self):
            if isinstance(field.default, float):
                check(field.name, getattr(self, field.name) >= 0, "a number >= 0")
        own = self.weight_decay_distributions
        check("weight_decay_distributions", own is None or own >= 0, "a number >= 0, or None")
        decays = own is None or self.class_update == "same"
        check("weight_decay_distributions", decays, "None, for class_update = rowwise has no weight decay")


@converts_fields
@dataclass(frozen=True)
class ScheduleConfig:
    """How long to train, and how the learning rates fall."""

    epochs: int = 50
    """Passes over the training images, >= 1, including the warm-up."""
    warmup_epochs: int = 1
    """Number of first epochs in which the backbone is frozen and the learning rates are constant,
    0..epochs."""
    decay: Literal["step", "cosine", "none"] = "step"
    """step: multiply by `step_gamma` every `step_epochs` epochs; cosine: fall to zero over the epochs after
    the warm-up; none: constant."""
    step_epochs: int = 10
    """Epochs between two steps, k of the paper's Step(k/g), >= 1."""
    step_gamma: float = 0.5
    """Factor of one step, g of the paper's Step(k/g), in (0, 1]."""
    stop_after: int | None = None
    """Epoch after which training ends, warmup_epochs..epochs, while the learning rates fall as they would
    over `epochs`; None: the last."""

    ema: float = 0.0
    """Decay per step of a running average of the network's weights, in [0, 1), such as 0.99 for a thousand
    steps; the average is evaluated and saved. 0: no averaging."""

    @property
    def last_epoch(self) -> int:
        """The epoch after which training ends."""
        return self.epochs if self.stop_after is None else self.stop_after

    def __post_init__(self) -> None:
        check = Check(self, "schedule.")
        check.at_least(1, "epochs")
        check("warmup_epochs", 0 <= self.warmup_epochs <= self.epochs, f"0..{self.epochs}")
        check.at_least(1, "step_epochs")
        check("step_gamma", 0 < self.step_gamma <= 1, "a factor in (0, 1]")
        check("ema", 0 <= self.ema < 1, "a decay in [0, 1)")
        first = max(1, self.warmup_epochs)
        check("stop_after", first <= self.last_epoch <= self.epochs, f"{first}..{self.epochs}")
