"""One cell of train_step.py: tuplet's training in one precision beside the plain loop, one recipe.

tuplet's side is `train_epoch` with a `Session`, as `tuplet train` runs them, its steps timed from outside:
the time between being asked for a batch and handing it over is loading, and so on. Before each batch, outside
of that, the floor and a step of the plain loop take their turns, the latter in a process of its own, so that
neither loop has the other's memory or workers. Whoever waits, waits with its batches loaded.

The floor is the backbone alone, forward and backward on a batch that is there already, as PyTorch runs it in
the same precision and memory layout, in tuplet's process.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cells import Cell, quartiles, send_outcome
from benchmarks.floor import synchronize
from benchmarks.train_step.plain import PARTS, Clock, Parts, Photographs, serve
from tuplet.config import DataConfig, RunConfig
from tuplet.data.image_tables import FileImages, ImageTable, InMemoryImages
from tuplet.data.splits import Split
from tuplet.data.transforms import short_side
from tuplet.training.devices import keeping_memory, launch
from tuplet.training.loop import train_epoch
from tuplet.training.run_folder import Run
from tuplet.training.session import Session

WARM = 2
"""First steps of both loops, which count for nothing: libraries, memory and workers settle."""
AHEAD = 4
"""Batches beyond the last step, so that workers have as much to do as before it."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        config: of the run; its data are replaced by the photographs.
        photographs: at least (WARM + steps + AHEAD) batches of them.
        steps: that count, >= 1.
        threads: of torch in both processes, >= 1.
    """

    config: RunConfig
    photographs: Photographs
    steps: int
    threads: int


@dataclass(frozen=True)
class Round:
    """Seconds of neighbours."""

    floor: float
    plain: Parts
    tuplet: Parts


def run(request: Request, connection: Connection) -> None:
    """Send what was measured, or why it could not be; the whole life of a cell's process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    send_outcome(measure, request, connection, device=device)


def measure(request: Request) -> Cell:
    """What was measured, as plain numbers."""
    torch.set_num_threads(request.threads)
    fabric = launch(request.config)
    plain = PlainLoop(request, fabric.device)
    try:
        with TemporaryDirectory() as folder, keeping_memory(fabric.device):
            split = _split(request.photographs, request.config.data)
            session = Session(Run.create(request.config, Path(folder)), split, fabric)
            rounds = Rounds(session, plain, request.steps)
            rounds.watch()
            train_epoch(session, request.config.schedule.warmup_epochs + 1)
    finally:
        plain.end()
    return _summary(rounds.done, request.config.data.batch_size)


class PlainLoop:
    """The other process."""

    def __init__(self, request: Request, device: torch.device) -> None:
        context = multiprocessing.get_context("forkserver")
        self.connection, there = context.Pipe()
        given = request.config, request.photographs, device, request.threads, there
        self.process = context.Process(target=serve, args=given)
        self.process.start()
        there.close()

    def step(self) -> Parts:
        """Seconds of one step."""
        self.connection.send(True)
        try:
            parts: Parts = self.connection.recv()
        except EOFError:
            raise RuntimeError("the plain loop ended: its error is above, or it ran out of memory") from None
        return parts

    def end(self) -> None:
        """Let it end."""
        if self.process.is_alive():
            self.connection.send(False)
        self.process.join()


class Rounds:
    """In place of the session's loader: the same batches, and between them what is measured beside."""

    def __init__(self, session: Session, plain: PlainLoop, steps: int) -> None:
        self.session, self.plain, self.steps = session, plain, steps
        self.loader: Any = session.loader
        self.clock = Clock(session.fabric.device)
        self.done: list[Round] = []

    def watch(self) -> None:
        """Stand in for the loader, and mark where backward begins and where it ends."""
        self.session.loader = self  # type: ignore[assignment]
        self.session.fabric.backward = self._marking(self.session.fabric.backward)  # type: ignore[method-assign]
        self.session.step = self._marking(self.session.step)  # type: ignore[method-assign]

    def __len__(self) -> int:
        return WARM + self.steps

    def __iter__(self) -> Iterator[list[Tensor]]:
        batches = iter(self.loader)
        pixels = next(batches)[0].to(self.session.fabric.device, memory_format=torch.channels_last)
        for number in range(WARM + self.steps):
            floor, plain = self._floor(pixels), self.plain.step()
            self.clock.mark(first=True)
            batch = next(batches)
            self.clock.mark()
            yield batch
            self.clock.mark()
            if number >= WARM:
                self.done.append(Round(floor, plain, self.clock.parts()))

    def _marking(self, action: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*given: Any, **named: Any) -> Any:
            self.clock.mark()
            return action(*given, **named)

        return marked

    def _floor(self, pixels: Tensor) -> float:
        network, device = self.session.network.module, self.session.fabric.device
        images = ((pixels - network.mean) / network.std).contiguous(memory_format=torch.channels_last)
        synchronize(device)
        start = time.perf_counter()
        with self.session.fabric.autocast():
            features = network.backbone.forward_features(images)
        features.backward(torch.ones_like(features))
        synchronize(device)
        seconds = time.perf_counter() - start
        network.zero_grad(set_to_none=True)
        return seconds


def _split(photographs: Photographs, config: DataConfig) -> Split:
    names = [f"class {number}" for number in range(photographs.num_classes)]
    train: ImageTable = FileImages(photographs.paths, np.array(photographs.labels, dtype=np.int64), names)
    if config.cache == "memory":
        train = InMemoryImages(train, short_side=short_side(config))
    # Nothing is evaluated.
    test = FileImages(photographs.paths[:4], np.array([0, 0, 1, 1], dtype=np.int64), ["one", "other"])
    return Split(train, test)


def _summary(rounds: list[Round], batch_size: int) -> Cell:
    totals = {side: [sum(getattr(one, side).values()) for one in rounds] for side in ("plain", "tuplet")}
    parts = {
        f"{side}_parts": {part: quartiles([getattr(one, side)[part] for one in rounds]) for part in PARTS}
        for side in totals
    }
    floors = [one.floor for one in rounds]
    return {
        "status": "measured",
        "steps": len(rounds),
        "batch_size": batch_size,
        "plain_seconds": quartiles(totals["plain"]),
        "tuplet_seconds": quartiles(totals["tuplet"]),
        "floor_seconds": quartiles(floors),
        **parts,
        "faster": quartiles([a / b for a, b in zip(totals["plain"], totals["tuplet"], strict=True)]),
        "to_floor": quartiles([a / b for a, b in zip(totals["tuplet"], floors, strict=True)]),
    }
