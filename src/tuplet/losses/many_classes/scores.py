"""Scores of samples against classes, forward and backward, for one chunk of classes at a time.

The class head (head.py) calls these; it knows nothing else of how a score is computed.

Sizes: N samples, c classes of a chunk, D or h dimensions.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Tensors = Sequence[Tensor]


class Inputs(NamedTuple):
    """The tensors that scores are computed from, or the gradients with respect to them in the same order."""

    samples: Tensors
    """Each of N rows."""
    rows: Tensors
    """Of the class parameters, each of c rows."""


class ClassScores(ABC):
    """Scores of all samples against some classes, a row per class.

    Classes come first because a chunk of them is then one piece of memory. What depends on the samples alone
    is prepared once a pass over the classes, not once a chunk.

    Attributes:
        num_scratch: tensors as wide as the rows that `forward` and `backward` may overwrite.
    """

    num_scratch: ClassVar[int] = 0

    def prepare(self, samples: Tensors) -> Tensors:
        """Return what `forward` takes of the samples."""
        return samples

    def prepare_backward(self, samples: Tensors) -> Tensors:
        """Return what `backward` takes of the samples."""
        return samples

    def notes(self, rows: Tensors, dtype: torch.dtype) -> Tensors:
        """Return a few numbers a class of a chunk, of this type, that `forward` and `backward` both take."""
        return ()

    @abstractmethod
    def forward(
        self, prepared: Tensors, rows: Tensors, notes: Tensors, scores: Float[Tensor, "c N"], scratch: Tensors
    ) -> None:
        """Write the scores of a chunk into `scores`."""

    @abstractmethod
    def backward(
        self,
        by_scores: Float[Tensor, "c N"],
        inputs: Inputs,
        notes: Tensors,
        gradients: Inputs,
        scratch: Tensors,
    ) -> None:
        """Add to the gradients by the samples, which sum over chunks; overwrite those by the rows.

        The samples of `inputs` are prepared.
        """


@final
@dataclass(frozen=True)
class PlainScores(ClassScores):
    """Scores by any differentiable function, whose graph spans no more than a chunk.

    Attributes:
        function: of the samples' tensors, then the classes'.
    """

    function: Callable[..., Tensor]

    def forward(
        self, prepared: Tensors, rows: Tensors, notes: Tensors, scores: Tensor, scratch: Tensors
    ) -> None:
        """Write the scores of a chunk into `scores`."""
        scores.copy_(self.function(*prepared, *rows).T)

    def backward(
        self, by_scores: Tensor, inputs: Inputs, notes: Tensors, gradients: Inputs, scratch: Tensors
    ) -> None:
        """Add to the gradients by the samples; overwrite those by the rows."""
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (*inputs.samples, *inputs.rows)]
            scores = self.function(*leaves)
        by_leaves = torch.autograd.grad(
            scores, leaves, by_scores.T, allow_unused=True, materialize_grads=True
        )
        for total, gradient in zip(gradients.samples, by_leaves[: len(inputs.samples)], strict=True):
            total += gradient
        for rows, gradient in zip(gradients.rows, by_leaves[len(inputs.samples) :], strict=True):
            rows.copy_(gradient)


@final
@dataclass(frozen=True)
class MahalanobisScores(ClassScores):
    """-tau d2 of Eq. 2, with d2 = (x x).p - 2 x.(mu p) + sum_k mu_k^2 p_k and p = 1/sigma2.

    The parameters are means m of any length, of which mu = m / |m|. Dividing each m would be one more pass
    over [c, D]; instead the products take m as it is, and their results, a row per class, are divided by |m|
    after.

    Samples: embeddings x of length one and their squares x x, both [N, D]; the scores are linear in the two,
    so that autograd adds their gradients up. Rows: means of any length and log-variances, both [c, D].

    Attributes:
        tau: temperature, > 0.
        compiled: fuse the operations on each class alone with torch.compile.
    """

    num_scratch: ClassVar[int] = 4

    tau: float
    compiled: bool = False

    def prepare(self, samples: Tensors) -> Tensors:
        """Return x and x x, a column per sample."""
        return [sample.T.contiguous() for sample in samples]

    def prepare_backward(self, samples: Tensors) -> Tensors:
        """Return 2 tau x, tau x x, and a column [N, 1] of -tau."""
        x, squares = samples
        return x * (2.0 * self.tau), squares * self.tau, x.new_full((len(x), 1), -self.tau)

    def notes(self, rows: Tensors, dtype: torch.dtype) -> Tensors:
        """Return 1/|m|, and the divisors of m where its squares would leave the range of float32."""
        return inverse_lengths_of_rows(rows[0].to(dtype))

    def forward(
        self, prepared: Tensors, rows: Tensors, notes: Tensors, scores: Tensor, scratch: Tensors
    ) -> None:
        """Write the scores of a chunk into `scores`, as two matrix products."""
        (x, x_squares), (precision, scaled, spare, _) = prepared, scratch
        means, log_variances = (row.to(x.dtype) for row in rows)
        inverse_lengths, means = _divided(means, notes)
        if self.compiled:
            squares = fused(distributions)(means, log_variances, precision, scaled)
        else:
            squares = distributions_in_place(means, log_variances, precision, scaled, spare)
        # 2 tau (x.(m p) - sum_k m_k^2 p_k / (2 |m|)) / |m| - tau (x x).p; the last line brings the factors.
        torch.mm(scaled, x, out=scores).addcmul_(squares, inverse_lengths, value=-0.5).mul_(inverse_lengths)
        scores.addmm_(precision, x_squares, beta=2.0 * self.tau, alpha=-self.tau)

    def backward(
        self, by_scores: Tensor, inputs: Inputs, notes: Tensors, gradients: Inputs, scratch: Tensors
    ) -> None:
        """Add to the gradients by the samples; overwrite those by the rows, after four matrix products."""
        (x, x_squares, minus_tau), (by_x, by_x_squares) = inputs.samples, gradients.samples
        precision, scaled, against_precision, by_scaled = scratch
        means, log_variances = (row.to(x.dtype) for row in inputs.rows)
        inverse_lengths, means = _divided(means, notes)
        # p and m p are computed again: to keep them would take two more tensors of C x D.
        if self.compiled:
            fused(distributions)(means, log_variances, precision, scaled)
        else:
            distributions_in_place(means, log_variances, precision, scaled)

        # -tau d2 = 2 tau x.(m p)/|m| - tau (x x).p - tau sum_k mu_k^2 p_k, term by term:
        crossed = by_scores * inverse_lengths
        by_x.addmm_(crossed.T, scaled, alpha=2.0 * self.tau)
        by_x_squares.addmm_(by_scores.T, precision, alpha=-self.tau)
        torch.mm(crossed, x, out=by_scaled)
        torch.mm(by_scores, x_squares, out=against_precision)
        inverse_squares = inverse_lengths * inverse_lengths
        by_squares = torch.mm(by_scores, minus_tau).mul_(inverse_squares)
        classes = Distributions(means, log_variances, precision, inverse_squares)
        by_means, by_log_variances = gradients.rows
        backward = fused(distributions_backward) if self.compiled else distributions_backward_in_place
        backward(against_precision, by_scaled, by_squares, classes, by_means, by_log_variances)
        if len(notes) > 1:
            by_means.div_(notes[1])


@final
@dataclass(frozen=True)
class LinearScores(ClassScores):
    """X W^T + s b^T: the output propagation of the HGNN, (G X) Theta + (G 1) b^T (Eq. 5).

    Samples: features [N, h] and shares s [N]. Rows: weights W [c, h] and biases b [c].

    Attributes:
        dtype: of the matrix products; the scores are of float32 or wider.
    """

    dtype: torch.dtype

    def prepare(self, samples: Tensors) -> Tensors:
        """Return the features, a column per sample, and the shares."""
        features, shares = samples
        return features.to(self.dtype).T.contiguous(), shares.to(_at_least_float32(features))

    def prepare_backward(self, samples: Tensors) -> Tensors:
        """Return features and shares in the types that the products take."""
        features, shares = samples
        return features.to(self.dtype), shares.to(_at_least_float32(features))

    def forward(
        self, prepared: Tensors, rows: Tensors, notes: Tensors, scores: Tensor, scratch: Tensors
    ) -> None:
        """Write the scores of a chunk into `scores`."""
        (features, shares), (weights, biases) = prepared, rows
        _write_product(torch.mm, weights.to(self.dtype), features, scores)
        scores.addr_(biases.to(scores.dtype), shares)

    def backward(
        self, by_scores: Tensor, inputs: Inputs, notes: Tensors, gradients: Inputs, scratch: Tensors
    ) -> None:
        """Add to the gradients by features and shares; overwrite those by the rows."""
        (features, shares), (weights, biases) = inputs
        (by_features, by_shares), (by_weights, by_biases) = gradients
        narrow, by_samples = by_scores.to(self.dtype), by_scores.T
        # Sums over thousands of chunks are kept wide: in bfloat16 a sum stops growing once the next term is
        # less than 1/256 of it.
        by_shares.addmv_(by_samples, biases.to(by_scores.dtype))
        if by_features.dtype == self.dtype:
            by_features.addmm_(by_samples, weights.to(self.dtype))
        else:
            by_features += narrow.T @ weights.to(self.dtype)
        _write_product(torch.mv, by_scores, shares, by_biases)
        _write_product(torch.mm, narrow, features, by_weights)


def _write_product(product: Callable[..., Tensor], left: Tensor, right: Tensor, out: Tensor) -> None:
    if out.dtype == left.dtype:
        product(left, right, out=out)
    else:
        out.copy_(product(left, right))


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _divided(means: Tensor, notes: Tensors) -> tuple[Tensor, Tensor]:
    """Return 1/|m| and m, both of means in the range of `SAFE`."""
    return notes[0], means if len(notes) == 1 else means / notes[1]


MAX_LOG_VARIANCE = 6.0
OUTSIDE_CLIP = {
    dtype: (
        float(np.nextafter(kind(0.0), kind(-1.0))),
        float(np.nextafter(kind(MAX_LOG_VARIANCE), kind(7.0))),
    )
    for dtype, kind in ((torch.float32, np.float32), (torch.float64, np.float64))
}
"""The numbers next to the clip, outside of it."""
SAFE = (1e-15, 1e15)
"""Lengths of rows whose squares keep all digits in float32, whose range is 1e-38 to 3e38."""


@functools.cache
def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, compiled for each shape it meets."""
    return torch.compile(function, dynamic=False)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which operations on a device compute in the types that they are given."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def clipped(log_variances: Float[Tensor, "c D"]) -> Float[Tensor, "c D"]:
    """Clip log-variances to [0, 6]; on the bounds themselves, as between them, the gradient is 1.

    Args:
        log_variances: any finite values.
    """
    # At its bounds, torch.clamp passes the gradient in some versions of torch and not in others. hardtanh
    # never passes it at its bounds, so those are the next floats outside [0, 6]; that changes a variance by
    # its last digit at most.
    below, above = OUTSIDE_CLIP[log_variances.dtype]
    return F.hardtanh(log_variances, below, above)


