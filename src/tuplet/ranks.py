"""Collective operations over the ranks of a Fabric; on a single rank they return their argument."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar, cast

import torch
from jaxtyping import Shaped
from lightning_fabric import Fabric
from torch import Tensor

from tuplet.errors import InputError

T = TypeVar("T")


def gather(
    fabric: Fabric, rows: Shaped[Tensor, "n ..."], *, interleave: bool = False
) -> Shaped[Tensor, "N ..."]:
    """Return the rows of all ranks, on every rank.

    Args:
        fabric: launched.
        rows: as many on each rank.
        interleave: order them as first rows, second rows, ...; otherwise rank by rank.
    """
    if fabric.world_size == 1:
        return rows
    stacked = rows.new_empty(fabric.world_size * len(rows), *rows.shape[1:])
    torch.distributed.all_gather_into_tensor(stacked, rows.contiguous())
    return _joined(stacked.view(fabric.world_size, *rows.shape), interleave)


def gather_on_first(
    fabric: Fabric, rows: Shaped[Tensor, "n ..."], *, interleave: bool = False
) -> Shaped[Tensor, "N ..."]:
    """Return the rows of all ranks on the first, in the order of `gather`; on the others, their own."""
    parts = [torch.empty_like(rows) for _ in range(fabric.world_size)] if fabric.is_global_zero else None
    torch.distributed.gather(rows.contiguous(), parts, dst=0)
    return rows if parts is None else _joined(torch.stack(parts), interleave)


def _joined(stacked: Shaped[Tensor, "R n ..."], interleave: bool) -> Shaped[Tensor, "N ..."]:
    return (stacked.transpose(0, 1) if interleave else stacked).flatten(0, 1)


def on_first(fabric: Fabric, action: Callable[[], T]) -> T:
    """Run an action on the first rank, and return its result or raise its `InputError` on every rank.

    Args:
        fabric: launched.
        action: its result must be picklable.

    Raises:
        InputError: (a ValueError) as the action raised it, with its type and attributes.
    """
    if fabric.world_size == 1:
        return action()
    result: T | None = None
    failure: InputError | None = None
    if fabric.is_global_zero:
        try:
            result = action()
        except InputError as error:
            # Raised only after the broadcast: the other ranks wait in it, and would wait for ever.
            failure = error
    result, failure = fabric.broadcast((result, failure))
    if failure is not None:
        raise failure
    return cast(T, result)


def share(fabric: Fabric, tensors: Iterable[Tensor]) -> None:
    """Copy the values of the first rank's tensors into those of every rank, in place."""
    if fabric.world_size > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


def mean(fabric: Fabric, values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Return the mean of each value over the ranks, on every rank."""
    return values if fabric.world_size == 1 else cast(Tensor, fabric.all_reduce(values, reduce_op="mean"))


def total(fabric: Fabric, values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Return the sum of each value over the ranks, on every rank."""
    return values if fabric.world_size == 1 else cast(Tensor, fabric.all_reduce(values, reduce_op="sum"))


def first_of(fabric: Fabric, text: str) -> str:
    """Return the text of the lowest rank that has one, on every rank; empty if none has."""
    if fabric.world_size == 1:
        return text
    texts = [""] * fabric.world_size
    torch.distributed.all_gather_object(texts, text)
    return next(filter(None, texts), "")


def lost_another_rank(error: RuntimeError) -> bool:
    """Return whether a collective operation failed because another rank has ended or cannot be reached.

    Args:
        error: what the operation raised.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    if distributed.get_backend() != "gloo":
        return isinstance(error, distributed.DistBackendError)
    # gloo raises a plain RuntimeError for everything. But to begin sending to a rank whose connection is
    # closed fails at once, and to one that lives it does not.
    ranks = range(distributed.get_world_size())
    return not all(_can_send_to(rank) for rank in ranks if rank != distributed.get_rank())


def _can_send_to(rank: int) -> bool:
    try:
        torch.distributed.isend(torch.zeros(1), rank)
    except RuntimeError:
        return False
    return True
