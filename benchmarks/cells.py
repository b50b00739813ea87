"""What benchmarks share: a process for each cell, its memory, quartiles, the machine, the report.

A cell is one method at one size. Its process is forked from one that has imported everything and computed
nothing, so that every cell starts clean and fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from tuplet.training.environment import describe_environment

SPARE = 1 << 30
"""Bytes that a cell leaves to others."""

Cell = dict[str, Any]
Request = TypeVar("Request")


def run_cell(run: Callable[[Request, Connection], None], request: Request, *, preload: list[str]) -> Cell:
    """Return what the cell's process sends, or a status that says how it ended.

    Args:
        run: the whole life of the process; calls `send_outcome`.
        request: what to measure; picklable.
        preload: modules to import before forking, beside the main one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *preload])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(request, sender))
    process.start()
    sender.close()
    try:
        outcome: Cell = receiver.recv()
    except EOFError:
        outcome = {}
    process.join()
    ends = {-9: "out of memory", 1: "failed: its error is above"}
    return outcome or {"status": ends.get(process.exitcode or 0, f"failed: exit status {process.exitcode}")}


def send_outcome(
    measure: Callable[[Request], Cell], request: Request, connection: Connection, *, device: str
) -> None:
    """Measure, and send the outcome or that it does not fit into memory."""
    if device == "cpu":
        # A refused allocation ends this process alone; and if the system has to kill one, then this one.
        limit = _status("VmData") + available_bytes("cpu")
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        outcome = measure(request)
    except (RuntimeError, MemoryError) as error:
        # torch's allocator for the CPU raises a plain RuntimeError: only its text tells that memory ran out.
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            raise
        outcome = {"status": "out of memory"}
    connection.send(outcome)


@dataclass(frozen=True)
class Cost:
    """What one process took: seconds by the clock, and of processors, of user and system."""

    seconds: float
    cpu_seconds: float


def run_command(command: Sequence[str], source: Path | None = None) -> Cost:
    """Run a process and return what it cost; with `source`, of another checkout."""
    environment = os.environ | ({} if source is None else {"PYTHONPATH": str(source)})
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.monotonic() - began, cpu)


class Gauge:
    """Peak of the memory since it was made, above what was held then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")

    def peak(self) -> int:
        """Return the bytes."""
        cuda = self.device.type == "cuda"
        return (torch.cuda.max_memory_allocated(self.device) if cuda else _status("VmHWM")) - self.before


@contextlib.contextmanager
def returning_memory() -> Iterator[None]:
    """Within it malloc takes every larger piece from the system and returns it at once."""
    # glibc's numbers for mallopt; afterwards what glibc itself arrives at once large pieces have been freed.
    trim_threshold, mmap_threshold, most = -1, -3, 1 << 25
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        yield
        return
    libc.malloc_trim(0)
    libc.mallopt(mmap_threshold, 1 << 18)
    libc.mallopt(trim_threshold, 1 << 18)
    yield
    libc.mallopt(mmap_threshold, most)
    libc.mallopt(trim_threshold, 2 * most)


def available_bytes(device: str) -> int:
    """Return the memory that a cell may take."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0] - SPARE
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")) - SPARE


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def quartiles(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "q1": q1, "q3": q3}


def describe_machine(device: str) -> Cell:
    """Return the environment, its commit alone and whether files differ, and one more version."""
    environment = describe_environment(torch.device(device), 1)
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "status", "--porcelain", "--", str(here), str(here.parent / "src")]
    changes = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {
        **environment,
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "commit": str(environment["commit"]).partition(" ")[0],
        "dirty": bool(changes),
        "pytorch-metric-learning": version("pytorch-metric-learning"),
    }


def missing_cells(
    cells: Sequence[Cell], keys: Sequence[str], wanted: Iterable[tuple[Any, ...]]
) -> list[Cell]:
    """Return new cells, with these keys only, for those of the wanted values that no cell has."""
    there = {tuple(cell[key] for key in keys) for cell in cells}
    return [dict(zip(keys, values, strict=True)) for values in wanted if values not in there]


def open_report(
    file: Path | None,
    device: str,
    settings: Cell,
    *,
    same: Sequence[str] = ("commit", "dirty", "processor", "threads", "device", "torch"),
    same_settings: Sequence[str] = (),
) -> Cell:
    """Return a report without cells or, where the file has one, that with the cells it measured.

    Args:
        file: where `write_report` wrote an earlier one; None: nowhere.
        device: of torch.
        settings: of the command.
        same: parts of the environment that must be those of the earlier report, or the command exits.
        same_settings: likewise.
    """
    environment = describe_machine(device)
    command = environment.pop("command")
    report = {"environment": environment, "commands": [command], "settings": settings, "cells": []}
    if file is None or not file.exists():
        return report
    old = json.loads(file.read_text())
    for part, keys in (("environment", same), ("settings", same_settings)):
        for key in keys:
            if old[part][key] != report[part][key]:
                sys.exit(f"{file} was measured with another {key}; remove it, or name another file")
    cells = [cell for cell in old["cells"] if cell["status"] in ("measured", "out of memory")]
    return {**report, "commands": list(dict.fromkeys([*old["commands"], command])), "cells": cells}


def write_report(file: Path | None, report: Cell) -> None:
    """Write a report as JSON, into a folder that is made if need be; None: nowhere."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=1, default=str) + "\n")


def _module() -> str:
    """Return the module that `python -m` runs."""
    spec = sys.modules["__main__"].__spec__
    return "" if spec is None else spec.name.removesuffix(".__main__")
