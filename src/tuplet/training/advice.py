"""Notes on the speed and the memory of a config on this machine, shown before training; none is an error."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from tuplet.config import RunConfig
from tuplet.losses.build import build_loss
from tuplet.models.embedder import Embedder
from tuplet.training.devices import as_started

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}
"""Of /proc/cpuinfo: instructions on bfloat16, of x86 and of ARM."""


def compute_notes(config: RunConfig, device: torch.device, num_classes: int | None = None) -> list[str]:
    """Return what a user should know of the precision and the memory that a config asks for.

    Args:
        config: of a run.
        device: on which it computes.
        num_classes: training classes; None if nothing is trained, which needs little memory.
    """
    notes = []
    if config.compute.precision == "bf16-mixed" and not has_native_bf16(device):
        notes.append(
            f"this {device.type.upper()} has no native bfloat16, so bf16-mixed is slower here than float32,"
            " up to 14 times; use --compute.precision 32-true"
        )
    if num_classes is not None:
        started = as_started(config)
        needed, free = bytes_needed(started, num_classes), free_bytes(device)
        if device.type == "cpu":  # the processes of a machine share its memory
            needed *= started.compute.devices
        if free is not None and needed > free:
            notes.append(
                f"the weights, gradients and optimizer of {num_classes:,} classes take {_gigabytes(needed)},"
                f" without any image, and {_gigabytes(free)} are free on {device.type}; use"
                " --optimizer.class-update rowwise, more devices with --compute.shard-classes, or a smaller"
                " --model.embedding-dim"
            )
    return notes


def has_native_bf16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether a device computes with bfloat16 itself; True if that cannot be found out.

    Args:
        device: CPU or CUDA; others count as able.
        cpuinfo: where Linux lists what the processor can do.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not cpuinfo.is_file():
        return True
    flags = next(
        (line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))), ""
    )
    return not flags or bool(_BF16_FLAGS & set(flags.split()))


def bytes_needed(config: RunConfig, num_classes: int) -> int:
    """Return the bytes that weights, gradients and optimizer take on each device, before any image.

    Args:
        config: of a run.
        num_classes: training classes, C >= 1.
    """
    # Without shards: they need the other processes. On the device "meta" parameters have shapes only.
    alone = replace(config.compute, shard_classes=False, devices=1, num_nodes=1)
    whole = replace(config, compute=alone)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = replace(config.model, pretrained=False, weights=None)
        network, loss = Embedder(**asdict(model)), build_loss(whole, num_classes)
    rows = sum(_bytes(parameter) for parameter in loss.class_parameters().values())
    others = sum(map(_bytes, [*network.parameters(), *loss.parameters()])) - rows
    moments = 1 if config.optimizer.name == "sgd" else 2
    rowwise = config.optimizer.class_update == "rowwise"
    gradients = config.loss.class_fraction if rowwise else 1.0  # of drawn classes they are sparse
    of_rows = rows * (1 + gradients + (0 if rowwise else moments))
    num_shares = config.compute.num_processes if config.compute.shard_classes else 1
    return round(others * (2 + moments) + of_rows / num_shares)


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on a device; None if that cannot be found out."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    text = limit.read_text().strip() if limit.is_file() else "max"  # of the container, if this is one
    return min(free, int(text)) if text.isdecimal() else free


def _bytes(parameter: torch.Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB"
