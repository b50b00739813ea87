"""Limits on the memory of the class head, and buffers that it uses again from step to step."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

CHUNK_BYTES = 1 << 21
"""On a CPU: size of one tensor of a chunk. The handful of tensors of a chunk then stay in the last-level
cache from one operation to the next."""
FREE_SHARE = 0.25
"""On a GPU: share of the free memory that all tensors of a chunk may take together."""
FEWEST_ON_GPU = 1 << 10
"""On a GPU: classes in a chunk, however little memory is free; fewer leave it idle."""
KEPT_BYTES, KEPT_SHARE = 1 << 24, 0.125
"""Scores, N x C, are kept for the backward up to this size, or up to this share of the parameters."""
REUSED_BYTES = 1 << 20
"""Smaller tensors are not kept: the allocator serves them from memory that it still has."""


def classes_in_chunk(num_samples: int, parameter: Tensor) -> int:
    """Compute how many classes a chunk has, >= 1.

    Args:
        num_samples: N.
        parameter: the widest of the class parameters, one row per class.
    """
    width, size = parameter.shape[1], max(4, parameter.element_size())
    if parameter.device.type != "cuda":
        return max(16, CHUNK_BYTES // (max(width, num_samples) * size))
    fitting = int(FREE_SHARE * free_bytes(parameter.device)) // ((8 * width + 4 * num_samples) * size)
    return max(fitting, FEWEST_ON_GPU)


def free_bytes(device: torch.device) -> int:
    """Return the memory of a GPU that torch can give out."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def may_keep(num_scores: int, parameters: Sequence[Tensor]) -> bool:
    """Return whether all scores are kept for the backward, instead of being computed a second time.

    Args:
        num_scores: N x C.
        parameters: those of the classes.
    """
    beside = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return 4 * num_scores <= max(KEPT_BYTES, KEPT_SHARE * beside)


@final
class ReusedMemory:
    """CPU memory that is used again once nothing refers to it; on other devices, new memory.

    A training step frees its gradients and scratch space and allocates as much in the next step. For blocks
    of this size the C library returns the pages to the operating system, which zeroes them before the next
    use: at a million classes that costs more than the matrix products. On GPUs torch keeps freed memory.

    Memory that is still in use (as `.grad`, or in a list of past gradients) must not be given out again. The
    reference count of the numpy array tells, as tensors and their views hold a reference to it.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[int, str], np.ndarray] = {}
        self._chunks: dict[tuple[object, ...], int] = {}

    def classes_in_chunk(self, num_samples: int, parameter: Tensor) -> int:
        """Compute the same as the function `classes_in_chunk`; on a GPU, only once per shape.

        Asking the driver for its free memory in every step would take longer than the step.
        """
        if parameter.device.type != "cuda":
            return classes_in_chunk(num_samples, parameter)
        key = (parameter.device, num_samples, parameter.shape[1], parameter.dtype)
        if key not in self._chunks:
            self._chunks[key] = classes_in_chunk(num_samples, parameter)
        return self._chunks[key]

    def empty(self, purpose: str, rows: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialised, contiguous tensor of `rows` rows.

        Args:
            purpose: a name; each purpose has memory of its own.
            rows: first dimension, >= 0.
            like: a tensor with the other dimensions, the device and the type.
            dtype: the type, if not that of `like`.
        """
        dtype = dtype or like.dtype
        shape = (rows, *like.shape[1:])
        size = math.prod(shape) * dtype.itemsize
        if like.device.type != "cpu" or size < REUSED_BYTES:
            return like.new_empty(shape, dtype=dtype)
        key = (threading.get_ident(), purpose)
        array = self._arrays.get(key)
        if array is None or array.nbytes < size or sys.getrefcount(array) > _HELD_BY_NOBODY:
            # Vector instructions are fastest on addresses that are multiples of a cache line, 64 bytes.
            whole = np.empty(size + 64, dtype=np.uint8)
            start = -whole.ctypes.data % 64
            array = self._arrays[key] = whole[start : start + size]
        # Sliced as a tensor: a slice of the array would refer to the array below it, and not be counted.
        return torch.from_numpy(array)[:size].view(dtype).view(shape)

    def __deepcopy__(self, memo: object) -> ReusedMemory:
        return ReusedMemory()

    def __reduce__(self) -> tuple[type[ReusedMemory], tuple[()]]:
        return ReusedMemory, ()


def _references_of_free_memory() -> int:
    """Return what getrefcount says of an array that only a dictionary and a local name hold."""
    arrays = {0: np.empty(1)}
    array = arrays.get(0)
    return sys.getrefcount(array)


# Measured, not written down: some versions of Python do not count a local name.
_HELD_BY_NOBODY = _references_of_free_memory()