def inverse_lengths_of_rows(means: Float[Tensor, "c D"]) -> tuple[Float[Tensor, "c 1"], ...]:
    """Return the inverse lengths of rows, and divisors that keep the squares of any row in range.

    Args:
        means: finite rows of any length; that of a zero row counts as 1/2, as in `unit_rows`.
    Returns: inverse lengths, of the rows divided by the divisors; on a CPU no divisors where none is needed.
    """
    if means.device.type == "cpu":
        lengths = torch.linalg.vector_norm(means, dim=1, keepdim=True)
        # Reading values is free on a CPU, and can save a pass over the rows. On other devices it would make
        # the host wait, so they always divide.
        numbers = lengths.numpy()
        if SAFE[0] <= numbers.min(initial=1.0) and numbers.max(initial=1.0) <= SAFE[1]:
            return (lengths.reciprocal_(),)
    largest = torch.linalg.vector_norm(means, torch.inf, dim=1, keepdim=True)
    divisors = torch.where(largest > 0, largest, 1.0)
    lengths = torch.linalg.vector_norm(means / divisors, dim=1, keepdim=True)
    return lengths.clamp_min_(0.5).reciprocal_(), divisors


# The functions below work on each class alone. Each exists twice: for torch.compile, which fuses it into one
# pass over memory, and in place for eager mode, where each operation is a pass and new memory costs time.


