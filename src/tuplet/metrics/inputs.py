"""What the metrics accept: checked, on one device, in the precision they are computed in."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from tuplet.errors import InputError

Array: TypeAlias = Tensor | npt.NDArray[Any]

CHUNK_NUMBERS = 2**22
"""Numbers that are looked at together."""


def as_embeddings(
    values: Float[Array, "N D"], *, name: str, may_be_empty: bool = False
) -> Float[Tensor, "N D"]:
    """The embeddings as a contiguous float32 or float64 tensor without gradient.

    Args:
        values: finite floats of any precision; float16 and bfloat16 become float32.
        name: what to call them in an error.
        may_be_empty: N may be 0.
    Returns: on the device of `values`; on the CPU for arrays, and for devices without float64 (Apple's MPS).
    Raises: InputError: not two-dimensional, empty, not floats, NaN or infinity (names the first such row).
    """
    tensor = _as_tensor(values).detach()
    if tensor.ndim != 2:
        raise InputError(f"{name} has shape {list(tensor.shape)}; wanted [N, D], one row an item")
    if tensor.shape[1] == 0 or (len(tensor) == 0 and not may_be_empty):
        raise InputError(
            f"{name} is empty, with shape {list(tensor.shape)}; want at least one row and column"
        )
    if not tensor.is_floating_point():
        raise InputError(f"{name} holds {tensor.dtype}; wanted floats: convert it, e.g. to float32")
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    row = _first_not_finite(tensor)
    if row is not None:
        raise InputError(
            f"{name} holds NaN or infinity, first in row {row}; wanted finite numbers: drop such rows"
        )
    return tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32).contiguous()


def as_labels(
    values: Int[Array, " N"], *, name: str, length: int | None = None, device: torch.device | None = None
) -> Int64[Tensor, " N"]:
    """The labels as an int64 tensor.

    Args:
        values: any integers; they need not be consecutive.
        name: what to call them in an error.
        length: how many there must be; None: any number.
        device: where to put them; None: where they are.
    Raises: InputError: not one-dimensional, not integers, or another number than `length`.
    """
    tensor = _as_tensor(values)
    if tensor.ndim != 1:
        raise InputError(f"{name} has shape {list(tensor.shape)}; wanted [N], one integer an item")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(f"{name} holds {tensor.dtype}; wanted integers: convert it, e.g. to int64")
    if length is not None and len(tensor) != length:
        raise InputError(f"{name} has {len(tensor)} entries for {length} embeddings; wanted one an embedding")
    return tensor.to(device=device, dtype=torch.int64)


def _first_not_finite(rows: Float[Tensor, "N D"]) -> int | None:
    # Part by part: the check takes temporary memory of the size of what it is given.
    step = max(1, CHUNK_NUMBERS // rows.shape[1])
    for start in range(0, len(rows), step):
        finite = rows[start : start + step].isfinite().all(dim=1)
        if not bool(finite.all()):
            return start + int((~finite).nonzero()[0])
    return None


def unit_rows(embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """The rows at unit length; zero rows stay zero."""
    # The largest entry is divided out first: squares of huge entries overflow, and of tiny ones vanish.
    scaled = embeddings / one_for_zero(embeddings.abs().amax(1, keepdim=True))
    return scaled / one_for_zero(torch.linalg.vector_norm(scaled, dim=1, keepdim=True))


def one_for_zero(sizes: Float[Tensor, "N 1"]) -> Float[Tensor, "N 1"]:
    """The sizes with 1 in place of 0, to divide by."""
    return torch.where(sizes == 0, torch.ones_like(sizes), sizes)


def _as_tensor(values: Array) -> Tensor:
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "biufc":
        raise InputError(f"got an array of {array.dtype}; wanted numbers")
    # torch takes neither foreign byte orders nor negative strides, and warns about read-only memory maps.
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())
