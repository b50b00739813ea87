"""Set up the devices of a run: launch a Fabric, keep memory between steps, and check torch.compile."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from tuplet.config import RunConfig
from tuplet.errors import DeviceError, SettingsError, one_line
from tuplet.training.accelerators import choose_device

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_DEATH_SIGNAL = 1  # of Linux's prctl


class DeviceMemoryError(DeviceError):
    """Raised where the memory of a GPU is too small for a training step."""

    one_rank_only = True


@contextmanager
def explaining_memory(config: RunConfig) -> Iterator[None]:
    """Raise a DeviceMemoryError, which says what takes less memory, if a GPU has too little for the block.

    Args:
        config: of the run.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"a step does not fit into the memory of the device ({one_line(error)}); want a smaller"
            " data.batch_size, data.accumulate, which divides the batch into parts, or compute.precision"
            " bf16-mixed",
            subject="data.batch_size",
            given=config.data.batch_size,
        ) from error


def launch(config: RunConfig, *, alone: bool = False) -> Fabric:
    """Return a Fabric on the devices that the config names, and start its other ranks.

    Under torchrun and Slurm, which start every rank, their numbers of processes and machines count.

    Args:
        config: its section compute is read.
        alone: this process works by itself and shares a queue, not a batch, with others.

    Raises:
        DeviceError: there is no such device, or nothing starts the ranks of the other machines.
        SettingsError: the precision does not fit the device, or the batch does not divide over the ranks.
    """
    compute = as_started(config).compute
    if alone and compute.num_processes > 1:
        raise SettingsError(
            f"{compute.num_processes} processes were started together; want this command once a device, each"
            " by itself: they share the work through its folder or --storage",
            subject="compute.devices",
            given=compute.num_processes,
            wanted=1,
        )
    choose_device(compute.accelerator)
    try:
        fabric = Fabric(
            accelerator=compute.accelerator,
            devices=compute.devices,
            num_nodes=compute.num_nodes,
            precision=compute.precision,
        )
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
    if TorchElasticEnvironment.detect():
        _end_with_parent()
    fabric.launch()
    return fabric


def as_started(config: RunConfig) -> RunConfig:
    """Return the config with the numbers of processes and machines that torchrun or Slurm started.

    The config of a run keeps what it was given, so that its folder can be read on any machine.

    Raises:
        DeviceError: several machines are asked for, and neither torchrun nor Slurm nor MASTER_ADDR and
            NODE_RANK say which they are.
        SettingsError: other numbers are asked for than were started, or the batch does not divide over them.
    """
    compute = config.compute
    started = _started_processes()
    if started is None:
        if compute.num_nodes > 1 and not {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
            raise DeviceError(
                f"compute.num_nodes is {compute.num_nodes}, and nothing starts the processes of other"
                f" machines; want torchrun --nnodes {compute.num_nodes} or Slurm (docs/many-machines.md), or"
                " --compute.num-nodes 1",
                subject="compute.num_nodes",
                given=compute.num_nodes,
            )
        return config
    by, devices, num_nodes = started
    for name, asked, there in (
        ("compute.devices", compute.devices, devices),
        ("compute.num_nodes", compute.num_nodes, num_nodes),
    ):
        if asked not in (1, there):
            raise SettingsError(
                f"{name} is {asked}, but {by} started {devices} processes on each of {num_nodes} machines;"
                f" want {there}, or leave it out",
                subject=name,
                given=asked,
                wanted=there,
            )
    return replace(config, compute=replace(compute, devices=devices, num_nodes=num_nodes))


def _started_processes() -> tuple[str, int, int] | None:
    """Return the launcher of this process, its processes per machine and its machines; None without one."""
    given = os.environ
    if TorchElasticEnvironment.detect():
        return "torchrun", int(given["LOCAL_WORLD_SIZE"]), int(given["GROUP_WORLD_SIZE"])
    if SLURMEnvironment.detect() and "SLURM_NNODES" in given:
        num_nodes = int(given["SLURM_NNODES"])
        return "Slurm", int(given["SLURM_NTASKS"]) // num_nodes, num_nodes
    return None


def _end_with_parent() -> None:
    """Let the system end this process with the agent of torchrun that started it, where Linux can.

    Otherwise the processes of a killed agent continue to train, and the other agents wait forever.
    """
    parent, libc = os.getppid(), _glibc()
    if libc is not None:
        libc.prctl(_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it ended just before
            sys.exit(1)


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
