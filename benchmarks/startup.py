"""CPU seconds that commands take before they do anything, beside those of the libraries that they need.

    python -m benchmarks.startup --rounds 5 --json docs/results/startup/cpu.json

Each round runs every command once, and `import torch, timm, lancedb` before it; the ratio is the median over
neighbours, since CPU seconds change with what else the machine does. The index holds twelve small drawings.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tyro
from PIL import Image

from benchmarks.cells import describe_machine, run_command, write_report
from tuplet.data.glyphs import glyph
from tuplet.models.embedder import Embedder

LIBRARIES = ["-c", "import torch, timm, lancedb"]


@dataclass(frozen=True)
class Arguments:
    """Time the start of commands."""

    rounds: int = 5
    """Runs of each command, >= 1."""
    commands: tuple[str, ...] = ("search", "index", "evaluate", "duplicates", "help")
    """Of search, index, evaluate, duplicates and help."""
    json: Path | None = None
    """File to write."""


def main(arguments: Arguments) -> None:
    """Time each command beside the import of its libraries, and print and write the ratios."""
    with TemporaryDirectory() as folder:
        commands = _commands(Path(folder))
        cells = {name: _measure(commands[name], arguments.rounds) for name in arguments.commands}
    for name, cell in cells.items():
        libraries, seconds = cell["libraries"], cell["seconds"]
        print(f"{name:<12} {seconds:6.2f} CPU s, libraries {libraries:6.2f}, ratio {cell['ratio']:.2f}")
    environment = describe_machine("cpu")
    write_report(arguments.json, {"environment": environment, "libraries": LIBRARIES[1], "cells": cells})


def _commands(root: Path) -> dict[str, list[str]]:
    for row in range(12):
        file = root / "photos" / str(row // 4) / f"{row % 4}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(glyph(row // 4, row % 4, seed=0, image_size=24)).save(file)
    Embedder("tuplet_convnet", 16, pretrained=False).save_pretrained(root / "model")
    np.savez(root / "x.npz", embeddings=np.eye(4, dtype=np.float32), labels=[0, 0, 1, 1])
    index = ["--index", str(root / "index"), "--accelerator", "cpu"]
    making = ["index", str(root / "photos"), "--model", str(root / "model"), "--image-size", "16", *index]
    _cpu_seconds(["-m", "tuplet", *making])
    commands = {
        "search": ["search", str(root / "photos" / "0" / "0.png"), *index],
        "index": ["index", str(root / "photos"), *index],
        "evaluate": ["evaluate", str(root / "x.npz")],
        "duplicates": ["duplicates", *index[1:]],
        "help": ["--help"],
    }
    return {name: ["-m", "tuplet", *command] for name, command in commands.items()}


def _measure(command: list[str], rounds: int) -> dict[str, float]:
    pairs = [(_cpu_seconds(LIBRARIES), _cpu_seconds(command)) for _ in range(rounds)]
    libraries, seconds = (statistics.median(one) for one in zip(*pairs, strict=True))
    ratio = statistics.median(seconds / libraries for libraries, seconds in pairs)
    return {"libraries": libraries, "seconds": seconds, "ratio": ratio}


def _cpu_seconds(command: list[str]) -> float:
    """Run Python with some arguments and return the CPU seconds that it took."""
    return run_command([sys.executable, *command]).cpu_seconds


if __name__ == "__main__":
    main(tyro.cli(Arguments))
