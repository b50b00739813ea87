"""What a training step of the HIST loss costs, forward and backward, beside other ways and its floor.

    python -m benchmarks.loss_step --threads 2 --minutes 12 --json docs/results/loss_step/cpu.json

Called again, it measures what the file does not hold yet.

Every loss at every N (samples) and C (classes) runs in a process of its own, where floor and step
alternate; floor.py says what the floor is, loss_step/cell.py how memory is counted. The ratio to the
floor is the median over neighbours in one run. So is the ratio to HISTLoss where a default step is short and
fits into memory beside the other loss; elsewhere it is the quotient of two medians, marked ~. Embeddings
and parameters are random, labels drawn from all classes, D = h = 512, two layers, float32.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.cells import Cell, available_bytes, missing_cells, open_report, run_cell, write_report
from benchmarks.loss_step.cell import Request, run
from benchmarks.loss_step.methods import METHODS, OTHERS, WIDTH, bytes_needed
from benchmarks.pages import bytes_text, duration, machine_line, print_table, spread

PAIRED_SECONDS = 1.5
"""Chunked steps no longer than this alternate with those of another loss."""
TITLES = {
    "floor": "floor",
    "auto": "HISTLoss",
    "compiled": "HISTLoss, compiled",
    "plain": "HISTLoss, plain",
    "expansion": "N x C x D as published",
    "proxy_anchor": "ProxyAnchorLoss",
    "arcface": "ArcFaceLoss",
    "soft_triple": "SoftTripleLoss",
}
FEWEST_TO_GO_BY = 5_000
"""Classes from which on a step takes time in proportion to them."""


@dataclass(frozen=True)
class Arguments:
    """Time the HIST loss and others, one process a cell."""

    n: tuple[int, ...] = (32, 128, 512)
    """Samples in a batch."""
    c: tuple[int, ...] = (100, 11_318, 100_000, 1_000_000)
    """Classes."""
    methods: tuple[str, ...] = METHODS
    """Of auto, compiled, plain, expansion, proxy_anchor, arcface, soft_triple."""
    seconds: float = 3.0
    """Steps of a cell are repeated for so long, three times at least."""
    repeats: int = 0
    """Steps of a cell, if above 0, whatever that takes."""
    longest: float = 60.0
    """Leave a cell out if four steps would take more seconds, going by the same loss with fewer classes."""
    device: str = "cpu"
    """cpu or cuda."""
    threads: int = 0
    """Threads of torch; 0 leaves what the environment says."""
    minutes: float = 0.0
    """Start no cell after so many minutes, if above 0."""
    json: Path | None = None
    """Write every number here, and measure no cell again that is already here."""


def main(arguments: Arguments) -> None:
    """Measure every cell, then print the table."""
    unknown = sorted(set(arguments.methods) - set(METHODS))
    if unknown:
        sys.exit(f"--methods has {', '.join(unknown)}; want some of {', '.join(METHODS)}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # for the processes of the cells
    report = open_report(arguments.json, arguments.device, _settings(arguments))
    cells: list[Cell] = report["cells"]
    start = time.monotonic()
    for cell in _missing(cells, arguments):
        if arguments.minutes and time.monotonic() - start > 60 * arguments.minutes:
            print(f"{arguments.minutes:g} minutes are over; call again for the rest", file=sys.stderr)
            break
        cell |= _measured(cell, cells, arguments)
        _compare(cell, cells)
        cells.append(cell)
        cells.sort(key=lambda one: (one["c"], one["n"], ("floor", *METHODS).index(one["method"])))
        print(*row(cell), sep="  ", file=sys.stderr, flush=True)
        write_report(arguments.json, report)
    _print(cells, report["environment"])


def _missing(cells: list[Cell], arguments: Arguments) -> list[Cell]:
    # What matters most comes first, for time may run out; and default before what is compared with it.
    wanted = [
        (method, num_samples, num_classes)
        for group in (("floor", "auto", "compiled"), ("plain", "expansion"), OTHERS)
        for num_classes in sorted(arguments.c)
        for num_samples in arguments.n
        for method in group
        if method in ("floor", *arguments.methods)
    ]
    return missing_cells(cells, ("method", "n", "c"), wanted)


def _settings(arguments: Arguments) -> dict[str, Any]:
    return {"width": WIDTH, "dtype": "float32", **asdict(arguments), "json": str(arguments.json or "")}


def _measured(cell: Cell, before: list[Cell], arguments: Arguments) -> Cell:
    method, num_samples, num_classes = cell["method"], cell["n"], cell["c"]
    room = available_bytes(arguments.device)
    need = bytes_needed(method, num_samples, num_classes)
    if need > room:
        return {"status": f"not run: needs {bytes_text(need)}"}
    expected = 4 * _expected_seconds(cell, before)
    if expected > arguments.longest:
        return {"status": f"not run: four steps take {expected:.0f} s"}
    default = _default(cell, before)
    beside = need + bytes_needed("auto", num_samples, num_classes)
    paired = beside < room and default is not None and default["step_seconds"]["q1"] <= PAIRED_SECONDS
    request = Request(
        method=method,
        num_samples=num_samples,
        num_classes=num_classes,
        device=arguments.device,
        threads=arguments.threads,
        seconds=arguments.seconds,
        repeats=arguments.repeats,
        paired=paired,
    )
    return run_cell(run, request, preload=["benchmarks.loss_step.cell", "pytorch_metric_learning.losses"])


def _expected_seconds(cell: Cell, before: list[Cell]) -> float:
    known = [
        other["step_seconds"]["q1"] * cell["c"] / other["c"]
        for other in before
        if (other["method"], other["n"]) == (cell["method"], cell["n"])
        and "step_seconds" in other
        and other["c"] >= FEWEST_TO_GO_BY
    ]
    return known[-1] if known else 0.0


def _default(cell: Cell, before: list[Cell]) -> Cell | None:
    for other in before:
        same = (other["method"], other["n"], other["c"]) == ("auto", cell["n"], cell["c"])
        if same and "step_seconds" in other:
            return other
    return None


def _compare(cell: Cell, before: list[Cell]) -> None:
    default = _default(cell, before)
    if default is not None and "step_seconds" in cell and "to_default" not in cell:
        cell["to_default_medians"] = cell["step_seconds"]["median"] / default["step_seconds"]["median"]


def _print(cells: list[Cell], environment: dict[str, Any]) -> None:
    headings = ("C", "N", "loss", "time", "extra memory", "to HISTLoss", "to floor", "steps")
    print_table("A step, forward and backward: median (quartiles)", headings, map(row, cells), left=["loss"])
    print(machine_line(environment))


def row(cell: Cell) -> tuple[str, ...]:
    """Classes, samples, loss, time, extra memory, ratio to HISTLoss, ratio to the floor, steps."""
    head = f"{cell['c']:,}", str(cell["n"]), TITLES[cell["method"]]
    if cell["method"] == "floor" and cell["status"] == "measured":
        memory = cell["products_from_memory_seconds"]["median"]
        note = f"products from memory {duration(memory)}"
        return *head, spread(cell["floor_seconds"]), note, "", "", str(cell["steps"])
    if cell["status"] != "measured":
        return *head, cell["status"], "", "", "", ""
    if "to_default" in cell:
        ratio = f"{cell['to_default']['median']:.3g}"
    else:
        ratio = f"~{cell['to_default_medians']:.3g}" if "to_default_medians" in cell else ""
    time, memory = spread(cell["step_seconds"]), bytes_text(cell["extra_bytes"])
    return *head, time, memory, ratio, f"{cell['to_floor']['median']:.3g}", str(cell["steps"])


if __name__ == "__main__":
    main(tyro.cli(Arguments))
