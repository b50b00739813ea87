"""How samples are scored against classes: what the class head asks for, chunk by chunk.

Sizes: N samples, c classes of a chunk, D or h dimensions.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

Tensors = Sequence[Tensor]


class Inputs(NamedTuple):
    """What scores are computed from, or the gradients by it, in the same order."""

    samples: Tensors
    """Each of N rows."""
    rows: Tensors
    """Of the class parameters, each of c rows."""


class ClassScores(ABC):
    """Scores of all samples against some classes, a row a class.

    Classes come first because a chunk of them is then one piece of memory.

    Attributes:
        num_scratch: tensors as wide as the rows that `forward` and `backward` may overwrite.
    """

    num_scratch: ClassVar[int] = 0

    @abstractmethod
    def forward(self, inputs: Inputs, scores: Float[Tensor, "c N"], scratch: Tensors) -> None:
        """Write the scores into `scores`."""

    @abstractmethod
    def backward(
        self, by_scores: Float[Tensor, "c N"], inputs: Inputs, gradients: Inputs, scratch: Tensors
    ) -> None:
        """Add to the gradients by the samples, which sum over chunks; overwrite those by the rows."""


@final
@dataclass(frozen=True)
class PlainScores(ClassScores):
    """Scores by any differentiable function, whose graph spans no more than a chunk.

    Attributes:
        function: of the samples' tensors, then the classes'.
    """

    function: Callable[..., Tensor]

    def forward(self, inputs: Inputs, scores: Tensor, scratch: Tensors) -> None:
        """Write the scores into `scores`."""
        scores.copy_(self.function(*inputs.samples, *inputs.rows).T)

    def backward(self, by_scores: Tensor, inputs: Inputs, gradients: Inputs, scratch: Tensors) -> None:
        """Add to the gradients by the samples; overwrite those by the rows."""
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (*inputs.samples, *inputs.rows)]
            scores = self.function(*leaves)
        found = torch.autograd.grad(scores, leaves, by_scores.T, allow_unused=True, materialize_grads=True)
        for total, gradient in zip(gradients.samples, found[: len(inputs.samples)], strict=True):
            total += gradient
        for rows, gradient in zip(gradients.rows, found[len(inputs.samples) :], strict=True):
            rows.copy_(gradient)


@final
@dataclass(frozen=True)
class MahalanobisScores(ClassScores):
    """-tau d2 of Eq. 2, with d2 = (x x).p - 2 x.(mu p) + sum_k mu_k^2 p_k and p = 1/sigma2.

    The parameters are means m of any length, of which mu = m / |m|. Dividing each m would be one more pass
    over [c, D]; instead the products take m as it is, and their results, a row a class, are divided by |m|
    after.

    Samples: embeddings of length one [N, D]. Rows: means of any length and log-variances, both [c, D].

    Attributes:
        tau: temperature, > 0.
        compiled: what is done to each class alone is fused by torch.compile.
    """

    num_scratch: ClassVar[int] = 4

    tau: float
    compiled: bool = False

    def forward(self, inputs: Inputs, scores: Tensor, scratch: Tensors) -> None:
        """Write the scores into `scores`, as two matrix products."""
        (x,), (precision, scaled, spare, _) = inputs.samples, scratch
        means, log_variances = (row.to(x.dtype) for row in inputs.rows)
        means, inverse_lengths, _ = lengths_of_rows(means)
        if self.compiled:
            squares = fused(distributions)(means, log_variances, precision, scaled)
        else:
            squares = distributions_in_place(means, log_variances, precision, scaled, spare)
        squares = squares * (inverse_lengths * inverse_lengths * self.tau)
        columns = x.T.contiguous()
        torch.mm(scaled, columns, out=scores).mul_(inverse_lengths * (2.0 * self.tau)).sub_(squares)
        scores.addmm_(precision, columns * columns, alpha=-self.tau)

    def backward(self, by_scores: Tensor, inputs: Inputs, gradients: Inputs, scratch: Tensors) -> None:
        """Add to the gradient by the embeddings; overwrite those by the rows, after four matrix products."""
        (x,), (by_x,) = inputs.samples, gradients.samples
        precision, scaled, by_precision, by_scaled = scratch
        means, log_variances = (row.to(x.dtype) for row in inputs.rows)
        means, inverse_lengths, divisors = lengths_of_rows(means)
        # p and m p are computed again: to keep them would take two more tensors of C x D.
        if self.compiled:
            fused(distributions)(means, log_variances, precision, scaled)
        else:
            distributions_in_place(means, log_variances, precision, scaled)

        # -tau d2 = 2 tau x.(m p)/|m| - tau (x x).p - tau sum_k mu_k^2 p_k, term by term:
        crossed = by_scores * (inverse_lengths * (2.0 * self.tau))
        by_x.addcmul_(torch.mm(by_scores.T, precision), x, value=-2.0 * self.tau)
        by_x.addmm_(crossed.T, scaled)
        torch.mm(by_scores, x * x * -self.tau, out=by_precision)
        torch.mm(crossed, x, out=by_scaled)
        by_squares = by_scores.sum(dim=1, keepdim=True).mul_(inverse_lengths * inverse_lengths * -self.tau)
        rows = Distributions(means, log_variances, precision, inverse_lengths)
        by_means, by_log_variances = gradients.rows
        backward = fused(distributions_backward) if self.compiled else distributions_backward_in_place
        backward(by_precision, by_scaled, by_squares, rows, by_means, by_log_variances)
        if divisors is not None:
            by_means.div_(divisors)


@final
@dataclass(frozen=True)
class LinearScores(ClassScores):
    """X W^T + s b^T: the output propagation of the HGNN, (G X) Theta + (G 1) b^T (Eq. 5).

    Samples: features [N, h] and shares s [N]. Rows: weights W [c, h] and biases b [c].

    Attributes:
        dtype: of the matrix products; the scores are of float32 or wider.
    """

    dtype: torch.dtype

    def forward(self, inputs: Inputs, scores: Tensor, scratch: Tensors) -> None:
        """Write the scores into `scores`."""
        (features, shares), (weights, biases) = inputs
        torch.outer(biases.to(scores.dtype), shares.to(scores.dtype), out=scores)
        if self.dtype == scores.dtype == features.dtype:
            scores.addmm_(weights.to(self.dtype), features.T.contiguous())
        else:
            scores += weights.to(self.dtype) @ features.to(self.dtype).T

    def backward(self, by_scores: Tensor, inputs: Inputs, gradients: Inputs, scratch: Tensors) -> None:
        """Add to the gradients by features and shares; overwrite those by the rows."""
        (features, shares), (weights, biases) = inputs
        (by_features, by_shares), (by_weights, by_biases) = gradients
        narrow = by_scores.to(self.dtype)
        # Sums over thousands of chunks are kept wide: in bfloat16 a sum stops growing once the next term is
        # less than 1/256 of it.
        by_features += narrow.T @ weights.to(self.dtype)
        by_shares += biases.to(by_scores.dtype) @ by_scores
        by_biases.copy_(by_scores @ shares.to(by_scores.dtype))
        if by_weights.dtype == self.dtype == features.dtype:
            torch.mm(narrow, features, out=by_weights)
        else:
            by_weights.copy_(narrow @ features.to(self.dtype))


MAX_LOG_VARIANCE = 6.0
SAFE = (1e-15, 1e15)
"""Lengths of rows whose squares keep all digits in float32, whose range is 1e-38 to 3e38."""


@functools.cache
def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, compiled for each shape it meets."""
    return torch.compile(function, dynamic=False)


