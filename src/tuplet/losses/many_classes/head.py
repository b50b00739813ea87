"""The cross entropies of Eq. 1-2 and Eq. 5 over C classes, chunk by chunk, with a backward written by hand.

Both halves of the loss score N samples against C classes. The plain implementation holds N x C scores, their
softmax, the gradients of both, and C x D temporaries: with a million classes, more than a device has. But the
cross entropy of sample i depends on its scores s through two numbers only,

    loss_i = log sum_c exp(s_ic) - s_i,label(i),

the log-partition, which can be summed chunk by chunk, and the score of its own class. The gradient with
respect to a score is softmax_ic = exp(s_ic - log-partition_i), minus one at the label, so a chunk's gradients
follow from its scores and the log-partition alone. The backward computes the scores a second time: one more
matrix product costs less than writing and reading N x C numbers, except where these are few.

No shape depends on a value: there is one column per label, even where several samples are of one class, and
each chunk fills in its columns through a mask. So the host never waits for a device to count or sort labels.

In names, `by_x` is the gradient of the loss with respect to x.

Sizes: N samples, C classes, S of them summed over (all, or a sample), c in a chunk, D wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from tuplet.losses.many_classes.memory import ReusedMemory, may_keep
from tuplet.losses.many_classes.scores import ClassScores, Inputs, Tensors, without_autocast


@torch.compiler.disable  # type: ignore[untyped-decorator]
def class_head(
    kind: ClassScores,
    inputs: Inputs,
    labels: Int[Tensor, " M"],
    *,
    summed: Int[Tensor, " S"] | None = None,
    sparse: bool = False,
    memory: ReusedMemory | None = None,
) -> tuple[Float[Tensor, "N M"], Float[Tensor, " N"]]:
    """Compute the scores of some classes, and the logarithm of the summed exponentials of the scores of all.

    Args:
        kind: how a sample is scored against a class.
        inputs: what the scores need of the samples and, in C rows, of the classes; of these the widest first.
        labels: classes whose scores are returned, in any order and more than once; the column of a label
            outside 0..C-1 is zero and has no gradient.
        summed: the classes in the sum, ascending, with all of `labels` among them; every class if not given.
        sparse: gradients of the parameters hold the rows of `summed` only, as sparse tensors.
        memory: where gradients and scratch space come from; give the same one to every step.
    Returns: the scores [N, M] and the log-partition [N], in float32 or wider. Both pass gradients on, once.
    """
    call = _Call(kind, len(inputs.samples), sparse, memory or ReusedMemory())
    scores, log_partition = _ClassHead.apply(call, labels, summed, *inputs.samples, *inputs.rows)
    return scores, log_partition


@final
@dataclass(frozen=True)
class _Call:
    """The arguments of one call of `class_head` that are not tensors."""

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
        ctx: Any, call: _Call, labels: Tensor, summed: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs = call.inputs(tensors)
        like = inputs.samples[0]
        places = labels if summed is None else _places_in(summed, labels)
        # Autocast would round the distances to 8 bits, and the loss depends on their small differences.
        with without_autocast(like.device):
            chunks = _Chunks(call, inputs, summed, call.kind.prepare(inputs.samples))
            keep = may_keep(len(like) * chunks.total, inputs.rows) and any(ctx.needs_input_grad)
            kept = None
            columns = like.new_zeros(len(labels), len(like), dtype=chunks.dtype)
            # logsumexp subtracts the largest score first, so no exponential overflows. The results of chunks
            # combine by the same function, log(e^a + e^b) = logsumexp(a, b). -inf is the logarithm of the
            # empty sum: without it a rank that keeps no class would have nothing to stack.
            parts = [columns.new_full((len(like),), -math.inf)]
            blocks = chunks.blocks(whole=keep)
            for block, rows, inside in zip(blocks, *chunks.rows_in(blocks, places), strict=True):
                scores = chunks.scores(block)
                parts.append(torch.logsumexp(scores, dim=0))
                columns = torch.where(inside, scores.index_select(0, rows), columns)
                kept = scores if keep else None
                del scores  # ReusedMemory gives memory out again only once nothing refers to it
            log_partition = torch.logsumexp(torch.stack(parts), dim=0)
        ctx.call, ctx.step, ctx.notes = call, chunks.step, chunks.notes
        ctx.save_for_backward(places, summed, kept, log_partition, *tensors)
        return columns.T, log_partition

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_columns: Tensor, by_log_partition: Tensor) -> tuple[Tensor | None, ...]:
        places, summed, kept, log_partition, *tensors = ctx.saved_tensors
        call, inputs = ctx.call, ctx.call.inputs(tensors)
        with without_autocast(log_partition.device):
            prepared = call.kind.prepare(inputs.samples) if kept is None else ()
            chunks = _Chunks(call, inputs, summed, prepared, step=ctx.step, notes=ctx.notes)
            samples = call.kind.prepare_backward(inputs.samples)
            gradients = Inputs(
                [torch.zeros_like(sample, dtype=by_columns.dtype) for sample in inputs.samples],
                [
                    call.memory.empty(f"{chunks.name} gradient {index}", chunks.total, rows)
                    for index, rows in enumerate(inputs.rows)
                ],
            )
            by_rows = [_split(rows, chunks.step) for rows in gradients.rows]
            by_places = by_columns.T
            blocks = chunks.blocks(whole=kept is not None)
            for block, rows, inside in zip(blocks, *chunks.rows_in(blocks, places), strict=True):
                # Kept scores must not change: backward runs again with retain_graph=True. Scores that are
                # computed here may be overwritten.
                scores = by_scores = chunks.scores(block) if kept is None else kept
                if kept is not None:
                    by_scores = call.memory.empty(f"{chunks.name} by scores", len(scores), scores)
                # The softmax times the gradient of the log-partition, plus the gradient of the columns.
                # Samples of one class add to the same row.
                torch.sub(scores, log_partition, out=by_scores).exp_().mul_(by_log_partition)
                by_scores.index_add_(0, rows, by_places * inside)
                # Last chunk first, since its classes are still in the cache.
                for chunk, part in reversed(list(zip(block, _split(by_scores, chunks.step), strict=True))):
                    chunks.backward(
                        chunk, part, samples, Inputs(gradients.samples, [parts[chunk] for parts in by_rows])
                    )
                del scores, by_scores, part  # see forward
        by_samples = [
            part.to(like.dtype) for part, like in zip(gradients.samples, inputs.samples, strict=True)
        ]
        by_parameters = list(gradients.rows)
        if summed is not None:
            spread = _as_sparse if call.sparse else _as_dense
            by_parameters = [spread(*pair, summed) for pair in zip(by_parameters, inputs.rows, strict=True)]
        return None, None, None, *by_samples, *by_parameters


@final
class _Chunks:
    """The chunks of one pass over the classes, by number.

    Attributes:
        total: classes.
        step: classes in each chunk but the last.
        notes: what `ClassScores.notes` returned for each chunk; forward computes it, backward reads it.
    """

    def __init__(
        self,
        call: _Call,
        inputs: Inputs,
        summed: Tensor | None,
        prepared: Tensors,
        *,
        step: int = 0,
        notes: dict[int, Tensors] | None = None,
    ) -> None:
        self.name = type(call.kind).__name__
        self.kind, self.memory, self.prepared = call.kind, call.memory, prepared
        self._like, widest = inputs.samples[0], inputs.rows[0]
        self.total = len(widest) if summed is None else len(summed)
        self.dtype = torch.float64 if self._like.dtype == torch.float64 else torch.float32
        self.step = step or min(self.memory.classes_in_chunk(len(self._like), widest), max(1, self.total))
        self.notes = {} if notes is None else notes
        # Split each tensor once, not once per chunk: every call into torch costs time.
        self._all_rows = inputs.rows
        self._rows = [_split(rows, self.step) for rows in inputs.rows] if summed is None else None
        self._summed = None if summed is None else _split(summed, self.step)
        count = self.kind.num_scratch
        scratch = self.memory.empty(f"{self.name} scratch", count * self.step, widest, self.dtype)
        self._scratch = scratch.view(count, self.step, *widest.shape[1:]).unbind()

    def blocks(self, *, whole: bool) -> list[range]:
        """Return the numbers of all chunks as one block, or one block per chunk."""
        num_chunks = -(-self.total // self.step)
        if whole:
            return [range(num_chunks)] if num_chunks else []
        return [range(number, number + 1) for number in range(num_chunks)]

    def rows_in(self, blocks: list[range], places: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return, per block, the row of each label in it, and a mask [M, 1] of the labels that it holds.

        A label of another block gets some valid row, for the mask to exclude: no shape depends on values.
        """
        if not blocks:
            return (), ()
        if len(blocks) == 1:
            rows = places.clamp(0, self.total - 1)
            return (rows,), ((rows == places)[:, None],)
        starts = torch.arange(0, self.total, self.step, device=places.device)[:, None]
        offsets = places - starts
        rows = torch.minimum(offsets.clamp_min(0), (self.total - 1 - starts).clamp_max_(self.step - 1))
        return rows.unbind(), (rows == offsets)[:, :, None].unbind()

    def scores(self, block: range) -> Tensor:
        """Compute the scores of all samples against the classes of a block, a row per class."""
        size = min(block.stop * self.step, self.total) - block.start * self.step
        like = self._like.new_empty(0, len(self._like), dtype=self.dtype)
        scores = self.memory.empty(f"{self.name} scores", size, like)
        for chunk, part in zip(block, _split(scores, self.step), strict=True):
            rows = self._rows_of(chunk)
            if chunk not in self.notes:
                self.notes[chunk] = self.kind.notes(rows, self.dtype)
            self.kind.forward(self.prepared, rows, self.notes[chunk], part, self._scratch_of(part))
        return scores

    def backward(self, chunk: int, by_scores: Tensor, samples: Tensors, gradients: Inputs) -> None:
        """Add to the gradients by the samples; write those by the rows of a chunk."""
        inputs = Inputs(samples, self._rows_of(chunk))
        self.kind.backward(by_scores, inputs, self.notes[chunk], gradients, self._scratch_of(by_scores))

    def _rows_of(self, chunk: int) -> Tensors:
        if self._rows is not None:
            return [parts[chunk] for parts in self._rows]
        assert self._summed is not None
        return [rows[self._summed[chunk]] for rows in self._all_rows]

    def _scratch_of(self, scores: Tensor) -> Tensors:
        size = len(scores)
        return self._scratch if size == self.step else [each[:size] for each in self._scratch]


