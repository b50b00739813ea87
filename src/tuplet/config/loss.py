"""The loss."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from tuplet.config.checks import Check, takes_any_number

LossName = Literal[
    "hist",
    "proxy-anchor",
    "proxy-nca",
    "soft-triple",
    "arcface",
    "multi-similarity",
    "triplet",
    "supcon",
]
Distance = Literal["mahalanobis", "euclidean", "cosine", "manhattan"]
Variance = Literal["learnt", "unit"]
Implementation = Literal["auto", "chunked", "compiled", "plain"]

RIVALS: dict[LossName, dict[str, float]] = {
    "proxy-anchor": {"margin": 0.1, "scale": 32.0},  # Kim et al., CVPR 2020
    "proxy-nca": {"scale": 9.0},  # Teh et al. (ProxyNCA++), ECCV 2020: temperature 1/9
    "soft-triple": {"margin": 0.01, "scale": 20.0, "num_centers": 10},  # Qian et al., ICCV 2019
    "arcface": {"margin": 0.5, "scale": 64.0},  # Deng et al., CVPR 2019
    # Wang et al., CVPR 2019: the paper has margin 1, its authors' code 0.5, as everyone has since.
    "multi-similarity": {"margin": 0.5, "scale": 50.0, "positive_scale": 2.0},
    "triplet": {"margin": 0.2},  # Schroff et al. (FaceNet), CVPR 2015
    "supcon": {"scale": 10.0},  # Khosla et al., NeurIPS 2020: temperature 0.1
}
"""The losses that HIST is compared with, and the settings that each has, as published."""


@takes_any_number
@dataclass(frozen=True)
class LossConfig:
    """The loss: HIST (Eq. 1-6), or one that it is compared with."""

    name: LossName = "hist"
    """hist; or a rival, from pytorch-metric-learning."""
    tau: float = 32.0
    """Temperature of the distribution loss (Eq. 2), > 0."""
    alpha: float = 0.9
    """Decay of the semantic tuplets per unit of distance (Eq. 3), > 0; see `alpha_control`."""
    alpha_control: bool = False
    """Allow alpha <= 0, outside the paper's range, as a control experiment: at 0 every sample of the batch
    has weight 1 in every tuplet, below 0 the weight grows with the distance."""
    lambda_s: float = 1.0
    """Weight of the hypergraph's cross entropy (Eq. 6), >= 0; 0 leaves the HGNN out."""
    hidden_dim: int = 512
    """Width h of the hidden propagations, >= 1."""
    num_layers: int = 2
    """Propagations L of the HGNN, >= 1."""
    distance: Distance = "mahalanobis"
    """Distance between a sample and a class distribution."""
    variance: Variance = "learnt"
    """Of the class distributions. unit: fixed at one, not trained; distance=mahalanobis only."""
    implementation: Implementation = "auto"
    """chunked: little extra memory, for any number of classes; compiled: the same, fused by torch.compile;
    plain: the readable functions in order; auto: plain for few classes, where it is faster, else chunked."""
    class_fraction: float = 1.0
    """Share of the classes that a step sums over, in (0, 1]: the batch's, and others drawn anew each step."""
    margin: float | None = None
    """Of proxy-anchor, soft-triple, arcface (radians), multi-similarity and triplet; None: as published."""
    scale: float | None = None
    """Factor on a rival's similarities, > 0: 1 / temperature of proxy-nca and supcon, alpha of proxy-anchor,
    lambda of soft-triple, s of arcface, beta of multi-similarity; None: as published."""
    positive_scale: float | None = None
    """alpha of multi-similarity, > 0; None: as published."""
    num_centers: int | None = None
    """Centres a class of soft-triple, >= 1; None: as published."""

    def __post_init__(self) -> None:
        check = Check(self, "loss.")
        check("tau", self.tau > 0, "a number > 0")
        check(
            "alpha",
            self.alpha > 0 or (self.alpha_control and self.alpha > -inf),
            "a number > 0; loss.alpha_control = True admits 0 and negative ones, as controls",
        )
        has_variance = self.variance == "learnt" or self.distance == "mahalanobis"
        check("variance", has_variance, f"learnt, for loss.distance = {self.distance} has no variance")
        check("lambda_s", self.lambda_s >= 0, "a number >= 0")
        check.at_least(1, "hidden_dim", "num_layers")
        check("class_fraction", 0 < self.class_fraction <= 1, "a share in (0, 1]")
        can_sample = self.class_fraction == 1 or self.implementation != "plain"
        check("implementation", can_sample, f"chunked, for loss.class_fraction = {self.class_fraction}")
        have = RIVALS.get(self.name, {})
        for name in ("margin", "scale", "positive_scale", "num_centers"):
            value = getattr(self, name)
            none = f"None, for {self.name} has {', '.join(have) or 'none of these settings'}"
            check(name, value is None or name in have, none)
            check(name, value is None or value > 0, "a number > 0")
