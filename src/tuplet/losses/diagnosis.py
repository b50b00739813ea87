"""Measurements of the two halves of HIST on a training batch, without any effect on the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tuplet.losses.hgnn import HGNN
from tuplet.losses.hist import HISTLoss, class_distances, distribution_loss, hypergraph_loss
from tuplet.losses.many_classes.scores import clipped
from tuplet.losses.own_share import own_share


def diagnose(
    loss: HISTLoss, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"]
) -> dict[str, Float[Tensor, ""]]:
    """Measure the hypergraph of a batch, and the gradient of each half of the loss by its embeddings.

    The loss, its gradients, its running statistics and torch's random numbers do not change. The sums are
    over all classes, in tensors of N x C, whatever the loss's implementation and class_fraction.

    Args:
        loss: with all of its classes, and no shard.
        embeddings: of a training batch.
        labels: class of each sample, in 0..C-1.
    Returns: scalars on the device:
        own_share: share of a tuplet's weight on its own class, mean over the classes of the batch, in (0, 1].
        differences_left: spread of the embeddings after one propagation with G, divided by that before; 0
            where all become the same.
        hgnn_accuracy: share of samples whose largest logit of the HGNN is their class's.
        distribution_gradient: norm of the gradient of L_D by the embeddings.
        hypergraph_gradient: the same of lambda_s L_CE.
        gradient_cosine: of the angle between the two; 0 where one is zero.
        log_variance: mean of the clipped log-variances over all classes; 0 where every sigma2 is one.
    """
    given = embeddings.detach().to(loss.means.dtype).requires_grad_()
    with torch.enable_grad(), _without_running_statistics(loss.hgnn):
        distances = class_distances(
            given, loss.means.detach(), loss.log_variances.detach(), distance=loss.distance
        )
        smoothing = loss.label_smoothing
        distribution = distribution_loss(distances, labels, tau=loss.tau, label_smoothing=smoothing)
        incidence = loss.incidence(distances.index_select(1, labels), labels)
        mixing = loss.mixing(incidence, labels)
        logits = loss.hgnn_logits(given, mixing)
        weighted = loss.lambda_s * hypergraph_loss(logits, labels)
        of_distribution = _gradient(distribution, given)
        of_hypergraph = _gradient(weighted, given)
    with torch.no_grad():
        return {
            "own_share": own_share(incidence, labels),
            "differences_left": spread(mixing @ given) / spread(given),
            "hgnn_accuracy": (logits.argmax(dim=1) == labels).float().mean(),
            "distribution_gradient": of_distribution.norm(),
            "hypergraph_gradient": of_hypergraph.norm(),
            "gradient_cosine": F.cosine_similarity(of_distribution, of_hypergraph, dim=0),
            "log_variance": clipped(loss.log_variances.to(distances.dtype)).mean(),
        }


def spread(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Compute the root of the mean squared distance of rows to their mean."""
    return (vectors - vectors.mean(dim=0)).square().sum(dim=1).mean().sqrt()


def _gradient(value: Tensor, given: Tensor) -> Float[Tensor, " ND"]:
    # A half that is detached from the embeddings has no path to them.
    if not value.requires_grad:
        return torch.zeros_like(given).flatten()
    (gradient,) = torch.autograd.grad(value, given, retain_graph=True, allow_unused=True)
    return (torch.zeros_like(given) if gradient is None else gradient).flatten()


@contextmanager
def _without_running_statistics(hgnn: HGNN) -> Iterator[None]:
    """Keep the HGNN's BatchNorms from counting the block's batch, which is not one of the training's."""
    # Restoring the statistics afterwards does not work: the graph of the training step, whose backward is
    # still to come, holds these tensors, and writing to them in place makes that backward fail.
    norms = [norm for norm in hgnn.norms if isinstance(norm, nn.BatchNorm1d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
