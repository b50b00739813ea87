"""The class head with the classes spread over ranks; each rank keeps the parameters of its own classes.

Every rank scores the whole batch against its own classes. Of the scores, the ranks exchange little: two
numbers per sample, and the columns of the classes in the batch.

Sizes: N samples in the batch of all ranks, C classes, R ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch import distributed as dist

from tuplet.losses.many_classes.head import class_head
from tuplet.losses.many_classes.scores import ClassScores, Inputs

INITIAL_BLOCK = 1024
"""Classes that are initialised from one seed, so that their values are the same for any number of ranks."""
BLOCK_STRIDE = 0x9E3779B97F4A7C15


@final
@dataclass(frozen=True)
class ClassShard:
    """The classes that this rank keeps: `num_kept` of them, from `first` on.

    Rank r keeps the r-th chunk of torch.chunk(classes, num_ranks); the last ranks may keep fewer or none.

    Attributes:
        num_classes: C, over all ranks.
        rank: of this process in the group, 0..num_ranks-1.
        num_ranks: R, >= 1.
        group: of torch.distributed; None is all of its processes.
    """

    num_classes: int
    rank: int = 0
    num_ranks: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def of_group(cls, num_classes: int, group: dist.ProcessGroup | None = None) -> ClassShard:
        """Return this process's share of the classes; all of them where torch.distributed does not run."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(num_classes)
        return cls(num_classes, dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def first(self) -> int:
        """The lowest class of this rank."""
        return min(self.rank * math.ceil(self.num_classes / self.num_ranks), self.num_classes)

    @property
    def num_kept(self) -> int:
        """How many classes this rank keeps, >= 0."""
        return min(math.ceil(self.num_classes / self.num_ranks), self.num_classes - self.first)


def sharded_class_head(
    shard: ClassShard, kind: ClassScores, inputs: Inputs, labels: Int[Tensor, " M"], **options: Any
) -> tuple[Float[Tensor, "N M"], Float[Tensor, " N"]]:
    """Compute what `class_head` does for the classes of all ranks, the same on each.

    The gradient by the samples is that of all classes, on every rank; the gradient by the parameters is that
    of the rank's own rows. Neither is averaged.

    Args:
        shard: the classes of this rank.
        kind: how a sample is scored against a class.
        inputs: samples, the same on every rank, and the parameters of this rank's classes, the widest first.
        labels: classes of any rank whose scores are returned; the same on every rank.
        options: as for `class_head`; `summed` has rows of this rank's parameters.
    """
    samples = [_sum_gradients(sample, shard) for sample in inputs.samples]
    # A column comes from the one rank that keeps its class; the class head of the others gives zeros.
    columns, log_partition = class_head(kind, Inputs(samples, inputs.rows), labels - shard.first, **options)
    # log sum_r exp(L_r) = h + log sum_r exp(L_r - h) for any h; the largest keeps every exponential in (0,
    # 1]. h drops out of the gradient, which is why it may be a constant.
    highest = log_partition.detach().clone()
    if shard.num_ranks > 1:
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=shard.group)
    # One all-reduce sums both, instead of two.
    weights = torch.exp(log_partition - highest)
    totals = _sum_values(torch.cat([columns, weights[:, None]], dim=1), shard)
    return totals[:, :-1], highest + totals[:, -1].log()


def gather_batch(
    embeddings: Float[Tensor, "n D"], labels: Int[Tensor, " n"], group: dist.ProcessGroup | None = None
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """Return the batch of all ranks, rank by rank, on each of them.

    Every rank must compute the same loss of it. A rank's embeddings then receive R times their gradient,
    which DistributedDataParallel divides by R again as it averages.

    Args:
        embeddings: of this rank; as many on every rank.
        labels: of this rank.
        group: of torch.distributed; None is all of its processes.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return embeddings, labels
    gathered: Tensor = _Gather.apply(embeddings, group)
    everyone = labels.new_empty(len(gathered))
    dist.all_gather_into_tensor(everyone, labels.contiguous(), group=group)
    return gathered, everyone


def initialise_rows(
    shard: ClassShard, means: Tensor, log_variances: Tensor, weights: Tensor, biases: Tensor
) -> None:
    """Initialise this rank's rows like HISTLoss does, as a function of torch's seed and the class alone.

    Each block of `INITIAL_BLOCK` classes has a seed of its own. So a loss has the same initial values on any
    number of ranks, and a rank draws no more than the blocks that contain its classes.

    Args:
        shard: the classes of this rank.
        means: He-normal, fan-out: the variance is 2 over C, all classes counted and not this rank's.
        log_variances: likewise.
        weights: as torch.nn.Linear starts them.
        biases: likewise.
    """
    deviation = math.sqrt(2.0 / shard.num_classes)
    bound = 1.0 / math.sqrt(weights.shape[1])
    first, last = shard.first, shard.first + shard.num_kept
    for block in range(first // INITIAL_BLOCK, math.ceil(last / INITIAL_BLOCK)):
        start = block * INITIAL_BLOCK
        inside = slice(max(start, first) - start, min(start + INITIAL_BLOCK, last) - start)
        rows = slice(max(start, first) - first, min(start + INITIAL_BLOCK, last) - first)
        seed = (torch.initial_seed() + BLOCK_STRIDE * (block + 1)) % 2**63
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in (means, log_variances, weights, biases):
                values = torch.empty(INITIAL_BLOCK, *tensor.shape[1:])
                if tensor is means or tensor is log_variances:
                    values.normal_(0.0, deviation, generator=generator)
                else:
                    values.uniform_(-bound, bound, generator=generator)
                tensor[rows] = values[inside].to(tensor)


def _sum_values(values: Tensor, shard: ClassShard) -> Tensor:
    """Sum over ranks; the gradient is each rank's own, since every rank computes the same loss of the sum."""
    return values if shard.num_ranks == 1 else _SumValues.apply(values, shard.group)


def _sum_gradients(values: Tensor, shard: ClassShard) -> Tensor:
    """Return the values; backward sums their gradients over ranks, as each rank has its own classes only."""
    return values if shard.num_ranks == 1 else _SumGradients.apply(values, shard.group)


class _SumValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        total = values.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group, ctx.rows = group, len(values)
        gathered = values.new_empty(len(values) * dist.get_world_size(group), *values.shape[1:])
        dist.all_gather_into_tensor(gathered, values.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Every rank has the same gradient, so R times it is the sum over ranks, without communication.
        start = dist.get_rank(ctx.group) * ctx.rows
        return gradient[start : start + ctx.rows] * dist.get_world_size(ctx.group), None
