"""The cross entropies of Eq. 1-2 and Eq. 5 over C classes, chunk by chunk, with a backward written by hand.

Both halves of the loss score N samples against C classes. The plain way holds N x C scores, their softmax and
the gradients of both, and C x D tensors beside the parameters: with a million classes, more than a device
has. But the cross entropy of sample i needs two things of its scores s only,

    loss_i = log sum_c exp(s_ic) - s_i,label(i),

the log-partition, which can be summed up chunk by chunk, and the columns of the E classes in the batch. Its
gradient by a score is softmax_ic = exp(s_ic - log-partition_i), less one at the label, so that a chunk's
gradients follow from its scores and the log-partition alone. The backward computes the scores a second time:
one more matrix product costs less than N x C numbers that are written and read, except where they are few.

Sizes: N samples, C classes, E of them in the batch, S summed over (all, or a sample), c in a chunk, D wide.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from tuplet.losses.many_classes.memory import ReusedMemory, classes_in_chunk, may_keep
from tuplet.losses.many_classes.scores import ClassScores, Inputs, Tensors


@torch.compiler.disable  # type: ignore[untyped-decorator]
def class_head(
    kind: ClassScores,
    inputs: Inputs,
    classes: Int[Tensor, " E"],
    *,
    summed: Int[Tensor, " S"] | None = None,
    sparse: bool = False,
    memory: ReusedMemory | None = None,
) -> tuple[Float[Tensor, "N E"], Float[Tensor, " N"]]:
    """Compute the scores of some classes, and the logarithm of the summed exponentials of the scores of all.

    Args:
        kind: how a sample is scored against a class.
        inputs: what the scores need of the samples and, in C rows, of the classes; of these the widest first.
        classes: those whose scores are returned, ascending.
        summed: the classes in the sum, ascending, with all of `classes` among them; every class if not given.
        sparse: gradients of the parameters hold the rows of `summed` only, as sparse tensors.
        memory: where gradients and scratch space come from; give the same one to every step.
    Returns: the scores [N, E] and the log-partition [N], in float32 or wider. Both pass gradients on, once.
    """
    call = _Call(kind, len(inputs.samples), sparse, memory or ReusedMemory())
    scores, log_partition = _ClassHead.apply(call, classes, summed, *inputs.samples, *inputs.rows)
    return scores, log_partition


@final
@dataclass(frozen=True)
class _Call:
    """What a call of `class_head` was given beside tensors."""

    kind: ClassScores
    num_samples: int
    """How many of the tensors are of the samples, and not of the classes."""
    sparse: bool
    memory: ReusedMemory

    def inputs(self, tensors: Tensors) -> Inputs:
        return Inputs(tensors[: self.num_samples], tensors[self.num_samples :])


class _ClassHead(torch.autograd.Function):
    """`class_head` as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, call: _Call, classes: Tensor, summed: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs = call.inputs(tensors)
        like = inputs.samples[0]
        # Autocast would round the distances, whose differences decide, to 8 bits.
        with torch.autocast(like.device.type, enabled=False):
            chunks = _Chunks(call, inputs, summed)
            batch = _BatchClasses(classes, summed)
            keep = may_keep(len(like) * chunks.total, inputs.rows) and any(ctx.needs_input_grad)
            kept = None
            columns = like.new_empty(len(classes), len(like), dtype=chunks.dtype)
            # logsumexp takes the largest score out first, so that no exponential overflows, and sums of sums
            # may be taken the same way: log(e^a + e^b) = logsumexp(a, b). It starts from the empty sum.
            parts = [columns.new_full((len(like),), -math.inf)]
            for block in chunks.blocks(whole=keep):
                scores = chunks.scores(block)
                parts.append(torch.logsumexp(scores, dim=0))
                which, rows = batch.within(block)
                columns[which] = scores[rows]
                kept = scores if keep else None
                del scores  # memory that is held is not used again
            log_partition = torch.logsumexp(torch.stack(parts), dim=0)
        ctx.call = call
        ctx.save_for_backward(classes, summed, kept, log_partition, *tensors)
        return columns.T, log_partition

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_columns: Tensor, by_log_partition: Tensor) -> tuple[Tensor | None, ...]:
        classes, summed, kept, log_partition, *tensors = ctx.saved_tensors
        call, inputs = ctx.call, ctx.call.inputs(tensors)
        with torch.autocast(log_partition.device.type, enabled=False):
            chunks = _Chunks(call, inputs, summed)
            batch = _BatchClasses(classes, summed)
            gradients = Inputs(
                [torch.zeros_like(sample, dtype=by_columns.dtype) for sample in inputs.samples],
                [
                    call.memory.empty(f"{chunks.name} gradient {index}", chunks.total, rows)
                    for index, rows in enumerate(inputs.rows)
                ],
            )
            for block in chunks.blocks(whole=kept is not None):
                scores = chunks.scores(block) if kept is None else kept
                by_scores = call.memory.empty(f"{chunks.name} by scores", len(scores), scores)
                # The softmax, then what reaches the columns of the batch by themselves.
                torch.sub(scores, log_partition, out=by_scores).exp_().mul_(by_log_partition)
                which, rows = batch.within(block)
                by_scores.index_add_(0, rows, by_columns.T[which])
                chunks.backward(block, by_scores, gradients)
                del scores, by_scores  # memory that is held is not used again
        by_samples = [
            part.to(like.dtype) for part, like in zip(gradients.samples, inputs.samples, strict=True)
        ]
        by_rows = list(gradients.rows)
        if summed is not None:
            spread = _as_sparse if call.sparse else _as_dense
            by_rows = [spread(*pair, summed) for pair in zip(by_rows, inputs.rows, strict=True)]
        return None, None, None, *by_samples, *by_rows