def _split(tensor: Tensor, step: int) -> tuple[Tensor, ...]:
    return (tensor,) if len(tensor) <= step else torch.split(tensor, step)


def _places_in(summed: Tensor, labels: Tensor) -> Tensor:
    """Return where the labels are among the ascending classes, or -1."""
    if len(summed) == 0:
        return torch.full_like(labels, -1)
    places = torch.searchsorted(summed, labels).clamp_max_(len(summed) - 1)
    return torch.where(summed[places] == labels, places, -1)


def _as_sparse(rows: Tensor, parameter: Tensor, places: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(
        places[None], rows, parameter.shape, is_coalesced=True, check_invariants=False
    )


def _as_dense(rows: Tensor, parameter: Tensor, places: Tensor) -> Tensor:
    return torch.zeros_like(parameter).index_copy_(0, places, rows)


def draw_classes(num_classes: int, always: Int64[Tensor, " M"], *, fraction: float) -> Int64[Tensor, " S"]:
    """Draw a random sample of the classes that always includes some of them, ascending.

    Args:
        num_classes: C, >= 0; classes are 0..C-1.
        always: classes that are in the sample whatever is drawn, in any order and more than once; what is
            outside 0..C-1 is ignored.
        fraction: share of C that is drawn, `always` included, in (0, 1]; at least M, at most C classes.
    Returns: S different classes.
    References:
        An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs
        by Partial FC", CVPR 2022.
    """
    # Give every class a random number, and those of `always` -1, then take the lowest: this draws without
    # replacement and reads nothing on the host. Counting the distinct classes of `always` would read them,
    # so at least M classes are drawn.
    priority = torch.rand(num_classes, device=always.device)
    count = min(max(len(always), round(fraction * num_classes)), num_classes)
    if num_classes > 0:
        rows = always.clamp(0, num_classes - 1)
        priority.scatter_reduce_(0, rows, torch.where(rows == always, -1.0, 1.0), "amin")
    return priority.topk(count, largest=False, sorted=False).indices.sort().values
