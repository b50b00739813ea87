"""Settings of the loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from tuplet.config.checks import Check, converts_fields

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
HypergraphFeatures = Literal["embedding", "unit"]
HypergraphDetach = Literal["none", "incidence", "inputs"]

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


@converts_fields
@dataclass(frozen=True)
class HypergraphConfig:
    """Variants of HIST's hypergraph network; the defaults are the paper's."""

    features: HypergraphFeatures = "embedding"
    """What the HGNN reads. embedding: f, the output of the network; unit: x, the same at unit length."""
    output_gain: float = 1.0
    """Factor on the logits of the HGNN, > 0; mixing shrinks them to about the own share of a tuplet."""
    self_loops: float = 0.0
    """Weight s of a sample's own row in each propagation, (1 - s) G + s I, in [0, 1)."""
    detach: HypergraphDetach = "none"
    """Where the gradient of the cross entropy stops. incidence: no gradient through H; inputs: no gradient to
    embeddings and class distributions at all, so that it trains the HGNN alone."""

    def __post_init__(self) -> None:
        check = Check(self, "loss.hypergraph.")
        check("output_gain", self.output_gain > 0, "a number > 0")
        check("self_loops", 0 <= self.self_loops < 1, "a share in [0, 1)")


@converts_fields
@dataclass(frozen=True)
class LossConfig:
    """The loss: HIST (Eq. 1-6), or one of the losses that it is compared with."""

    name: LossName = "hist"
    """hist, or a rival from pytorch-metric-learning."""
    tau: float = 32.0
    """Temperature of the distribution loss (Eq. 2), > 0."""
    tau_end: float | None = None
    """tau in the last epoch, > 0, reached in equal steps, one per epoch; None: tau is constant."""
    alpha: float = 0.9
    """Decay of a sample's weight in a semantic tuplet per unit of distance (Eq. 3), > 0; see
    `alpha_control`."""
    alpha_control: bool = False
    """Allow alpha <= 0, outside the paper's range, as a control experiment: at 0 every sample of the batch
    has weight 1 in every tuplet; below 0 the weight grows with the distance."""
    own_share: float = 0.0
    """Mean share of a tuplet's weight that is on images of its own class, in [0, 1). If > 0, alpha is solved
    for this share in each batch, and `alpha` is ignored."""
    lambda_s: float = 1.0
    """Weight of the hypergraph's cross entropy (Eq. 6), >= 0; 0 skips the HGNN."""
    lambda_s_end: float | None = None
    """lambda_s in the last epoch, >= 0, reached in equal steps, one per epoch; None: lambda_s is constant."""
    label_smoothing: float = 0.0
    """Label smoothing of the distribution loss, in [0, 1): share of the target that is spread evenly over all
    classes."""
    matryoshka: tuple[int, ...] = ()
    """Leading widths of the embeddings, ascending and below model.embedding_dim, at which the loss is added
    (for hist the distribution loss), so that embeddings can be cut off there. (): none."""
    hypergraph: HypergraphConfig = field(default_factory=HypergraphConfig)
    hidden_dim: int = 512
    """Width of the hidden propagations of the HGNN (h), >= 1."""
    num_layers: int = 2
    """Number of propagations of the HGNN (L), >= 1."""
    distance: Distance = "mahalanobis"
    """Distance between a sample and a class distribution."""
    variance: Variance = "learnt"
    """Variances of the class distributions. learnt: trained; unit: fixed at one, distance=mahalanobis
    only."""
    implementation: Implementation = "auto"
    """plain: the readable functions in order; chunked: little extra memory, for any number of classes;
    compiled: chunked, fused by torch.compile; auto: plain for few classes, where it is faster, otherwise
    chunked."""
    class_fraction: float = 1.0
    """Share of the classes that a step sums over, in (0, 1]: those of the batch and a random sample of the
    others, drawn again at each step."""
    margin: float | None = None
    """Margin of proxy-anchor, soft-triple, arcface (radians), multi-similarity and triplet; None: as
    published."""
    scale: float | None = None
    """Factor on a rival's similarities, > 0: 1 / temperature of proxy-nca and supcon, alpha of proxy-anchor,
    lambda of soft-triple, s of arcface, beta of multi-similarity; None: as published."""
    positive_scale: float | None = None
    """alpha of multi-similarity, > 0; None: as published."""
    num_centers: int | None = None
    """Centres per class of soft-triple, >= 1; None: as published."""

    def __post_init__(self) -> None:
        check = Check(self, "loss.")
        check("tau", self.tau > 0, "a number > 0")
        check("tau_end", self.tau_end is None or self.tau_end > 0, "a number > 0, or None")
        check(
            "alpha",
            self.alpha > 0 or self.alpha_control,
            "a number > 0; loss.alpha_control = True admits 0 and negative ones, as controls",
        )
        has_variance = self.variance == "learnt" or self.distance == "mahalanobis"
        check("variance", has_variance, f"learnt, for loss.distance = {self.distance} has no variance")
        check("own_share", 0 <= self.own_share < 1, "a share in [0, 1)")
        check("lambda_s", self.lambda_s >= 0, "a number >= 0")
        check("lambda_s_end", self.lambda_s_end is None or self.lambda_s_end >= 0, "a number >= 0, or None")
        check("label_smoothing", 0 <= self.label_smoothing < 1, "a share in [0, 1)")
        is_plain = self.implementation in ("auto", "plain") and self.class_fraction == 1
        check(
            "label_smoothing",
            self.label_smoothing == 0 or is_plain,
            "0: with loss.class_fraction < 1 or loss.implementation = chunked or compiled there is none",
        )
        widths = (0, *self.matryoshka)
        ascends = all(first < second for first, second in pairwise(widths))
        check("matryoshka", ascends, "widths >= 1, ascending, such as (64, 128, 256)")
        check(
            "matryoshka",
            not self.matryoshka or is_plain,
            "(): with loss.class_fraction < 1 or loss.implementation = chunked or compiled there is none",
        )
        check.at_least(1, "hidden_dim", "num_layers")
        check("class_fraction", 0 < self.class_fraction <= 1, "a share in (0, 1]")
        can_sample = self.class_fraction == 1 or self.implementation != "plain"
        check("implementation", can_sample, f"chunked, for loss.class_fraction = {self.class_fraction}")
        for name, paper in HIST_VARIANTS.items():
            hist_only = f"{paper!r}, for loss.name = {self.name}: it is there for hist only"
            check(name, self.name == "hist" or getattr(self, name) == paper, hist_only)
        have = RIVALS.get(self.name, {})
        for name in ("margin", "scale", "positive_scale", "num_centers"):
            value = getattr(self, name)
            none = f"None, for {self.name} has {', '.join(have) or 'none of these settings'}"
            check(name, value is None or name in have, none)
            check(name, value is None or value > 0, "a number > 0")


HIST_VARIANTS: dict[str, object] = {
    "tau_end": None,
    "own_share": 0.0,
    "lambda_s_end": None,
    "label_smoothing": 0.0,
    "hypergraph": HypergraphConfig(),
}
"""Variants of HIST, with the values that are the paper's."""
