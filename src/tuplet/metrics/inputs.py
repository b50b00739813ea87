"""Check the arrays given to a metric, and convert them to tensors of its device and precision."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from tuplet.errors import unusable

Array: TypeAlias = Tensor | npt.NDArray[Any]

CHUNK_NUMBERS = 2**22
"""Numbers that are checked at a time, to bound the temporary memory."""


def as_embeddings(
    values: Float[Array, "N D"], *, name: str, may_be_empty: bool = False
) -> Float[Tensor, "N D"]:
    """Return embeddings as a contiguous float32 or float64 tensor without gradient.

    Args:
        values: finite floats of any precision; float16 and bfloat16 become float32.
        name: what to call them in an error.
        may_be_empty: N may be 0.
    Returns: on the device of `values`; on the CPU for arrays, and for devices without float64 (Apple's MPS).
    Raises:
        DataError: not two-dimensional, empty, not floats, NaN or infinity; `given` is the shape, the type, or
            the first such row.
    """
    tensor = _as_tensor(values, name).detach()
    shape = list(tensor.shape)
    if len(shape) != 2:
        raise unusable(name, f"has shape {shape}", "[N, D], one row an item", fact=shape)
    if shape[1] == 0 or (shape[0] == 0 and not may_be_empty):
        raise unusable(name, f"is empty, with shape {shape}", "at least one row and column", fact=shape)
    if not tensor.is_floating_point():
        wanted = "floats: convert it, e.g. to float32"
        raise unusable(name, f"holds {tensor.dtype}", wanted, fact=tensor.dtype)
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    # Part by part: the check takes as much temporary memory as its argument.
    step = max(1, CHUNK_NUMBERS // shape[1])
    for start, part in zip(range(0, len(tensor), step), torch.split(tensor, step), strict=False):
        finite = part.isfinite().all(dim=1)
        if not bool(finite.all()):
            row = start + int((~finite).nonzero()[0])
            problem = f"holds NaN or infinity, first in row {row}"
            raise unusable(name, problem, "finite numbers: drop such rows", fact=row)
    return tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32).contiguous()


def as_labels(
    values: Int[Array, " N"], *, name: str, length: int | None = None, device: torch.device | None = None
) -> Int64[Tensor, " N"]:
    """Return labels as an int64 tensor.

    Args:
        values: any integers; they need not be consecutive.
        name: what to call them in an error.
        length: how many there must be; None: any number.
        device: where to put them; None: where they are.
    Raises:
        DataError: not one-dimensional, not integers, or another number than `length`.
    """
    tensor = _as_tensor(values, name)
    if tensor.ndim != 1:
        shape = list(tensor.shape)
        raise unusable(name, f"has shape {shape}", "[N], one integer an item", fact=shape)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        wanted = "integers: convert it, e.g. to int64"
        raise unusable(name, f"holds {tensor.dtype}", wanted, fact=tensor.dtype)
    if length is not None and len(tensor) != length:
        problem = f"has {len(tensor)} entries for {length} embeddings"
        raise unusable(name, problem, "one an embedding", fact=len(tensor))
    return tensor.to(device=device, dtype=torch.int64)


def unit_rows(embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Scale rows to unit length; zero rows stay zero."""
    # The largest entry is divided out first: squares of huge entries overflow, and of tiny ones vanish.
    scaled = embeddings / one_for_zero(embeddings.abs().amax(1, keepdim=True))
    return scaled / one_for_zero(torch.linalg.vector_norm(scaled, dim=1, keepdim=True))


def one_for_zero(sizes: Float[Tensor, "N 1"]) -> Float[Tensor, "N 1"]:
    """Replace 0 by 1, to divide by the result."""
    return torch.where(sizes == 0, torch.ones_like(sizes), sizes)


def _as_tensor(values: Array, name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of several lengths
        raise unusable(name, "has rows of several lengths", "an array") from error
    if array.dtype.kind not in "biufc":
        of_names = name.endswith("labels") and array.dtype.kind in "US"
        wanted = "numbers" + ", such as numpy.unique(labels, return_inverse=True)[1]" * of_names
        raise unusable(name, f"holds {array.dtype}", wanted, fact=array.dtype)
    # torch takes neither foreign byte orders nor negative strides, and warns about read-only memory maps.
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())
