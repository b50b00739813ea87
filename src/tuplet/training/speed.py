"""What a machine needs to train fast: memory that is kept between steps, and a compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tuplet.errors import InputError

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


@contextmanager
def keeping_memory(device: torch.device) -> Iterator[None]:
    """Nothing; within it, memory that a step on the CPU frees waits for the next step.

    glibc otherwise takes every piece of more than 32 MiB from the system and returns it, a feature map of
    ResNet-50 for one, and the system clears each page anew. Other C libraries and other devices stay as they
    are. Afterwards what is free is given back.

    Args:
        device: that trains.
    """
    libc = _glibc() if device.type == "cpu" else None
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        # glibc's own number of mappings, and the thresholds at which it arrives by itself.
        libc.mallopt(_MMAP_MAX, 1 << 16)
        libc.mallopt(_MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(_TRIM_THRESHOLD, 1 << 26)
        libc.malloc_trim(0)


def require_compiler(device: torch.device) -> None:
    """Nothing.

    Args:
        device: that trains.

    Raises:
        InputError: torch.compile does not work on it, as where there is no C++ compiler.
    """
    try:
        # Without torch's cache on disk: it may hold this function from a time when there was a compiler.
        shifted = torch.compile(_shifted, options={"force_disable_caches": True})
        shifted(torch.zeros(8, device=device))
    except Exception as error:  # the compilers of each device fail in ways of their own
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"compute.compile is True and torch.compile does not work here ({cause}); want a C++ compiler"
            " such as g++, and Triton for a GPU, or compute.compile False"
        ) from error


def _shifted(numbers: torch.Tensor) -> torch.Tensor:
    return numbers * 2.0 + 1.0


def _glibc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libc.so.6")
    except OSError:
        return None
