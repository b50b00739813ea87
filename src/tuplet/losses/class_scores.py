"""How samples are scored against classes: what the class head asks for, chunk by chunk.

Sizes: N samples, c classes of a chunk, D or h dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from tuplet.losses.distributions import (
    distributions,
    distributions_backward,
    distributions_backward_in_place,
    distributions_in_place,
    fused,
    lengths_of_rows,
)

Tensors = Sequence[Tensor]


class ClassScores(ABC):
    """Scores of all samples against some classes, given as rows of the class parameters.

    Attributes:
        num_scratch: tensors as wide as the rows that `forward` and `backward` may overwrite.
    """

    num_scratch: ClassVar[int] = 0

    @abstractmethod
    def forward(
        self, samples: Tensors, rows: Tensors, scores: Float[Tensor, "c N"], scratch: Tensors
    ) -> None:
        """Write the scores into `scores`, a row a class."""

    @abstractmethod
    def backward(
        self,
        by_scores: Float[Tensor, "c N"],
        samples: Tensors,
        rows: Tensors,
        by_samples: Tensors,
        by_rows: Tensors,
        scratch: Tensors,
    ) -> None:
        """Add to the gradients by the samples; overwrite those by the rows."""


@final
@dataclass(frozen=True)
class PlainScores(ClassScores):
    """Scores by any differentiable function, whose graph spans no more than a chunk.

    Attributes:
        function: of the samples' tensors, then the classes'.
    """

    function: Callable[..., Tensor]

    def forward(
        self, samples: Tensors, rows: Tensors, scores: Float[Tensor, "c N"], scratch: Tensors
    ) -> None:
        """Write the scores into `scores`, a row a class."""
        scores.copy_(self.function(*samples, *rows).T)

    def backward(
        self,
        by_scores: Float[Tensor, "c N"],
        samples: Tensors,
        rows: Tensors,
        by_samples: Tensors,
        by_rows: Tensors,
        scratch: Tensors,
    ) -> None:
        """Add to the gradients by the samples; overwrite those by the rows."""
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in (*samples, *rows)]
            scores = self.function(*inputs)
        gradients = torch.autograd.grad(
            scores, inputs, by_scores.T, allow_unused=True, materialize_grads=True
        )
        for into, gradient in zip(by_samples, gradients[: len(samples)], strict=True):
            into += gradient
        for into, gradient in zip(by_rows, gradients[len(samples) :], strict=True):
            into.copy_(gradient)


@final
@dataclass(frozen=True)
class MahalanobisScores(ClassScores):
    """-tau d2 of Eq. 2, with d2 = (x x).(1/sigma2) - 2 x.(mu/sigma2) + sum_k mu_k^2/sigma2_k.

    Samples: embeddings of length one [N, D]. Rows: means of any length and log-variances, both [c, D].

    Attributes:
        tau: temperature, > 0.
        compiled: what is done to each class alone is fused by torch.compile.
    """

    num_scratch: ClassVar[int] = 4

    tau: float
    compiled: bool = False

    def forward(
        self, samples: Tensors, rows: Tensors, scores: Float[Tensor, "c N"], scratch: Tensors
    ) -> None:
        """Write the scores into `scores`, a row a class, as two matrix products."""
        (x,), (precision, scaled, spare, _) = samples, scratch
        means, log_variances = (row.to(x.dtype) for row in rows)
        means, inverse_lengths, _ = lengths_of_rows(means)
        if self.compiled:
            squares = fused(distributions)(means, log_variances, precision, scaled)
        else:
            squares = distributions_in_place(means, log_variances, precision, scaled, spare)
        squares = squares * (inverse_lengths * inverse_lengths * self.tau)
        columns = x.T.contiguous()
        torch.mm(scaled, columns, out=scores).mul_(inverse_lengths * (2.0 * self.tau)).sub_(squares)
        scores.addmm_(precision, columns * columns, alpha=-self.tau)

    def backward(
        self,
        by_scores: Float[Tensor, "c N"],
        samples: Tensors,
        rows: Tensors,
        by_samples: Tensors,
        by_rows: Tensors,
        scratch: Tensors,
    ) -> None:
        """Add to the gradient by the embeddings; overwrite those by the rows, after four matrix products."""
        (x,), (by_x,) = samples, by_samples
        precision, scaled, by_precision, by_scaled = scratch
        means, log_variances = (row.to(x.dtype) for row in rows)
        means, inverse_lengths, divisors = lengths_of_rows(means)
        if self.compiled:
            fused(distributions)(means, log_variances, precision, scaled)
        else:
            distributions_in_place(means, log_variances, precision, scaled)

        # -tau d2 = 2 tau x.(m p)/|m| - tau (x x).p - tau sum_k mu_k^2 p_k
        crossed = by_scores * (inverse_lengths * (2.0 * self.tau))
        by_x.addcmul_(torch.mm(by_scores.T, precision), x, value=-2.0 * self.tau)
        by_x.addmm_(crossed.T, scaled)
        torch.mm(by_scores, x * x * -self.tau, out=by_precision)
        torch.mm(crossed, x, out=by_scaled)
        weights = by_scores.sum(dim=1, keepdim=True).mul_(inverse_lengths * inverse_lengths * -self.tau)
        given = by_precision, by_scaled, weights, means, log_variances, precision, inverse_lengths
        backward = fused(distributions_backward) if self.compiled else distributions_backward_in_place
        by_means, by_log_variances = by_rows
        backward(*given, by_means, by_log_variances)
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

    def forward(
        self, samples: Tensors, rows: Tensors, scores: Float[Tensor, "c N"], scratch: Tensors
    ) -> None:
        """Write the scores into `scores`, a row a class."""
        (features, shares), (weights, biases) = samples, rows
        torch.outer(biases.to(scores.dtype), shares.to(scores.dtype), out=scores)
        if self.dtype == scores.dtype == features.dtype:
            scores.addmm_(weights.to(self.dtype), features.T.contiguous())
        else:
            scores += weights.to(self.dtype) @ features.to(self.dtype).T

    def backward(
        self,
        by_scores: Float[Tensor, "c N"],
        samples: Tensors,
        rows: Tensors,
        by_samples: Tensors,
        by_rows: Tensors,
        scratch: Tensors,
    ) -> None:
        """Add to the gradients by features and shares; overwrite those by the rows."""
        (features, shares), (weights, biases), (by_weights, by_biases) = samples, rows, by_rows
        by_features, by_shares = by_samples
        narrow = by_scores.to(self.dtype)
        by_features += narrow.T @ weights.to(self.dtype)
        by_shares += biases.to(by_scores.dtype) @ by_scores
        by_biases.copy_(by_scores @ shares.to(by_scores.dtype))
        if by_weights.dtype == self.dtype == features.dtype:
            torch.mm(narrow, features, out=by_weights)
        else:
            by_weights.copy_(narrow @ features.to(self.dtype))
