"""The least time a step of HIST can take on this machine: its matrix products, and the bytes it must move.

    matrix products    nine of N x C x D multiply-adds: x^2 by precision, x by scaled mean, features by output
                       weights, and two gradients of each
    bytes              three parameters of C x D floats are read forward and again backward, three gradients
                       are written: 9 C D floats

Products are timed on chunks of classes that stay in the cache, each kind of shape at its best chunk; bytes at
the copy bandwidth, read and written, between two arrays bigger than the last cache.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

COPY_BYTES = 1 << 27
CHUNKS = {"cpu": (256, 512, 1024, 2048), "cuda": (2048, 8192, 32768, 65536)}
LONG_ENOUGH = {"cpu": 1.5e8, "cuda": 1e11}
"""Multiply-adds timed together."""
MOST_FROM_MEMORY = 1 << 16
"""Classes of the products from memory; 134 MB an operand. More are computed from these."""


@dataclass(frozen=True)
class FloorTime:
    """Seconds of a step. products + moves is the floor."""

    products: float
    moves: float

    @property
    def total(self) -> float:
        """The floor."""
        return self.products + self.moves


class Floor:
    """Measures the floor again and again, on operands it allocates once."""

    def __init__(self, num_samples: int, num_classes: int, width: int, device: torch.device) -> None:
        self.num_samples, self.num_classes, self.width, self.device = num_samples, num_classes, width, device
        self.chunks = sorted({min(chunk, num_classes) for chunk in CHUNKS[device.type]})
        self.products = {chunk: self._products(chunk) for chunk in self.chunks}
        self.source = torch.ones(COPY_BYTES // 4, device=device)
        self.target = torch.zeros(COPY_BYTES // 4, device=device)

    def measure(self) -> FloorTime:
        """One measurement of both parts."""
        per_class = [min(self._per_class(chunk, kind) for chunk in self.chunks) for kind in range(3)]
        copy = self._seconds(lambda: self.target.copy_(self.source), times=1)
        moved = 9 * self.num_classes * self.width * 4
        return FloorTime(3 * sum(per_class) * self.num_classes, copy * moved / (2 * COPY_BYTES))

    def from_memory(self) -> float:
        """Seconds of the nine products on operands of all classes, read from memory if they are that big."""
        rows = min(self.num_classes, MOST_FROM_MEMORY)
        seconds = [self._seconds(product, times=1, warm=False) for product in self._products(rows)]
        return 3 * sum(seconds) * self.num_classes / rows

    def _products(self, rows: int) -> list[Callable[[], object]]:
        N, D, device = self.num_samples, self.width, self.device
        classes, x = torch.randn(rows, D, device=device), torch.randn(N, D, device=device)
        columns, scores = x.T.contiguous(), torch.randn(rows, N, device=device)
        by_classes, by_x, out = torch.zeros_like(classes), torch.zeros_like(x), torch.zeros_like(scores)
        return [
            lambda: torch.mm(classes, columns, out=out),
            lambda: torch.mm(scores, x, out=by_classes),
            lambda: torch.mm(scores.T, classes, out=by_x),
        ]

    def _per_class(self, chunk: int, kind: int) -> float:
        work = chunk * self.num_samples * self.width
        times = math.ceil(LONG_ENOUGH[self.device.type] / work)
        return self._seconds(self.products[chunk][kind], times=times) / chunk

    def _seconds(self, call: Callable[[], object], *, times: int, warm: bool = True) -> float:
        if warm:
            call()
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(times):
            call()
        synchronize(self.device)
        return (time.perf_counter() - start) / times


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
