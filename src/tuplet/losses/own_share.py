"""The share of a semantic tuplet's weight on its own class, and the alpha for which it has a given value.

A tuplet contains the whole batch. In a random batch of 32 images nearly every image is alone in its class:
its own weight is 1, the other 31 images weigh exp(-alpha d2) each, and at alpha = 1 its share is a fifth.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

NUM_HALVINGS = 28
"""Bisection steps: each halves the interval of alpha, until float32 cannot resolve it."""

MOST = 1024.0
"""Upper end of the search, as alpha times the mean distance; foreign samples near a mean need a large one."""


def hyperedge_weights(
    labels: Int[Tensor, " N"], *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, " N"]:
    """Compute the weight w of each sample's hyperedge: one over the number of samples of its class.

    The paper has one hyperedge per class. Here every sample contributes that of its class, so that no shape
    depends on the number of classes; with these weights the equal hyperedges of a class count as one.

    Args:
        labels: class of each sample.
        dtype: of the weights.
    """
    return (labels[:, None] == labels[None, :]).sum(dim=0, dtype=dtype).reciprocal()


def own_share(incidence: Float[Tensor, "N N"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Compute the share of a tuplet's weight on samples of its own class, the mean over the batch's classes.

    Args:
        incidence: column j is the tuplet of the class of sample j (Eq. 3-4).
        labels: class of each sample.
    Returns: a scalar in (0, 1].
    """
    weights = hyperedge_weights(labels, dtype=incidence.dtype)
    own = labels[:, None] == labels[None, :]
    shares = (incidence * own).sum(dim=0) / incidence.sum(dim=0)
    # Samples of one class bring the same column; their weights add up to one.
    return (shares * weights).sum() / weights.sum()


@torch.no_grad()
def alpha_of_share(
    distances: Float[Tensor, "N N"], labels: Int[Tensor, " N"], share: float
) -> Float[Tensor, ""]:
    """Compute the alpha of Eq. 3 for which `own_share` has a given value in this batch, by bisection.

    It has no gradient: alpha is a constant for this batch, and no weight is trained to change it.

    Args:
        distances: of each sample to the class of each sample, >= 0.
        labels: class of each sample.
        share: wanted, in (0, 1).
    Returns: a scalar >= 0, on the device; about 0 where the share is already larger at alpha = 0; the upper
        end of the search where no alpha reaches it, because foreign samples lie on the mean of a class.
    """
    own = labels[:, None] == labels[None, :]
    # Weights depend on the product alpha d2 only, so the upper end is divided by the mean distance to foreign
    # classes: about 1 with variances of one, and about 0.01 with learnt ones.
    foreign = distances.masked_fill(own, 0.0).sum() / (~own).sum().clamp_min(1)
    high = MOST / foreign.clamp_min(torch.finfo(distances.dtype).tiny * MOST)
    low = torch.zeros_like(high)
    # The number of halvings is fixed: to stop early, the host would have to wait for the device.
    for _ in range(NUM_HALVINGS):
        middle = 0.5 * (low + high)
        too_small = own_share(torch.exp(-middle * distances).masked_fill(own, 1.0), labels) < share
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    return 0.5 * (low + high)