class Distributions(NamedTuple):
    """The classes of a chunk, as their gradients need them."""

    means: Float[Tensor, "c D"]
    """m, in the range of `SAFE`."""
    log_variances: Float[Tensor, "c D"]
    """As given, not yet clipped."""
    precision: Float[Tensor, "c D"]
    """p."""
    inverse_squares: Float[Tensor, "c 1"]
    """1/|m|^2."""


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
    against_precision: Float[Tensor, "c D"],
    by_scaled: Float[Tensor, "c D"],
    by_squares: Float[Tensor, "c 1"],
    rows: Distributions,
    by_means: Float[Tensor, "c D"],
    by_log_variances: Float[Tensor, "c D"],
) -> None:
    """Write the gradients by means and log-variances into the last two.

    Args:
        against_precision: minus the gradient by p, the part through (x x).p.
        by_scaled: gradient by m p, the part through x.(m p)/|m| with |m| held.
        by_squares: gradient by sum_k m_k^2 p_k, likewise.
        rows: the classes.
        by_means: overwritten.
        by_log_variances: overwritten.
    """
    means, log_variances, precision, inverse_squares = rows
    # m p reaches the score as itself and through m^2 p = m (m p), whose derivative by m is twice that by m p.
    half = by_scaled + means * by_squares
    # d p / d log sigma2 = -p, and outside of the clip 0.
    by_log = (against_precision - means * half) * precision
    inside = (log_variances >= 0.0) & (log_variances <= MAX_LOG_VARIANCE)
    by_log_variances.copy_(torch.where(inside, by_log, 0.0))
    held = (half + means * by_squares) * precision
    # Only the direction of m counts, so the gradient is at right angles to m: what lies along m is taken off.
    along = (means * held).sum(dim=1, keepdim=True) * inverse_squares
    by_means.copy_(held - means * along)


def distributions_backward_in_place(
    against_precision: Tensor,
    by_scaled: Tensor,
    by_squares: Tensor,
    rows: Distributions,
    by_means: Tensor,
    by_log_variances: Tensor,
) -> None:
    """Do what `distributions_backward` does; overwrites `against_precision` and `by_scaled` too."""
    means, log_variances, precision, inverse_squares = rows
    half = by_scaled.addcmul_(means, by_squares)
    by_log = against_precision.addcmul_(means, half, value=-1.0).mul_(precision)
    # The only operation that masks in one pass is hardtanh's.
    below, above = OUTSIDE_CLIP[by_log.dtype]
    same = by_log_variances.dtype == by_log.dtype
    into = by_log_variances if same else by_log
    torch.ops.aten.hardtanh_backward.grad_input(by_log, log_variances, below, above, grad_input=into)
    if not same:
        by_log_variances.copy_(into)
    held = half.addcmul_(means, by_squares).mul_(precision)
    along = torch.mul(means, held, out=against_precision).sum(dim=1, keepdim=True).mul_(inverse_squares)
    torch.addcmul(held, means, along, value=-1.0, out=by_means)
