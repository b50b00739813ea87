"""What evaluation costs: retrieval and clustering metrics, beside other libraries and the bare products.

    python -m benchmarks.evaluation --threads 2 --json docs/results/evaluation/cpu.json

Called again, it measures what the file does not hold yet. Every method at every size runs in a process of
its own, where the floor and the method alternate; evaluation/cell.py says what the floor is and how memory
is counted. Embeddings are class centres with noise, D = 512, Recall@1 about 0.8 (`--random`: noise alone), as
many as the test images of CUB-200-2011 and Stanford Online Products, with as many classes. A larger size is
measured on `--queries` of them against all others, and the cells say so.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.cells import Cell, missing_cells, open_report, run_cell, write_report
from benchmarks.evaluation.cell import Request, run
from benchmarks.evaluation.data import CUB, SOP
from benchmarks.evaluation.methods import CLUSTERING, METHODS, RETRIEVAL
from benchmarks.pages import bytes_text, machine_line, print_table, spread

TITLES = {
    "tuplet": "tuplet retrieval_metrics",
    "pml_faiss": "AccuracyCalculator, faiss",
    "pml_custom": "AccuracyCalculator, CustomKNN",
    "torch_topk": "torch.topk of 1,001",
    "faiss_search": "faiss IndexFlatIP, search only",
    "tuplet_clustering": "tuplet clustering_metrics",
    "faiss_clustering": "faiss.Kmeans, scikit-learn NMI",
    "sklearn_clustering": "scikit-learn KMeans, NMI, AMI",
}
SAME = 1e-6
"""Values of a metric that lie closer are the same."""
MOST_FOR_SKLEARN = 10_000
"""Embeddings beyond which scikit-learn's clustering takes longer than all else together."""


@dataclass(frozen=True)
class Arguments:
    """Time evaluation, one process a cell."""

    sizes: tuple[int, ...] = (CUB, SOP)
    """Embeddings; 500000 takes long."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Of tuplet, pml_faiss, pml_custom, torch_topk, faiss_search, and {tuplet,faiss,sklearn}_clustering."""
    random: bool = False
    """Noise without classes."""
    queries: int = 20_000
    """Beyond 100,000 embeddings, so many search all others; 0: all search all."""
    seconds: float = 3.0
    """Passes of a cell are repeated for so long."""
    least: int = 1
    """Passes of a cell at least."""
    threads: int = 0
    """Threads of torch and faiss; 0 leaves what the environment says."""
    json: Path | None = None
    """Write every number here, and measure no cell again that is already here."""


def main(arguments: Arguments) -> None:
    """Measure every cell, then print the tables."""
    if unknown := sorted(set(arguments.methods) - set(METHODS)):
        sys.exit(f"--methods has {', '.join(unknown)}; want some of {', '.join(METHODS)}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # for the processes of the cells
    settings = {**asdict(arguments), "json": str(arguments.json or "")}
    same = ("commit", "dirty", "processor", "threads", "torch", "faiss-cpu")
    report = open_report(arguments.json, "cpu", settings, same=same)
    cells: list[Cell] = report["cells"]
    for cell in _missing(cells, arguments):
        cell |= _measured(cell, arguments)
        cells.append(cell)
        print(*row(cell), sep="  ", file=sys.stderr, flush=True)
        write_report(arguments.json, report)
    cells.sort(key=lambda one: (one["size"], one["random"], list(METHODS).index(one["method"])))
    _print(cells, report["environment"])


def _missing(cells: list[Cell], arguments: Arguments) -> list[Cell]:
    wanted = [
        (method, size, arguments.random, arguments.queries if size > 100_000 else 0)
        for size in sorted(arguments.sizes)
        for method in METHODS
        if method in arguments.methods
    ]
    return missing_cells(cells, ("method", "size", "random", "queries"), wanted)


def _measured(cell: Cell, arguments: Arguments) -> Cell:
    if cell["method"] in CLUSTERING and cell["queries"]:
        return {"status": "not run: takes hours"}
    if cell["method"] == "sklearn_clustering" and cell["size"] > MOST_FOR_SKLEARN:
        return {"status": f"not run: measured up to {MOST_FOR_SKLEARN:,} embeddings"}
    request = Request(
        **cell, threads=arguments.threads, seconds=arguments.seconds, least=max(1, arguments.least)
    )
    return run_cell(run, request, preload=["benchmarks.evaluation.cell"])


def _print(cells: list[Cell], environment: dict[str, Any]) -> None:
    headings = ("embeddings", "method", "time", "to the products", "extra memory", "passes")
    print_table("A pass: median (quartiles)", headings, map(row, cells), left=["method"])
    values = [
        (_size(cell), TITLES[cell["method"]], name, f"{value:.6f}", difference)
        for cell in cells
        for name, value, difference in compared(cell, cells)
    ]
    headings = ("embeddings", "method", "metric", "value", "to tuplet's")
    print_table("Values", headings, values, left=["method", "metric"])
    print(machine_line(environment, "faiss-cpu", "pytorch-metric-learning"))


def compared(cell: Cell, cells: list[Cell]) -> list[tuple[str, float, str]]:
    """Name and value of each metric of a cell, and how far it is from tuplet's, or "" for tuplet itself."""
    ours = "tuplet" if cell["method"] in RETRIEVAL else "tuplet_clustering"
    place = [cell[key] for key in ("size", "random", "queries")]
    known: dict[str, float] = {}
    for other in cells:
        if other["method"] == ours and [other[key] for key in ("size", "random", "queries")] == place:
            known = other.get("values", {})
    rows = []
    for name, value in cell.get("values", {}).items():
        difference = value - known.get(name, float("nan"))
        note = "same" if abs(difference) < SAME else f"{difference:+.2e}"
        rows.append((name, value, "" if cell["method"] == ours or name not in known else note))
    return rows


def row(cell: Cell) -> tuple[str, ...]:
    """Embeddings, method, time, ratio to the products, extra memory, passes."""
    head = _size(cell), TITLES[cell["method"]]
    if cell["status"] != "measured":
        return *head, cell["status"], "", "", ""
    ratio, memory = f"{cell['to_floor']['median']:.3g}", bytes_text(cell["extra_bytes"])
    return *head, spread(cell["seconds"]), ratio, memory, str(cell["passes"])


def _size(cell: Cell) -> str:
    kind = " random" if cell["random"] else ""
    queries = f", {cell['queries']:,} queries" if cell["queries"] else ""
    return f"{cell['size']:,}{kind}{queries}"


if __name__ == "__main__":
    main(tyro.cli(Arguments))
