"""What Eq. 2 needs of each class distribution alone, and the way back.

With p = 1/sigma2 and mu = m/|m|, the squared Mahalanobis distance of Eq. 2 is
(x x).p - 2/|m| x.(m p) + sum_k mu_k^2 p_k.
Each function comes twice: to be compiled, where torch.compile makes one pass over the classes of it, and in
place, where every line is a pass of its own and none allocates memory.

Sizes: c classes of a chunk, D dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MAX_LOG_VARIANCE = 6.0
SAFE = (1e-15, 1e15)
"""Lengths of rows whose squares keep all digits in float32."""


@functools.cache
def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled for each shape it meets."""
    return torch.compile(function, dynamic=False)


def clipped(log_variances: Float[Tensor, "c D"]) -> Float[Tensor, "c D"]:
    """Log-variances clipped to [0, 6]; on the bounds themselves, as between them, the gradient is 1.

    Args:
        log_variances: any finite values.
    """
    # Of torch.clamp, some versions pass the gradient on the bounds and some do not.
    inside = (log_variances >= 0.0) & (log_variances <= MAX_LOG_VARIANCE)
    return torch.where(inside, log_variances, log_variances.detach().clamp(0.0, MAX_LOG_VARIANCE))


def lengths_of_rows(
    means: Float[Tensor, "c D"],
) -> tuple[Float[Tensor, "c D"], Float[Tensor, "c 1"], Float[Tensor, "c 1"] | None]:
    """The rows, the inverse of their lengths, and what they were divided by to keep squares in range.

    Args:
        means: finite rows of any length; that of a zero row counts as 1/2, as in `unit_rows`.

    Returns: rows and inverse lengths; the third is None where the rows are as given.
    """
    lengths = torch.linalg.vector_norm(means, dim=1, keepdim=True)
    low, high = SAFE
    if bool(((lengths >= low) & (lengths <= high)).all()):
        return means, lengths.reciprocal_(), None
    largest = means.abs().amax(dim=1, keepdim=True)
    divisors = torch.where(largest > 0, largest, 1.0)
    rows = means / divisors
    return rows, torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(0.5).reciprocal_(), divisors


def distributions(
    means: Float[Tensor, "c D"],
    log_variances: Float[Tensor, "c D"],
    precision: Float[Tensor, "c D"],
    scaled: Float[Tensor, "c D"],
) -> Float[Tensor, "c 1"]:
    """sum_k m_k^2 p_k of each class; writes p into `precision` and m p into `scaled`.

    Args:
        means: m, of `lengths_of_rows`.
        log_variances: clipped to [0, 6].
        precision: overwritten.
        scaled: overwritten.
    """
    p = torch.exp(-clipped(log_variances))
    means_p = means * p
    precision.copy_(p)
    scaled.copy_(means_p)
    return (means * means_p).sum(dim=1, keepdim=True)


def distributions_in_place(
    means: Float[Tensor, "c D"],
    log_variances: Float[Tensor, "c D"],
    precision: Float[Tensor, "c D"],
    scaled: Float[Tensor, "c D"],
    scratch: Float[Tensor, "c D"] | None = None,
) -> Float[Tensor, "c 1"] | None:
    """As `distributions`; what is returned takes scratch, and without it is left out."""
    torch.clamp(log_variances, 0.0, MAX_LOG_VARIANCE, out=precision).neg_().exp_()
    torch.mul(means, precision, out=scaled)
    return None if scratch is None else torch.mul(means, scaled, out=scratch).sum(dim=1, keepdim=True)


def distributions_backward(
    by_precision: Float[Tensor, "c D"],
    by_scaled: Float[Tensor, "c D"],
    weights: Float[Tensor, "c 1"],
    means: Float[Tensor, "c D"],
    log_variances: Float[Tensor, "c D"],
    precision: Float[Tensor, "c D"],
    inverse_lengths: Float[Tensor, "c 1"],
    by_means: Float[Tensor, "c D"],
    by_log_variances: Float[Tensor, "c D"],
) -> None:
    """Nothing; writes the gradients by means and log-variances into the last two.

    Args:
        by_precision: gradient by p, the part through (x x).p.
        by_scaled: gradient by m p, the part through x.(mu p).
        weights: gradient by sum_k mu_k^2 p_k, times 1/|m|^2: that by sum_k m_k^2 p_k with |m| held.
        means: m, as given to `distributions`.
        log_variances: as given to `distributions`.
        precision: p.
        inverse_lengths: 1/|m|.
        by_means: overwritten.
        by_log_variances: overwritten.
    """
    half = by_scaled + means * weights
    by_p = by_precision + means * half
    inside = (log_variances >= 0.0) & (log_variances <= MAX_LOG_VARIANCE)
    by_log_variances.copy_(torch.where(inside, -by_p * precision, 0.0))
    held = (half + means * weights) * precision
    # The length of m plays no part: what of the gradient lies along m goes.
    along = (means * held).sum(dim=1, keepdim=True) * inverse_lengths * inverse_lengths
    by_means.copy_(held - means * along)


def distributions_backward_in_place(
    by_precision: Float[Tensor, "c D"],
    by_scaled: Float[Tensor, "c D"],
    weights: Float[Tensor, "c 1"],
    means: Float[Tensor, "c D"],
    log_variances: Float[Tensor, "c D"],
    precision: Float[Tensor, "c D"],
    inverse_lengths: Float[Tensor, "c 1"],
    by_means: Float[Tensor, "c D"],
    by_log_variances: Float[Tensor, "c D"],
) -> None:
    """As `distributions_backward`; overwrites `by_precision` and `by_scaled` too."""
    half = by_scaled.addcmul_(means, weights)
    by_log = by_precision.addcmul_(means, half).mul_(precision).neg_()
    # The one pass that masks: hardtanh's, whose bounds are exclusive where the clip's are not.
    below, above = _around(0.0, MAX_LOG_VARIANCE, by_log.dtype)
    same = by_log_variances.dtype == by_log.dtype
    into = by_log_variances if same else by_log
    torch.ops.aten.hardtanh_backward.grad_input(by_log, log_variances, below, above, grad_input=into)
    if not same:
        by_log_variances.copy_(into)
    held = half.addcmul_(means, weights).mul_(precision)
    along = torch.mul(means, held, out=by_precision).sum(dim=1, keepdim=True)
    along.mul_(inverse_lengths).mul_(inverse_lengths)
    torch.addcmul(held, means, along, value=-1.0, out=by_means)


@functools.cache
def _around(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The numbers next to an interval, outside of it."""
    ends = torch.tensor([low, high], dtype=dtype)
    below, above = torch.nextafter(ends, torch.tensor([-torch.inf, torch.inf], dtype=dtype)).tolist()
    return below, above
