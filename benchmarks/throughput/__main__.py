"""docs/throughput.md, from what train_step.py measured.

    python -m benchmarks.throughput docs/results/train_step/cpu.json

The words are in throughput.md.jinja; each file gives two tables.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.cells import Cell
from benchmarks.pages import duration, render
from benchmarks.train_step.__main__ import kind, row
from benchmarks.train_step.plain import PARTS


@dataclass(frozen=True)
class Arguments:
    """Write docs/throughput.md."""

    measured: tyro.conf.Positional[tuple[Path, ...]] = (Path("docs/results/train_step/cpu.json"),)
    """Files that train_step.py wrote."""
    page: Path = Path("docs/throughput.md")
    """The page."""


def main(arguments: Arguments) -> None:
    """Write it."""
    text = render(
        Path(__file__).with_name("throughput.md.jinja"),
        reports=[json.loads(path.read_text()) for path in arguments.measured],
        parts=PARTS,
        whole=_whole,
        kind=kind,
        duration=duration,
        command=shlex.join(["python", "-m", "benchmarks.throughput", *map(str, arguments.measured)]),
    )
    arguments.page.write_text(text)
    print(f"wrote {arguments.page}", file=sys.stderr)


def _whole(cell: Cell) -> list[str]:
    return [word for place, word in enumerate(row(cell)) if place not in (4, 6)]


if __name__ == "__main__":
    main(tyro.cli(Arguments))
