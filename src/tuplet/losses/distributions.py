"""What Eq. 2 needs of each class distribution alone, and the way back.

With p = 1/sigma2 and mu = m/|m|, the squared Mahalanobis distance is (x x).p - 2 x.(mu p) + sum_k mu_k^2 p_k.
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


def distributions(
    means: Float[Tensor, "c D"],
    log_variances: Float[Tensor, "c D"],
    precision: Float[Tensor, "c D"],
    scaled: Float[Tensor, "c D"],
) -> tuple[Float[Tensor, " c"], Float[Tensor, "c 1"]]:
    """sum_k mu_k^2 p_k and 1/|m| of each class; writes p into `precision` and mu p into `scaled`.

    Args:
        means: m, of any length; a mean of zero has mu = 0 and, as in `unit_rows`, 1/|m| = 2.
        log_variances: clipped to [0, 6].
        precision: overwritten.
        scaled: overwritten.
    """
    p = torch.exp(-clipped(log_variances))
    largest = means.abs().amax(dim=1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    mu = means / largest
    norms = torch.linalg.vector_norm(mu, dim=1, keepdim=True).clamp_min(0.5)
    mu = mu / norms
    mu_p = mu * p
    precision.copy_(p)
    scaled.copy_(mu_p)
    return (mu * mu_p).sum(dim=1), (largest * norms).reciprocal()


def distributions_in_place(
    means: Float[Tensor, "c D"],
    log_variances: Float[Tensor, "c D"],
    precision: Float[Tensor, "c D"],
    scaled: Float[Tensor, "c D"],
) -> tuple[Float[Tensor, " c"], Float[Tensor, "c 1"]]:
    """As `distributions`."""
    torch.clamp(log_variances, 0.0, MAX_LOG_VARIANCE, out=precision).neg_().exp_()
    largest = torch.maximum(means.amax(dim=1, keepdim=True), -means.amin(dim=1, keepdim=True))
    largest = torch.where(largest > 0, largest, 1.0)
    mu = torch.div(means, largest, out=scaled)
    norms = torch.linalg.vector_norm(mu, dim=1, keepdim=True).clamp_min_(0.5)
    mu.div_(norms)
    inverse_norms = largest.mul_(norms).reciprocal_()
    mu.mul_(precision)
    return torch.linalg.vecdot(means, mu).mul_(inverse_norms[:, 0]), inverse_norms


def distributions_backward(
    by_precision: Float[Tensor, "c D"],
    by_scaled: Float[Tensor, "c D"],
    by_lengths: Float[Tensor, "c 1"],
    means: Float[Tensor, "c D"],
    log_variances: Float[Tensor, "c D"],
    precision: Float[Tensor, "c D"],
    inverse_norms: Float[Tensor, "c 1"],
    by_means: Float[Tensor, "c D"],
    by_log_variances: Float[Tensor, "c D"],
) -> None:
    """Nothing; writes the gradients by means and log-variances into the last two.

    Args:
        by_precision: gradient by p, the part through (x x).p.
        by_scaled: gradient by mu p.
        by_lengths: gradient by sum_k mu_k^2 p_k.
        means: as given to `distributions`.
        log_variances: as given to `distributions`.
        precision: p.
        inverse_norms: 1/|m|.
        by_means: overwritten.
        by_log_variances: overwritten.
    """
    mu = means * inverse_norms
    half = by_scaled + mu * by_lengths
    by_p = by_precision + mu * half
    inside = (log_variances >= 0.0) & (log_variances <= MAX_LOG_VARIANCE)
    by_log_variances.copy_(torch.where(inside, -by_p * precision, 0.0))
    by_mu = (half + mu * by_lengths) * precision
    by_means.copy_((by_mu - mu * (mu * by_mu).sum(dim=1, keepdim=True)) * inverse_norms)


def distributions_backward_in_place(
    by_precision: Float[Tensor, "c D"],
    by_scaled: Float[Tensor, "c D"],
    by_lengths: Float[Tensor, "c 1"],
    means: Float[Tensor, "c D"],
    log_variances: Float[Tensor, "c D"],
    precision: Float[Tensor, "c D"],
    inverse_norms: Float[Tensor, "c 1"],
    by_means: Float[Tensor, "c D"],
    by_log_variances: Float[Tensor, "c D"],
    scratch: Float[Tensor, "c D"],
) -> None:
    """As `distributions_backward`; overwrites `by_precision` and `by_scaled` too."""
    mu = torch.mul(means, inverse_norms, out=scratch)
    half = by_scaled.addcmul_(mu, by_lengths)
    by_p = by_precision.addcmul_(mu, half).mul_(precision).neg_()
    # The one pass that masks: hardtanh's, whose bounds are exclusive where the clip's are not.
    below, above = _around(0.0, MAX_LOG_VARIANCE, by_p.dtype)
    torch.ops.aten.hardtanh_backward.grad_input(by_p, log_variances, below, above, grad_input=by_p)
    by_log_variances.copy_(by_p)
    by_mu = half.addcmul_(mu, by_lengths).mul_(precision)
    by_mu.addcmul_(mu, torch.linalg.vecdot(mu, by_mu)[:, None], value=-1.0)
    torch.mul(by_mu, inverse_norms, out=by_means)


@functools.cache
def _around(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The numbers next to an interval, outside of it."""
    ends = torch.tensor([low, high], dtype=dtype)
    below, above = torch.nextafter(ends, torch.tensor([-torch.inf, torch.inf], dtype=dtype)).tolist()
    return below, above
