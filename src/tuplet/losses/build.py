"""From a config to the loss it names."""

from __future__ import annotations

from tuplet.config import RunConfig
from tuplet.losses.base import MetricLoss
from tuplet.losses.hist import HISTLoss
from tuplet.losses.many_classes.shards import ClassShard
from tuplet.losses.rivals import RivalLoss


def build_loss(config: RunConfig, num_classes: int) -> MetricLoss:
    """The loss of a run, its parameters freshly drawn.

    Args:
        config: `loss`, `model.embedding_dim`, `optimizer.class_update` and `compute.shard_classes` are read.
        num_classes: training classes, C >= 1.

    Raises:
        InputError: (a ValueError) a rival where pytorch-metric-learning is not installed.
    """
    loss, dim = config.loss, config.model.embedding_dim
    if loss.name != "hist":
        return RivalLoss(
            loss.name,
            num_classes,
            dim,
            margin=loss.margin,
            scale=loss.scale,
            positive_scale=loss.positive_scale,
            num_centers=loss.num_centers,
        )
    return HISTLoss(
        num_classes,
        dim,
        tau=loss.tau,
        alpha=loss.alpha,
        alpha_control=loss.alpha_control,
        lambda_s=loss.lambda_s,
        hidden_dim=loss.hidden_dim,
        num_layers=loss.num_layers,
        distance=loss.distance,
        variance=loss.variance,
        implementation=loss.implementation,
        class_fraction=loss.class_fraction,
        sparse_gradients=loss.class_fraction < 1 and config.optimizer.class_update == "rowwise",
        shard=ClassShard.of_group(num_classes) if config.compute.shard_classes else None,
    )
