"""How parameters learn: the optimizer, how long, and how the learning rates fall."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from tuplet.config.checks import Check, takes_any_number


@takes_any_number
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
    """Learning rate of a rival's proxies, centres or class weights, >= 0; no part of HIST."""
    weight_decay: float = 1e-4
    """Of every group, >= 0."""
    weight_decay_distributions: float | None = None
    """Of the class means and log-variances, >= 0; None: weight_decay."""
    class_update: Literal["same", "rowwise"] = "same"
    """Of means, log-variances and output weights. rowwise: Adam without momentum and weight decay, with one
    second moment a class; for so many classes that the optimizer costs more than the loss."""
    clip_norm: float = 0.0
    """Largest norm of the joint gradient of network and loss, >= 0; 0 leaves it as it is."""

    def __post_init__(self) -> None:
        check = Check(self, "optimizer.")
        for field in fields(self):
            if isinstance(field.default, float):
                check(field.name, getattr(self, field.name) >= 0, "a number >= 0")
        own = self.weight_decay_distributions
        check("weight_decay_distributions", own is None or own >= 0, "a number >= 0, or None")
        decays = own is None or self.class_update == "same"
        check("weight_decay_distributions", decays, "None, for class_update = rowwise has no weight decay")


@takes_any_number
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
    stop_after: int | None = None
    """Epochs after which training ends, though the learning rates fall as they would over `epochs`,
    warmup_epochs..epochs; None: all of them."""

    ema: float = 0.0
    """Decay a step of the running average of the network's weights, in [0, 1), such as 0.99 for a thousand
    steps; the average is what is evaluated and saved. 0: the weights of the last step are."""

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
