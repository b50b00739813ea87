"""Build the loss that a config names."""

from __future__ import annotations

from tuplet.config import RunConfig
from tuplet.config.loss import RIVALS
from tuplet.losses.base import MetricLoss
from tuplet.losses.hist import HISTLoss
from tuplet.losses.many_classes.shards import ClassShard
from tuplet.losses.rivals import RivalLoss

HIST_SETTINGS = (
    *("tau", "alpha", "alpha_control", "own_share", "lambda_s", "label_smoothing", "matryoshka"),
    *("hidden_dim", "num_layers", "hypergraph"),
    *("distance", "variance", "implementation", "class_fraction"),
)
"""Fields of `LossConfig` that `HISTLoss` takes under the same name."""


def build_loss(config: RunConfig, num_classes: int) -> MetricLoss:
    """Build the loss of a run, with newly initialised parameters.

    Args:
        config: `loss`, `model.embedding_dim`, `optimizer.class_update` and `compute.shard_classes` are read.
        num_classes: training classes, C >= 1.
    Raises: MissingExtraError: a rival loss, but pytorch-metric-learning is not installed.
    """
    loss, dim = config.loss, config.model.embedding_dim
    if loss.name != "hist":
        rival = {name: getattr(loss, name) for name in RIVALS[loss.name]}
        return RivalLoss(loss.name, num_classes, dim, matryoshka=loss.matryoshka, **rival)
    return HISTLoss(
        num_classes,
        dim,
        **{name: getattr(loss, name) for name in HIST_SETTINGS},
        sparse_gradients=loss.class_fraction < 1 and config.optimizer.class_update == "rowwise",
        shard=ClassShard.of_group(num_classes) if config.compute.shard_classes else None,
    )
