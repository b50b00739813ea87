"""Devices of a run: a Fabric on them, memory that is kept between steps, and a compiler that works."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric

from tuplet.config import RunConfig
from tuplet.errors import DeviceError, SettingsError, one_line
from tuplet.training.accelerators import choose_device

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def launch(config: RunConfig) -> Fabric:
    """Return a Fabric on the devices that the config names, and start its other ranks.

    Raises:
        DeviceError: there is no such device.
        SettingsError: the precision does not fit the device.
    """
    compute = config.compute
    choose_device(compute.accelerator)
    try:
        fabric = Fabric(accelerator=compute.accelerator, devices=compute.devices, precision=compute.precision)
    except Exception as error:  # Fabric raises whatever the library of the device raises
        raise DeviceError(
            f"compute.accelerator={compute.accelerator} with compute.devices={compute.devices} cannot be used"
            f" here ({one_line(error, None)}); want devices that this machine has, such as"
            " --compute.accelerator cpu",
            subject="compute.devices",
            given=compute.devices,
        ) from error
    if compute.precision == "16-mixed" and fabric.device.type == "cpu":
        raise SettingsError(
            "compute.precision is '16-mixed' on a CPU; want bf16-mixed or 32-true there",
            subject="compute.precision",
            given=compute.precision,
            wanted=("bf16-mixed", "32-true"),
        )
    fabric.launch()
    return fabric


@contextmanager
def keeping_memory(device: torch.device) -> Iterator[None]:
    """Keep memory that one training step on the CPU frees for the next, inside the block.

    Otherwise glibc returns every block above 32 MiB to the system, such as a feature map of ResNet-50, and
    the system clears each page again in the next step. Other C libraries and devices are left alone. Free
    memory goes back to the system at the end.

    Args:
        device: on which the network trains.
    """
    libc = _glibc() if device.type == "cpu" else None
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)  # no blocks of their own for large sizes: they are unmapped when freed
    libc.mallopt(_TRIM_THRESHOLD, -1)  # and never shrink the heap
    try:
        yield
    finally:
        # glibc's default number of mappings, and the largest thresholds that it would set by itself.
        libc.mallopt(_MMAP_MAX, 1 << 16)
        libc.mallopt(_MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(_TRIM_THRESHOLD, 1 << 26)
        libc.malloc_trim(0)


def require_compiler(device: torch.device) -> None:
    """Raise an error if torch.compile does not work here.

    Args:
        device: on which the network trains.

    Raises:
        DeviceError: for example, there is no C++ compiler.
    """
    try:
        # Without torch's cache on disk: it may hold this function from when there was a compiler.
        shifted = torch.compile(_shifted, options={"force_disable_caches": True})
        shifted(torch.zeros(8, device=device))
    except Exception as error:  # the compilers of each device fail in ways of their own
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceError(
            f"compute.compile is True and torch.compile does not work here ({cause}); want a C++ compiler"
            " such as g++, and Triton for a GPU, or compute.compile False",
            subject="compute.compile",
        ) from error


def _shifted(numbers: torch.Tensor) -> torch.Tensor:
    return numbers * 2.0 + 1.0


def _glibc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libc.so.6")
    except OSError:
        return None