def clipped(log_variances: Float[Tensor, "c D"]) -> Float[Tensor, "c D"]:
    """Clip log-variances to [0, 6]; on the bounds themselves, as between them, the gradient is 1.

    Args:
        log_variances: any finite values.
    """
    # Of torch.clamp, some versions pass the gradient on the bounds and some do not.
    inside = (log_variances >= 0.0) & (log_variances <= MAX_LOG_VARIANCE)
    return torch.where(inside, log_variances, log_variances.detach().clamp(0.0, MAX_LOG_VARIANCE))


def lengths_of_rows(
    means: Float[Tensor, "c D"],
) -> tuple[Float[Tensor, "c D"], Float[Tensor, "c 1"], Float[Tensor, "c 1"] | None]:
    """Return the rows, the inverse of their lengths, and what they were divided by to keep squares in range.

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


# What follows is done to each class alone, once as torch.compile fuses it, into one pass over memory, and
# once for the interpreter, which runs every operation as a pass of its own and is faster without new memory.


class Distributions(NamedTuple):
    """The classes of a chunk, as their gradients need them."""

    means: Float[Tensor, "c D"]
    """m, of `lengths_of_rows`."""
    log_variances: Float[Tensor, "c D"]
    """As given, not yet clipped."""
    precision: Float[Tensor, "c D"]
    """p."""
    inverse_lengths: Float[Tensor, "c 1"]
    """1/|m|."""


def distributions(means: Tensor, log_variances: Tensor, precision: Tensor, scaled: Tensor) -> Tensor:
    """Write p into `precision` and m p into `scaled`; return sum_k m_k^2 p_k of each class."""
    p = torch.exp(-clipped(log_variances))
    means_p = means * p
    precision.copy_(p)
    scaled.copy_(means_p)
    return (means * means_p).sum(dim=1, keepdim=True)


def distributions_in_place(
    means: Tensor, log_variances: Tensor, precision: Tensor, scaled: Tensor, scratch: Tensor | None = None
) -> Tensor | None:
    """Do what `distributions` does; the sum needs scratch memory, and is left out without it."""
    torch.clamp(log_variances, 0.0, MAX_LOG_VARIANCE, out=precision).neg_().exp_()
    torch.mul(means, precision, out=scaled)
    return None if scratch is None else torch.mul(means, scaled, out=scratch).sum(dim=1, keepdim=True)


def distributions_backward(
    by_precision: Float[Tensor, "c D"],
    by_scaled: Float[Tensor, "c D"],
    by_squares: Float[Tensor, "c 1"],
    rows: Distributions,
    by_means: Float[Tensor, "c D"],
    by_log_variances: Float[Tensor, "c D"],
) -> None:
    """Write the gradients by means and log-variances into the last two.

    Args:
        by_precision: gradient by p, the part through (x x).p.
        by_scaled: gradient by m p, the part through x.(m p)/|m| with |m| held.
        by_squares: gradient by sum_k m_k^2 p_k, likewise.
        rows: the classes.
        by_means: overwritten.
        by_log_variances: overwritten.
    """
    means, log_variances, precision, inverse_lengths = rows
    # m p reaches the score as itself and through m^2 p = m (m p), whose derivative by m is twice that by m p.
    half = by_scaled + means * by_squares
    by_p = by_precision + means * half
    # d p / d log sigma2 = -p, and outside of the clip 0.
    inside = (log_variances >= 0.0) & (log_variances <= MAX_LOG_VARIANCE)
    by_log_variances.copy_(torch.where(inside, -by_p * precision, 0.0))
    held = (half + means * by_squares) * precision
    # Only the direction of m counts, so the gradient is at right angles to m: what lies along m is taken off.
    along = (means * held).sum(dim=1, keepdim=True) * inverse_lengths * inverse_lengths
    by_means.copy_(held - means * along)


def distributions_backward_in_place(
    by_precision: Tensor,
    by_scaled: Tensor,
    by_squares: Tensor,
    rows: Distributions,
    by_means: Tensor,
    by_log_variances: Tensor,
) -> None:
    """Do what `distributions_backward` does; overwrites `by_precision` and `by_scaled` too."""
    means, log_variances, precision, inverse_lengths = rows
    half = by_scaled.addcmul_(means, by_squares)
    by_log = by_precision.addcmul_(means, half).mul_(precision).neg_()
    # The only operation that masks in one pass is hardtanh's, whose bounds are exclusive where the clip's are
    # not.
    below, above = _around(0.0, MAX_LOG_VARIANCE, by_log.dtype)
    same = by_log_variances.dtype == by_log.dtype
    into = by_log_variances if same else by_log
    torch.ops.aten.hardtanh_backward.grad_input(by_log, log_variances, below, above, grad_input=into)
    if not same:
        by_log_variances.copy_(into)
    held = half.addcmul_(means, by_squares).mul_(precision)
    along = torch.mul(means, held, out=by_precision).sum(dim=1, keepdim=True)
    along.mul_(inverse_lengths).mul_(inverse_lengths)
    torch.addcmul(held, means, along, value=-1.0, out=by_means)


@functools.cache
def _around(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the numbers next to an interval, outside of it."""
    ends = torch.tensor([low, high], dtype=dtype)
    below, above = torch.nextafter(ends, torch.tensor([-torch.inf, torch.inf], dtype=dtype)).tolist()
    return below, above
