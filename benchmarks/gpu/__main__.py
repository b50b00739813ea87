"""Measure tuplet on a GPU in eight minutes at most: tests, loss steps, training steps, hours of Table 7.

    python -m benchmarks.gpu --json docs/results/gpu/NAME.json

It runs the tests marked `cuda`, then the cells of benchmarks.loss_step (the HIST loss against the N x C x D
expansion, ProxyAnchor and ArcFace, with the floor by bandwidth beside), then training steps of ResNet-50 and
BN-Inception on random pixels: network, loss, backward and optimizer, without the decoding of images, beside
a plain loop in float32 with the expansion. The hours are those of the recipes' epochs at these images/s.
Parts that do not fit into the time are left out, and said to be.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from benchmarks.cells import describe_machine, quartiles, write_report
from benchmarks.floor import synchronize
from benchmarks.loss_step.methods import expansion
from tuplet import HISTLoss
from tuplet.config import ModelConfig
from tuplet.models.embedder import Embedder
from tuplet.recipes.catalogue import recipe
from tuplet.training.optimizers import build_optimizers

SETS = {"cub": (100, 5_864), "cars": (98, 8_054), "sop": (11_318, 59_551)}
"""Training classes and images of the data sets of Table 7."""
BACKBONES = {"resnet50": "resnet50.tv_in1k", "bn-inception": "bn_inception"}
HIST, EXPANDED = "tuplet", "plain loop"


@dataclass(frozen=True)
class Arguments:
    """Measure a GPU."""

    json: Path | None = None
    """Write every number here."""
    minutes: float = 8.0
    """Of all parts together."""
    device: str = "cuda"
    """cuda; or cpu, to see that the script works."""
    image_size: int = 224
    """Side of the images, pixels."""
    batch_sizes: tuple[int, ...] = (32, 128)
    """Images a step."""
    c: tuple[int, ...] = (98, 11_318, 1_000_000)
    """Classes of the loss step."""
    steps: int = 20
    """Of each training cell, after three that do not count."""


def main(arguments: Arguments) -> None:
    """Run all parts, and print what they gave."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU here; want one, or --device cpu to see that the script works")
    end = time.monotonic() + 60 * arguments.minutes
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    report: dict[str, Any] = {"device": name, "environment": describe_machine(arguments.device)}
    parts: dict[str, tuple[float, Callable[[float], Any]]] = {
        "tests": (0.3, _tests),
        "loss_step": (0.6, lambda seconds: _loss_step(arguments, seconds)),
        "training": (1.0, lambda seconds: _training(arguments, seconds)),
    }
    for part, (share, run) in parts.items():
        left = end - time.monotonic()
        report[part] = run(share * left) if left > 5 else "left out: no time"
        print(part, json.dumps(report[part], indent=1), flush=True)
        write_report(arguments.json, report)


def _tests(seconds: float) -> dict[str, Any]:
    options = ["-q", "-m", "cuda", "-n", "0", "tests/losses", "tests/training"]
    command = [sys.executable, "-m", "pytest", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"status": f"not done within {seconds:.0f} s"}
    return {"status": done.returncode, "end": done.stdout.splitlines()[-12:]}


def _loss_step(arguments: Arguments, seconds: float) -> dict[str, Any]:
    file = Path(f"{arguments.json or 'gpu.json'}.loss_step")
    command = [
        sys.executable,
        "-m",
        "benchmarks.loss_step",
        "--device",
        arguments.device,
        "--json",
        str(file),
    ]
    command += ["--seconds", "1", "--n", "32", "--c", *map(str, arguments.c)]
    command += ["--methods", "auto", "compiled", "plain", "expansion", "proxy_anchor", "arcface"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        status: object = done.returncode or "done"
    except subprocess.TimeoutExpired:
        status = f"stopped after {seconds:.0f} s"
    cells = json.loads(file.read_text())["cells"] if file.exists() else []
    file.unlink(missing_ok=True)
    return {"status": status, "cells": cells}


def _training(arguments: Arguments, seconds: float) -> dict[str, Any]:
    end = time.monotonic() + seconds
    cells = []
    for short in BACKBONES:
        for data, batch_size in [(data, size) for size in arguments.batch_sizes for data in ("cars", "sop")]:
            for method in (HIST, EXPANDED):
                cell: dict[str, Any] = {
                    "backbone": short,
                    "data": data,
                    "batch": batch_size,
                    "method": method,
                }
                if time.monotonic() < end:
                    try:
                        cell |= _steps(arguments, short, data, batch_size, method)
                    except torch.OutOfMemoryError:
                        cell["status"] = "out of memory"
                else:
                    cell["status"] = "left out: no time"
                cells.append(cell)
                if arguments.device == "cuda":
                    torch.cuda.empty_cache()
    return {"cells": cells, "hours": _hours(cells)}


def _steps(arguments: Arguments, short: str, data: str, batch_size: int, method: str) -> dict[str, Any]:
    device = torch.device(arguments.device)
    num_classes = SETS[data][0]
    config = recipe(f"{data}-{short}")
    torch.manual_seed(0)
    model = dataclasses.replace(config.model, backbone=BACKBONES[short], pretrained=False, weights=None)
    assert isinstance(model, ModelConfig)
    network = Embedder(**dataclasses.asdict(model)).to(device).train()
    loss = HISTLoss(num_classes, model.embedding_dim, hidden_dim=config.loss.hidden_dim).to(device)
    ours = method == HIST
    if ours:
        network.to(memory_format=torch.channels_last)
    optimizers = build_optimizers(network, loss, config.optimizer, capturable=device.type == "cuda")
    shape = (batch_size, 3, arguments.image_size, arguments.image_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    if ours:
        pixels = pixels.to(memory_format=torch.channels_last)
    labels = torch.randint(0, num_classes, (batch_size,), device=device)

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=ours):
            embeddings = network(pixels)
        value = loss(embeddings.float(), labels) if ours else expansion(loss, embeddings, labels)
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return value.detach()

    for _ in range(3):
        step()
    times = []
    for _ in range(arguments.steps):
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        times.append(time.perf_counter() - start)
    found = quartiles(times)
    return {"status": "measured", "seconds": found, "images_per_second": batch_size / found["median"]}


def _hours(cells: list[dict[str, Any]]) -> dict[str, float]:
    """Extrapolate the hours of a training of each recipe of Table 7, without decoding and evaluation."""
    hours = {}
    for short in BACKBONES:
        for data, (_, images) in SETS.items():
            # Cars and CUB have about as many classes.
            like = "sop" if data == "sop" else "cars"
            for cell in cells:
                same = (cell["backbone"], cell["data"], cell["batch"], cell["method"]) == (
                    short,
                    like,
                    32,
                    HIST,
                )
                if same and cell["status"] == "measured":
                    epochs = recipe(f"{data}-{short}").schedule.epochs
                    hours[f"{data}-{short}"] = epochs * images / cell["images_per_second"] / 3600
    return hours


if __name__ == "__main__":
    main(tyro.cli(Arguments))