@final
class _Chunks:
    """The chunks of one pass over the classes."""

    def __init__(self, call: _Call, inputs: Inputs, summed: Tensor | None) -> None:
        self.name = type(call.kind).__name__
        self.kind, self.memory, self.inputs, self.summed = call.kind, call.memory, inputs, summed
        like, widest = inputs.samples[0], inputs.rows[0]
        self.total = len(widest) if summed is None else len(summed)
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self.step = min(classes_in_chunk(len(like), widest), max(1, self.total))
        count = self.kind.num_scratch
        scratch = self.memory.empty(f"{self.name} scratch", count * self.step, widest, self.dtype)
        self._scratch = scratch.view(count, self.step, *widest.shape[1:])

    def blocks(self, *, whole: bool) -> list[slice]:
        """Return all classes as one block, or a block a chunk."""
        return _slices(0, self.total, self.total if whole else self.step)

    def scores(self, block: slice) -> Tensor:
        """Compute the scores of all samples against the classes of a block, a row a class."""
        like = self.inputs.samples[0]
        like = like.new_empty(0, len(like), dtype=self.dtype)
        scores = self.memory.empty(f"{self.name} scores", block.stop - block.start, like)
        for chunk in _slices(block.start, block.stop, self.step):
            self.kind.forward(self._inputs(chunk), _part(scores, block, chunk), self._scratch_of(chunk))
        return scores

    def backward(self, block: slice, by_scores: Tensor, gradients: Inputs) -> None:
        """Add to the gradients by the samples; write those by the rows of a block."""
        # Last chunk first, since its classes are still in the cache.
        for chunk in reversed(_slices(block.start, block.stop, self.step)):
            own = Inputs(gradients.samples, [rows[chunk] for rows in gradients.rows])
            part = _part(by_scores, block, chunk)
            self.kind.backward(part, self._inputs(chunk), own, self._scratch_of(chunk))

    def _inputs(self, chunk: slice) -> Inputs:
        places = chunk if self.summed is None else self.summed[chunk]
        return Inputs(self.inputs.samples, [rows[places] for rows in self.inputs.rows])

    def _scratch_of(self, chunk: slice) -> Tensors:
        return self._scratch[:, : chunk.stop - chunk.start].unbind()


@final
class _BatchClasses:
    """Where the classes of the batch are among the summed ones."""

    def __init__(self, classes: Tensor, summed: Tensor | None) -> None:
        self._places = classes if summed is None else torch.searchsorted(summed, classes)
        self._numbers: list[int] = self._places.tolist()

    def within(self, block: slice) -> tuple[slice, Tensor]:
        """Return which of the batch's classes are in a block, and their rows there."""
        first, last = (bisect_left(self._numbers, bound) for bound in (block.start, block.stop))
        return slice(first, last), self._places[first:last] - block.start


def _slices(start: int, stop: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, stop)) for first in range(start, stop, max(1, step))]


def _part(scores: Tensor, block: slice, chunk: slice) -> Tensor:
    return scores[chunk.start - block.start : chunk.stop - block.start]


def _as_sparse(rows: Tensor, parameter: Tensor, places: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(
        places[None], rows, parameter.shape, is_coalesced=True, check_invariants=False
    )


def _as_dense(rows: Tensor, parameter: Tensor, places: Tensor) -> Tensor:
    return torch.zeros_like(parameter).index_copy_(0, places, rows)


def draw_classes(num_classes: int, always: Int64[Tensor, " E"], *, fraction: float) -> Int64[Tensor, " S"]:
    """Draw a random sample of the classes that has some of them for certain, ascending.

    Args:
        num_classes: C, >= 0; classes are 0..C-1.
        always: classes that are in the sample whatever is drawn.
        fraction: share of C that is drawn, `always` included, unless these alone are more; in (0, 1].
    References:
        An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs
        by Partial FC", CVPR 2022.
    """
    # The lowest of as many random numbers: a draw without replacement, and without reading any on the host.
    priority = torch.rand(num_classes, device=always.device)
    priority[always] = -1.0
    count = max(len(always), round(fraction * num_classes))
    return priority.topk(count, largest=False, sorted=False).indices.sort().values
