"""The cross entropies of Eq. 1-2 and Eq. 5 over C classes, chunk by chunk, with a backward written by hand.

Both halves of the loss score N samples against C classes, and a cross entropy needs two things of these
scores only: the logarithm of their summed exponentials over all classes, and the columns of the E classes
that are in the batch. So no tensor of N x C x D exists, none of C x D beside the parameters and their
gradients, and one of N x C only while it is small beside those.

Sizes: N samples, C classes, E of them in the batch, S summed over (all, or a sample), c in a chunk, D wide.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from tuplet.losses.many_classes.memory import ReusedMemory, classes_in_chunk, may_keep
from tuplet.losses.many_classes.scores import ClassScores

Tensors = Sequence[Tensor]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def class_head(
    kind: ClassScores,
    samples: Tensors,
    parameters: Tensors,
    classes: Int[Tensor, " E"],
    *,
    summed: Int[Tensor, " S"] | None = None,
    sparse: bool = False,
    memory: ReusedMemory | None = None,
) -> tuple[Float[Tensor, "N E"], Float[Tensor, " N"]]:
    """Scores of some classes, and the logarithm of the summed exponentials of the scores of all.

    Args:
        kind: how a sample is scored against a class.
        samples: what the scores need of the samples, each tensor of N rows.
        parameters: what they need of the classes, each tensor of C rows, the widest first.
        classes: those whose scores are returned, ascending.
        summed: the classes in the sum, ascending, with all of `classes` among them; every class if not given.
        sparse: gradients of the parameters hold the rows of `summed` only, as sparse tensors.
        memory: where gradients and scratch space come from; give the same one to every step.

    Returns: the scores [N, E] and the log-partition [N], in float32 or wider. Both pass gradients on, once.
    """
    scores, log_partition = _ClassHead.apply(
        kind, len(samples), classes, summed, sparse, memory or ReusedMemory(), *samples, *parameters
    )
    return scores, log_partition


class _ClassHead(torch.autograd.Function):
    """`class_head` as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: ClassScores,
        num_samples: int,
        classes: Tensor,
        summed: Tensor | None,
        sparse: bool,
        memory: ReusedMemory,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        samples, parameters = tensors[:num_samples], tensors[num_samples:]
        with torch.autocast(samples[0].device.type, enabled=False):
            work = _Work(kind, samples, parameters, summed, memory)
            places = _Places(classes, summed)
            num_samples = len(samples[0])
            keep = may_keep(num_samples * work.total, parameters) and any(ctx.needs_input_grad)
            kept = None
            columns = samples[0].new_empty(len(classes), num_samples, dtype=work.dtype)
            parts = [columns.new_full((num_samples,), -math.inf)]
            for block in work.blocks(whole=keep):
                scores = work.scores(block)
                parts.append(torch.logsumexp(scores, dim=0))
                which, rows = places.within(block)
                columns[which] = scores[rows]
                kept = scores if keep else None
                del scores  # memory that is held is not used again
            log_partition = torch.logsumexp(torch.stack(parts), dim=0)
        ctx.kind, ctx.num_inputs, ctx.sparse, ctx.memory = kind, len(samples), sparse, memory
        ctx.save_for_backward(classes, summed, kept, log_partition, *tensors)
        return columns.T, log_partition

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_columns: Tensor, by_log_partition: Tensor) -> tuple[Tensor | None, ...]:
        classes, summed, kept, log_partition, *tensors = ctx.saved_tensors
        samples, parameters = tensors[: ctx.num_inputs], tensors[ctx.num_inputs :]
        with torch.autocast(samples[0].device.type, enabled=False):
            work = _Work(ctx.kind, samples, parameters, summed, ctx.memory)
            places = _Places(classes, summed)
            by_samples = [torch.zeros_like(sample, dtype=by_columns.dtype) for sample in samples]
            by_parameters = [
                ctx.memory.empty(f"{work.name} gradient {index}", work.total, parameter)
                for index, parameter in enumerate(parameters)
            ]
            for block in work.blocks(whole=kept is not None):
                scores = work.scores(block) if kept is None else kept
                by_scores = ctx.memory.empty(f"{work.name} by scores", len(scores), scores)
                torch.sub(scores, log_partition, out=by_scores).exp_().mul_(by_log_partition)
                which, rows = places.within(block)
                by_scores.index_add_(0, rows, by_columns.T[which])
                work.backward(block, by_scores, by_samples, by_parameters)
                del scores, by_scores  # memory that is held is not used again
        by_samples = [gradient.to(sample.dtype) for gradient, sample in zip(by_samples, samples, strict=True)]
        if summed is not None:
            spread = _as_sparse if ctx.sparse else _as_dense
            by_parameters = [spread(*pair, summed) for pair in zip(by_parameters, parameters, strict=True)]
        return None, None, None, None, None, None, *by_samples, *by_parameters


