"""Divide the work on all pairs over R ranks: each rank holds every item and works on every R-th block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, TypeVar

from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Shares:
    """One of several processes that divide the blocks of a common task among them.

    Attributes:
        rank: of this process.
        num_ranks: processes; with one, nothing is sent.
    """

    rank: int = 0
    num_ranks: int = 1

    @classmethod
    def of_ranks(cls) -> Shares:
        """Divide work over all processes of torch.distributed, or do it alone where there are none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def own(self, blocks: Iterable[T]) -> Sequence[T]:
        """Return the blocks of this rank."""
        return list(blocks)[self.rank :: self.num_ranks]

    def add_up(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, on every rank; of integers it is exact."""
        if self.num_ranks == 1:
            return values
        # NCCL only sends tensors that are on a GPU, and the counts may be on the CPU.
        there = values.cuda() if dist.get_backend() == "nccl" else values
        dist.all_reduce(there)
        return there.to(values.device)

    def gather(self, parts: Sequence[T]) -> list[T]:
        """Return the results of all ranks, in the order of all blocks, on every rank.

        Args:
            parts: results of this rank, one per block of `own`, picklable.
        """
        if self.num_ranks == 1:
            return list(parts)
        everyone: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(everyone, parts)
        missing = object()
        dealt = chain.from_iterable(zip_longest(*everyone, fillvalue=missing))
        return [part for part in dealt if part is not missing]


ALONE = Shares()
"""One process that does all of the work."""
