"""Devices of a run: a Fabric on them, memory that is kept between steps, and a compiler that works."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric

from tuplet.config import RunConfig
from tuplet.errors import InputError

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def launch(config: RunConfig) -> Fabric:
    """A Fabric on the devices that the config names, its other ranks started.

    Raises:
        InputError: (a ValueError) there is no such device.
    """
    compute = config.compute
    if (compute.accelerator == "cuda" and not torch.cuda.is_available()) or (
        compute.accelerator == "mps" and not torch.backends.mps.is_available()
    ):
        name = compute.accelerator.upper()
        raise InputError(f"there is no {name} device here; want --compute.accelerator cpu")
    try:
        fabric = Fabric(accelerator=compute.accelerator, devices=compute.devices, precision=compute.precision)
    except Exception as error:  # Fabric raises whatever the library of the device raises
        cause = " ".join(str(error).split())
        raise InputError(
            f"compute.accelerator={compute.accelerator} with compute.devices={compute.devices} cannot be used"
            f" here ({cause}); want devices that this machine has, such as --compute.accelerator cpu"
        ) from error
    if compute.precision == "16-mixed" and fabric.device.type == "cpu":
        raise InputError("compute.precision is '16-mixed' on a CPU; want bf16-mixed or 32-true there")
    fabric.launch()
    return fabric


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
