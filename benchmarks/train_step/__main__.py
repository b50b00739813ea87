"""What a training step costs, from JPEG files to moved weights, beside a plain loop and its floor.

    python -m benchmarks.train_step --threads 2 --json docs/results/train_step/cpu.json

Called again, it measures what the file does not hold yet. A cell is a recipe in one precision, trained on
photographs generated here, with as many classes as the recipe's data set trains on, from random weights,
after the warm-up. train_step/cell.py says how steps alternate and what the floor is, train_step/plain.py is
the plain loop, float32 in every cell.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
import tyro
from PIL import Image

from benchmarks.cells import Cell, missing_cells, open_report, run_cell, write_report
from benchmarks.pages import machine_line, print_table
from benchmarks.train_step.cell import AHEAD, WARM, Request, run
from benchmarks.train_step.plain import PARTS, Photographs
from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.recipes.catalogue import recipe

CLASSES = {"cub": 100, "cars": 98, "sop": 11_318, "folder": 98}
"""That train, of each data set."""
PHOTOGRAPH = (500, 375)
"""Pixels."""
FILES = 256


@dataclass(frozen=True)
class Arguments:
    """Time training steps, one process a loop."""

    recipes: tuple[str, ...] = ("cars-resnet50", "sop-resnet50", "cars-bn-inception", "sop-bn-inception")
    """Whose data are cub, cars, sop or, as if they were half of cars, a folder."""
    precisions: tuple[str, ...] = ("32-true", "bf16-mixed")
    """Of tuplet's side."""
    compiled: bool = False
    """tuplet's backbone runs through torch.compile."""
    steps: int = 5
    """That count, >= 1."""
    batch_size: int = 32
    """Photographs a step."""
    image_size: int = 224
    """Side of what the network sees, pixels."""
    photograph: tuple[int, int] = PHOTOGRAPH
    """Width and height of the files, pixels."""
    workers: int = 2
    """Processes that decode, of each loop."""
    threads: int = 2
    """Of torch."""
    accelerator: str = "auto"
    """auto, cpu or cuda."""
    json: Path | None = None
    """Write every number here, and measure no cell again that is already here."""


def main(arguments: Arguments) -> None:
    """Measure every cell, then print the table."""
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # for the processes of the cells
    cuda = torch.cuda.is_available() and arguments.accelerator != "cpu"
    size = list(arguments.photograph)
    settings = {**asdict(arguments), "json": str(arguments.json or ""), "photograph": size}
    same = ("workers", "steps", "batch_size", "image_size", "photograph")
    report = open_report(arguments.json, "cuda" if cuda else "cpu", settings, same_settings=same)
    cells: list[Cell] = report["cells"]
    with TemporaryDirectory() as folder:
        paths = photographs(Path(folder), FILES, arguments.photograph, seed=0)
        for cell in _missing(cells, arguments):
            config = _config(cell, arguments)
            cell["classes"] = CLASSES[config.data.source]
            chosen = _drawn(paths, cell["classes"], config.data.batch_size, arguments.steps)
            request = Request(config, chosen, steps=arguments.steps, threads=arguments.threads)
            cell |= run_cell(run, request, preload=["benchmarks.train_step.cell"])
            cells.append(cell)
            print(*row(cell), sep="  ", file=sys.stderr, flush=True)
            write_report(arguments.json, report)
    _print(cells, report["environment"])


def photographs(folder: Path, count: int, size: tuple[int, int], *, seed: int) -> tuple[str, ...]:
    """Paths of new JPEG files of smooth, coloured noise with some grain: 70 kB each, as photographs have."""
    random, files = np.random.default_rng(seed), []
    width, height = size
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = smooth + random.normal(0, 8, (height, width, 1))
        path = folder / f"{number}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        files.append(str(path))
    return tuple(files)


def _drawn(paths: tuple[str, ...], num_classes: int, batch_size: int, steps: int) -> Photographs:
    count = batch_size * (1 + WARM + steps + AHEAD)
    labels = np.random.default_rng(1).integers(0, num_classes, count).tolist()
    return Photographs((paths * (count // len(paths) + 1))[:count], tuple(labels), num_classes)


def _config(cell: Cell, arguments: Arguments) -> RunConfig:
    given = recipe(cell["recipe"])
    if not timm.is_model(given.model.backbone) or given.data.source not in CLASSES:
        sys.exit(f"--recipes has {cell['recipe']}; want data of {', '.join(CLASSES)} and a model of timm")
    changes = {
        "model.pretrained": False,
        "compute.precision": cell["precision"],
        "compute.compile": cell["compiled"],
        "compute.num_workers": arguments.workers,
        "data.batch_size": arguments.batch_size,
        "data.image_size": arguments.image_size,
        "compute.accelerator": arguments.accelerator,
        "evaluation.every_epochs": given.schedule.epochs,
    }
    return override(given, changes)


def _missing(cells: list[Cell], arguments: Arguments) -> list[Cell]:
    wanted = [(name, kind, arguments.compiled) for name in arguments.recipes for kind in arguments.precisions]
    return missing_cells(cells, ("recipe", "precision", "compiled"), wanted)


def _print(cells: list[Cell], environment: dict[str, Any]) -> None:
    title = f"A step: median; parts are {', '.join(PARTS)}"
    print_table(title, HEADINGS, map(row, cells), left=HEADINGS[:3], width=160)
    print(machine_line(environment))


HEADINGS = (
    "recipe",
    "classes",
    "tuplet in",
    "plain, images/s",
    "its parts, s",
    "tuplet, images/s",
    "its parts, s",
    "times as fast (quartiles)",
    "to floor",
)


def row(cell: Cell) -> tuple[str, ...]:
    """What stands below HEADINGS."""
    head = cell["recipe"], f"{cell['classes']:,}", kind(cell)
    if cell["status"] != "measured":
        return *head, cell["status"], *[""] * (len(HEADINGS) - 4)
    faster = cell["faster"]
    return (
        *head,
        *_side(cell, "plain"),
        *_side(cell, "tuplet"),
        f"{faster['median']:.2f} ({faster['q1']:.2f} to {faster['q3']:.2f})",
        f"{cell['to_floor']['median']:.2f}",
    )


def kind(cell: Cell) -> str:
    """How tuplet's side computed."""
    return str(cell["precision"]) + (", compiled" if cell["compiled"] else "")


def _side(cell: Cell, side: str) -> tuple[str, str]:
    parts = " + ".join(f"{cell[f'{side}_parts'][part]['median']:.2f}" for part in PARTS)
    return f"{cell['batch_size'] / cell[f'{side}_seconds']['median']:.2f}", parts


if __name__ == "__main__":
    main(tyro.cli(Arguments))