@final
class _Work:
    """The chunks of one pass over the classes."""

    def __init__(
        self,
        kind: ClassScores,
        samples: Tensors,
        parameters: Tensors,
        summed: Tensor | None,
        memory: ReusedMemory,
    ) -> None:
        self.name = type(kind).__name__
        self.kind, self.samples, self.parameters, self.summed = kind, samples, parameters, summed
        self.total = len(parameters[0]) if summed is None else len(summed)
        self.memory, self.dtype = memory, torch.promote_types(samples[0].dtype, torch.float32)
        self.step = min(classes_in_chunk(len(samples[0]), parameters[0]), max(1, self.total))
        scratch = memory.empty(
            f"{self.name} scratch", kind.num_scratch * self.step, parameters[0], self.dtype
        )
        self.scratch = scratch.view(kind.num_scratch, self.step, *parameters[0].shape[1:])

    def blocks(self, *, whole: bool) -> list[slice]:
        """All classes at once, or chunk by chunk."""
        return _slices(0, self.total, self.total if whole else self.step)

    def scores(self, block: slice) -> Tensor:
        """Scores of all samples against the classes of a block, a row a class."""
        like = self.samples[0].new_empty(0, len(self.samples[0]), dtype=self.dtype)
        scores = self.memory.empty(f"{self.name} scores", block.stop - block.start, like)
        for chunk in _slices(block.start, block.stop, self.step):
            scratch = self.scratch[:, : chunk.stop - chunk.start].unbind()
            self.kind.forward(self.samples, self._rows(chunk), _part(scores, block, chunk), scratch)
        return scores

    def backward(self, block: slice, by_scores: Tensor, by_samples: Tensors, by_parameters: Tensors) -> None:
        """Add to the gradients by the samples; write those by the rows of a block."""
        # Backwards, for the classes that were last read are still in the cache.
        for chunk in reversed(_slices(block.start, block.stop, self.step)):
            scratch = self.scratch[:, : chunk.stop - chunk.start].unbind()
            by_rows = [gradient[chunk] for gradient in by_parameters]
            part = _part(by_scores, block, chunk)
            self.kind.backward(part, self.samples, self._rows(chunk), by_samples, by_rows, scratch)

    def _rows(self, chunk: slice) -> Tensors:
        return [
            parameter[chunk if self.summed is None else self.summed[chunk]] for parameter in self.parameters
        ]


@final
class _Places:
    """Where the batch's classes are among the summed ones."""

    def __init__(self, classes: Tensor, summed: Tensor | None) -> None:
        self.places = classes if summed is None else torch.searchsorted(summed, classes)
        self.numbers: list[int] = self.places.tolist()

    def within(self, block: slice) -> tuple[slice, Tensor]:
        """Which of the batch's classes are in a block, and their rows there."""
        first, last = (bisect_left(self.numbers, bound) for bound in (block.start, block.stop))
        return slice(first, last), self.places[first:last] - block.start


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
    """Some classes, and a random sample of the others, ascending.

    Args:
        num_classes: C, >= 0; classes are 0..C-1.
        always: classes that are among them whatever is drawn.
        fraction: share of C that they are together, unless `always` alone is more; in (0, 1].

    Source: An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition
        CNNs by Partial FC", CVPR 2022.
    """
    priority = torch.rand(num_classes, device=always.device)
    priority[always] = -1.0
    count = max(len(always), round(fraction * num_classes))
    return priority.topk(count, largest=False, sorted=False).indices.sort().values
