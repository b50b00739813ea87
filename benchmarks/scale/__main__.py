"""docs/scale.md and its figure, from what loss_step.py measured.

    python -m benchmarks.scale docs/results/loss_step/cpu.json

The words are in scale.md.jinja. The first file gives the figure and the slopes; further ones add tables.
Sections that rest on other measurements are taken from docs/results/loss_step/sections, where they exist.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.loss_step.__main__ import row
from benchmarks.pages import bytes_text, duration, render
from benchmarks.scale.figure import draw
from benchmarks.scale.sums import device_seconds, fits, messages, rank_bytes

SECTIONS = {
    "optimizer": "When to use which optimizer",
    "sampling": "Class sampling",
    "ranks": "Spread over ranks",
}
EXAMPLE = {"classes": (10_000_000, 100_000_000), "ranks": (8, 64), "samples": 512, "width": 512}
GPU = {"gpu": "H100 SXM", "rate": 67e12, "bandwidth": 3.35e12}
"""NVIDIA's datasheet: float32 operations a second, bytes of memory a second."""


@dataclass(frozen=True)
class Arguments:
    """Write docs/scale.md and its figure."""

    measured: tyro.conf.Positional[tuple[Path, ...]] = (Path("docs/results/loss_step/cpu.json"),)
    """Files that loss_step.py wrote."""
    page: Path = Path("docs/scale.md")
    """The page."""
    figure: Path = Path("docs/results/loss_step/cost.png")
    """The figure, somewhere below the page's folder."""
    sections: Path = Path("docs/results/loss_step/sections")
    """Where optimizer.md, sampling.md and ranks.md are, if they are."""


def main(arguments: Arguments) -> None:
    """Write both."""
    reports = [json.loads(path.read_text()) for path in arguments.measured]
    cells = reports[0]["cells"]
    draw(cells, arguments.figure)
    text = render(
        Path(__file__).with_name("scale.md.jinja"),
        **EXAMPLE,
        **GPU,
        reports=reports,
        first=reports[0]["environment"],
        figure=arguments.figure.relative_to(arguments.page.parent),
        slopes=fits(cells, "auto"),
        messages=messages(EXAMPLE["samples"], EXAMPLE["samples"], EXAMPLE["width"]),
        sections=[(name, title, _section(arguments.sections, name)) for name, title in SECTIONS.items()],
        command=shlex.join(["python", "-m", "benchmarks.scale", *map(str, arguments.measured)]),
        row=row,
        duration=duration,
        bytes_text=bytes_text,
        rank_bytes=rank_bytes,
        device_seconds=device_seconds,
    )
    arguments.page.write_text(text)
    print(f"wrote {arguments.page} and {arguments.figure}", file=sys.stderr)


def _section(folder: Path, name: str) -> str:
    path = folder / f"{name}.md"
    return path.read_text().strip() if path.exists() else ""


if __name__ == "__main__":
    main(tyro.cli(Arguments))
