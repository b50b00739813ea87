"""What ranks do together; on a single rank each function returns what it was given."""

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
    fabric: Fabric,
    rows: Shaped[Tensor, "n ..."],
    *,
    interleave: bool = False,
) -> Shaped[Tensor, "N ..."]:
    """The rows of all ranks, on every rank.

    Args:
        fabric: launched.
        rows: as many on each rank.
        interleave: order them as first rows, second rows, ...; otherwise rank by rank.
    """
    if fabric.world_size == 1:
        return rows
    stacked = cast(Tensor, fabric.all_gather(rows))
    return (stacked.transpose(0, 1) if interleave else stacked).flatten(0, 1)


def gather_on_first(
    fabric: Fabric, rows: Shaped[Tensor, "n ..."], *, interleave: bool = False
) -> Shaped[Tensor, "N ..."]:
    """The rows of all ranks on the first, in the order of `gather`; on the others, their own."""
    parts = [torch.empty_like(rows) for _ in range(fabric.world_size)] if fabric.is_global_zero else None
    torch.distributed.gather(rows.contiguous(), parts, dst=0)
    if parts is None:
        return rows
    stacked = torch.stack(parts)
    return (stacked.transpose(0, 1) if interleave else stacked).flatten(0, 1)


def on_first(fabric: Fabric, action: Callable[[], T]) -> T:
    """What the action returns on the first rank, or its `InputError`, on every rank.

    Args:
        fabric: launched.
        action: run on the first rank only; what it returns must be picklable.

    Raises:
        InputError: (a ValueError) raised by the action.
    """
    if fabric.world_size == 1:
        return action()
    result: T | None = None
    message = ""
    if fabric.is_global_zero:
        try:
            result = action()
        except InputError as error:
            message = str(error)
    result, message = fabric.broadcast((result, message))
    if message:
        raise InputError(message)
    return cast(T, result)


def share(fabric: Fabric, tensors: Iterable[Tensor]) -> None:
    """Nothing; every rank's tensors then hold the first rank's values."""
    if fabric.world_size > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


def mean(fabric: Fabric, values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The mean over the ranks of each value, on every rank."""
    if fabric.world_size == 1:
        return values
    return cast(Tensor, fabric.all_reduce(values, reduce_op="mean"))


def total(fabric: Fabric, values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The sum over the ranks of each value, on every rank."""
    if fabric.world_size == 1:
        return values
    return cast(Tensor, fabric.all_reduce(values, reduce_op="sum"))


def first_of(fabric: Fabric, text: str) -> str:
    """The text of the lowest rank that has any, on every rank; empty where none has."""
    if fabric.world_size == 1:
        return text
    texts = [""] * fabric.world_size
    torch.distributed.all_gather_object(texts, text)
    return next(filter(None, texts), "")
