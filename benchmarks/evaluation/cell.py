"""One cell of evaluation.py, in a process of its own: one method at one size.

The floor of retrieval is the product of all queries with all that they search, in blocks that stay in the
cache, nothing kept; that of clustering one product of all embeddings with as many rows as there are classes,
one of which each iteration of k-means takes. Floor and method alternate.

Memory is the peak of the resident memory (VmHWM) during the first pass above what was resident before it,
embeddings and libraries included; a pass over a few embeddings has loaded the libraries. During this pass
malloc returns what is freed at once, as in loss_step/cell.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import faiss
import torch
from torch import Tensor

from benchmarks.cells import Cell, Gauge, quartiles, returning_memory, send_outcome
from benchmarks.evaluation.data import Items, make_items, num_classes
from benchmarks.evaluation.methods import CLUSTERING, METHODS, Values

FEW = 2_000
"""Embeddings that load what there is to load."""
SLOW = 5.0
"""Seconds from which on a first pass is like any other."""
BLOCKS = ((1024, 512), (1024, 1024), (1024, 2048), (4096, 4096))
"""Queries and gallery items of one product of the floor; the fastest counts."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        method, size, random, queries: the cell; queries 0: each embedding is one.
        threads: of torch and faiss; 0 leaves them as they are.
        seconds: passes and floors are repeated for so long, and `least` times at least.
        least: >= 1.
    """

    method: str
    size: int
    random: bool
    queries: int
    threads: int
    seconds: float
    least: int


def run(request: Request, connection: Connection) -> None:
    """Send what was measured, or why it could not be; the whole life of a cell's process."""
    send_outcome(measure, request, connection, device="cpu")


def measure(request: Request) -> Cell:
    """What was measured, as plain numbers."""
    if request.threads:
        torch.set_num_threads(request.threads)
        faiss.omp_set_num_threads(request.threads)
    few = min(FEW, request.size)
    METHODS[request.method](make_items(few, random=request.random, queries=few // 2 * bool(request.queries)))
    items = make_items(request.size, random=request.random, queries=request.queries)
    floor = Floor(items, clustering=request.method in CLUSTERING)
    before = floor.measure()
    with returning_memory():
        gauge = Gauge(torch.device("cpu"))
        first, values = _timed(request.method, items)
        extra = gauge.peak()
    rounds = [(before, first)] if first > SLOW else []
    start = time.perf_counter()
    while len(rounds) < request.least or time.perf_counter() - start < request.seconds:
        rounds.append((floor.measure(), _timed(request.method, items)[0]))
    return {
        "status": "measured",
        "values": values,
        "embeddings_bytes": request.size * items.embeddings.shape[1] * items.embeddings.element_size(),
        "extra_bytes": extra,
        "passes": len(rounds),
        "seconds": quartiles([taken for _, taken in rounds]),
        "floor_seconds": quartiles([least for least, _ in rounds]),
        "floor_block": floor.block,
        "to_floor": quartiles([taken / least for least, taken in rounds]),
    }


class Floor:
    """Products of all queries with all that they search, again and again, in the best of some blocks."""

    def __init__(self, items: Items, *, clustering: bool) -> None:
        self.left = items.embeddings
        self.right = items.searched
        if clustering:
            self.right = self.right[: num_classes(len(self.left))]
        some = self.left[:8192], self.right[:8192]
        self.block = min(BLOCKS, key=lambda block: min(_products(*some, block) for _ in range(2)))

    def measure(self) -> float:
        """Seconds of all products."""
        return _products(self.left, self.right, self.block)


def _products(left: Tensor, right: Tensor, block: tuple[int, int]) -> float:
    out = torch.empty(block[0] * block[1])
    start = time.perf_counter()
    for rows in left.split(block[0]):
        for columns in right.split(block[1]):
            shape = len(rows), len(columns)
            torch.mm(rows, columns.T, out=out[: shape[0] * shape[1]].view(shape))
    return time.perf_counter() - start


def _timed(method: str, items: Items) -> tuple[float, Values]:
    start = time.perf_counter()
    values = METHODS[method](items)
    return time.perf_counter() - start, values
