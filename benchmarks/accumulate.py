"""Gradient caching: memory, time and gradients of a batch in parts against the whole.

    python -m benchmarks.accumulate --batch-size 128 --parts 1 8

Each number of parts runs in a process of its own. On a CPU memory is the peak of the resident set above what
was there before the first step; on a GPU what torch allocated at most.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import tyro
from lightning_fabric import Fabric

from benchmarks.cells import Cell, Gauge, run_cell, send_outcome, write_report
from benchmarks.floor import synchronize
from tuplet.losses.hist import HISTLoss
from tuplet.models.embedder import Embedder
from tuplet.training.devices import keeping_memory
from tuplet.training.environment import describe_environment
from tuplet.training.gradient_cache import backward_in_parts


@dataclass(frozen=True)
class Arguments:
    """Measure a forward and backward pass of a batch in parts."""

    backbone: str = "resnet50"
    """Any timm model name; its weights are random."""
    image_size: int = 224
    """Side of the images, pixels."""
    batch_size: int = 128
    """N, a multiple of every number of parts."""
    parts: tuple[int, ...] = (1, 8)
    """Numbers of parts; the gradients of the others are compared with those of the first."""
    classes: int = 98
    """C."""
    json: Path | None = None
    """Write what was measured here too."""


@dataclass(frozen=True)
class Request:
    """One cell: a number of parts."""

    arguments: Arguments
    num_parts: int


def main(arguments: Arguments) -> None:
    """Run every number of parts and print a table."""
    cells = {
        parts: run_cell(_run, Request(arguments, parts), preload=["benchmarks.cells", "tuplet.losses.hist"])
        for parts in arguments.parts
    }
    environment = describe_environment(_device(), 1)
    print(f"{environment['processor']}, {environment['device']}, torch {environment['torch']}")
    print(f"{arguments.backbone}, {arguments.image_size} px, N = {arguments.batch_size}, BatchNorm frozen")
    print(f"{'parts':>5}  {'images a part':>13}  {'peak MB':>9}  {'seconds':>8}  {'gradient, relative':>18}")
    first = next(iter(cells.values())).get("gradients")
    for parts, cell in cells.items():
        if "status" in cell:
            print(f"{parts:>5}  {arguments.batch_size // parts:>13}  {cell['status']}")
            continue
        gradients = cell.pop("gradients")
        distance = "" if first is None else f"{float((gradients - first).norm() / first.norm()):.1e}"
        cell["relative"] = distance
        size = arguments.batch_size // parts
        print(f"{parts:>5}  {size:>13}  {cell['bytes'] / 1e6:>9.0f}  {cell['seconds']:>8.2f}  {distance:>18}")
    settings = asdict(arguments) | {"json": None}
    write_report(arguments.json, {"arguments": settings, "environment": environment, "cells": cells})


def _run(request: Request, connection: Connection) -> None:
    send_outcome(_measure, request, connection, device=_device().type)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _measure(request: Request) -> Cell:
    arguments, device = request.arguments, _device()
    torch.manual_seed(0)
    fabric = Fabric(accelerator=device.type, devices=1)
    embedder = Embedder(arguments.backbone, 512, pretrained=False, freeze_batch_norm="statistics")
    network: Any = fabric.setup_module(embedder.to(memory_format=torch.channels_last))
    loss = HISTLoss(arguments.classes, 512).to(device)
    size = (arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8).to(device, memory_format=torch.channels_last)
    labels = (torch.arange(arguments.batch_size) % arguments.classes).to(device)

    def terms(embeddings: torch.Tensor) -> tuple[torch.Tensor, None]:
        return loss(embeddings, labels), None

    def step() -> None:
        if request.num_parts == 1:
            fabric.backward(loss(network(pixels), labels))
        else:
            backward_in_parts(fabric, network, pixels, request.num_parts, terms)

    with keeping_memory(device):
        gauge = Gauge(device)
        step()
        peak = gauge.peak()
        gradients = torch.cat([p.grad.flatten().cpu() for p in embedder.parameters() if p.grad is not None])
        embedder.zero_grad(set_to_none=False)
        began = time.perf_counter()
        step()
        synchronize(device)
        seconds = time.perf_counter() - began
    return {"bytes": peak, "seconds": seconds, "gradients": gradients}


if __name__ == "__main__":
    main(tyro.cli(Arguments))
