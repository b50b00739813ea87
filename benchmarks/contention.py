"""A shared machine: how fast tuplet works, by how OpenMP's threads wait for each other.

    python -m benchmarks.contention --rounds 3 --json docs/results/contention/cpu.json

The machine must be quiet otherwise. Each cell trains a network for some seconds, or runs a command, beside 0,
1 or 2 processes that keep a core busy each, once with each setting, in processes of their own: OpenMP reads
its environment when torch loads it. Settings alternate within a round; a ratio is the median over rounds of a
setting's speed over that of `default` beside it. The training steps are those of a loop of one's own, on
random pixels. The commands of tuplet use `spin-1000`, see cli/main.py.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import tyro
from PIL import Image

from benchmarks.cells import open_report, write_report
from tuplet.data.glyphs import glyph

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin-1000": {"GOMP_SPINCOUNT": "1000"},
    "spin-10000": {"GOMP_SPINCOUNT": "10000"},
}
"""How threads wait: by default libgomp spins for a long time, passive ones sleep at once."""
NETWORKS = {"tuplet_convnet": (32, 48), "resnet50": (8, 128)}
"""Images in a batch and their side, pixels."""
CLASSES = 100
COMMANDS: dict[str, tuple[str, ...]] = {
    "demo": ("demo", "--to", "{new}", "--schedule.epochs", "4"),
    "index": ("index", "{pictures}", "--model", "{run}", "--index", "{new}"),
    "evaluate": ("evaluate", "{run}"),
}
"""Commands of tuplet, on generated characters: {run} is a trained run, {new} a path that does not exist."""
NUM_PICTURES = 600
Key: TypeAlias = tuple[str, int, str]
"""What is timed, how many processes are busy beside it, and with which setting."""
AS_OPENMP_HAS_IT = {"KMP_BLOCKTIME": "200"}
"""A variable of another OpenMP: libgomp ignores it, but commands of tuplet then do not set `spin-1000`."""


@dataclass(frozen=True)
class Arguments:
    """Time training steps and commands beside busy processes."""

    networks: tuple[str, ...] = ("tuplet_convnet", "resnet50")
    """Of timm's networks and ours."""
    settings: tuple[str, ...] = tuple(SETTINGS)
    """Of default, passive, spin-1000 and spin-10000; default is needed for ratios."""
    busy: tuple[int, ...] = (0, 1, 2)
    """Processes beside the training, each with one busy thread."""
    commands: tuple[str, ...] = tuple(COMMANDS)
    """Of demo, index and evaluate."""
    seconds: float = 20.0
    """Training of each cell, after two steps that do not count."""
    rounds: int = 3
    """Runs of each cell, >= 1."""
    json: Path | None = None
    """File to write; what it has is not measured again."""
    train: str | None = None
    """Only train this network, and print images a second; for the processes of the cells."""


def main(arguments: Arguments) -> None:
    """Time each network and command beside each number of busy processes, with each setting."""
    if arguments.train is not None:
        print(images_per_second(arguments.train, arguments.seconds))
        return
    report = open_report(arguments.json, "cpu", {"settings": SETTINGS, "rounds": arguments.rounds}, same=())
    known = {(cell["what"], cell["busy"], cell["setting"]) for cell in report["cells"]}
    with TemporaryDirectory() as folder:
        for cell in _cells(arguments, Path(folder), known):
            report["cells"].append({**cell, "status": "measured"})
            write_report(arguments.json, report)


def _cells(arguments: Arguments, folder: Path, known: Container[Key]) -> Iterator[dict[str, Any]]:
    """Measure what is not known yet."""
    speeds: dict[str, Callable[[str], float]] = {
        network: partial(_training_speed, network, arguments.seconds) for network in arguments.networks
    }
    if arguments.commands:
        _prepare(folder)
    for command in arguments.commands:
        speeds[f"tuplet {command}"] = partial(_command_speed, COMMANDS[command], folder)
    for what, speed_with in speeds.items():
        for busy in arguments.busy:
            if all((what, busy, name) in known for name in arguments.settings):
                continue
            with busy_processes(busy):
                rounds = [
                    {name: speed_with(name) for name in arguments.settings} for _ in range(arguments.rounds)
                ]
            for name in arguments.settings:
                speed = statistics.median(one[name] for one in rounds)
                cell = {"what": what, "busy": busy, "setting": name, "speed": speed}
                if "default" in arguments.settings:
                    cell["ratio"] = statistics.median(one[name] / one["default"] for one in rounds)
                yield cell
                measured = f"{speed:9.1f} images/s" if what in arguments.networks else f"{1 / speed:9.1f} s"
                ratio = f"{cell.get('ratio', 1):6.2f} x default"
                print(f"{what:<16} {busy} busy  {name:<10} {measured} {ratio}", flush=True)


def images_per_second(name: str, seconds: float) -> float:
    """Return how many images a second a training of HIST on random pixels takes, forward, backward and step.

    Args:
        name: of the backbone.
        seconds: how long to train, after two steps.
    """
    import torch

    from tuplet.losses.hist import HISTLoss
    from tuplet.models.embedder import Embedder

    torch.manual_seed(0)
    batch, side = NETWORKS.get(name, (8, 128))
    network, loss = Embedder(name, 128, pretrained=False), HISTLoss(CLASSES, 128)
    parameters = [*network.parameters(), *loss.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (batch,))
    steps, began = -2, time.perf_counter()
    while steps <= 0 or time.perf_counter() - began < seconds:
        if steps == 0:
            began = time.perf_counter()
        optimizer.zero_grad()
        loss(network(pixels), labels).backward()
        optimizer.step()
        steps += 1
    return batch * steps / (time.perf_counter() - began)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep some processes with one busy thread each, inside the block."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _training_speed(network: str, seconds: float, setting: str) -> float:
    """Train in a process of its own and return its images a second."""
    command = [sys.executable, "-m", "benchmarks.contention", "--train", network, "--seconds", str(seconds)]
    return float(_output(command, SETTINGS[setting]))


def _prepare(folder: Path) -> None:
    """Train the run that the commands use, and write the pictures."""
    run = [sys.executable, "-m", "tuplet", "demo", "--to", str(folder / "run"), "--schedule.epochs", "1"]
    _output(run, {})
    (folder / "pictures").mkdir()
    for number in range(NUM_PICTURES):
        drawing = glyph(number % 50, number // 50, seed=0, image_size=96)
        Image.fromarray(drawing).save(folder / "pictures" / f"{number}.png")


def _command_speed(command: Sequence[str], folder: Path, setting: str) -> float:
    """Run a command and return one over its seconds, start included."""
    new = folder / "new"
    shutil.rmtree(new, ignore_errors=True)
    words = [word.format(run=folder / "run", new=new, pictures=folder / "pictures") for word in command]
    began = time.perf_counter()
    _output([sys.executable, "-m", "tuplet", *words], SETTINGS[setting] or AS_OPENMP_HAS_IT)
    return 1 / (time.perf_counter() - began)


def _output(command: Sequence[str], variables: dict[str, str]) -> str:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names} | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2_000:]}")
    return done.stdout


if __name__ == "__main__":
    main(tyro.cli(Arguments))
