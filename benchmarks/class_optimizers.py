"""What an optimizer costs for the parameters of very many classes, beside the loss itself.

    python -m benchmarks.class_optimizers --classes 100000

prints one table: the median time of a step, the memory that the optimizer keeps, and both beside forward and
backward of the loss, whose time stands in the first line.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor

from benchmarks.cells import write_report
from tuplet.losses.hist import HISTLoss
from tuplet.training.environment import describe_environment
from tuplet.training.optimizers import RowwiseAdam

WIDTH = 512
Parameters = list[Tensor]
OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "Adam, a loop": partial(torch.optim.Adam, foreach=False, fused=False, weight_decay=1e-4),
    "Adam, foreach": partial(torch.optim.Adam, foreach=True, weight_decay=1e-4),
    "Adam, fused (tuplet's default)": partial(torch.optim.Adam, fused=True, weight_decay=1e-4),
    "SGD with momentum, fused": partial(torch.optim.SGD, momentum=0.9, fused=True),
    "SGD, fused": partial(torch.optim.SGD, fused=True),
    "Adafactor": torch.optim.Adafactor,
    "RowwiseAdam (class_update=rowwise)": RowwiseAdam,
    "RowwiseAdam, class_fraction=0.1": RowwiseAdam,
    "SparseAdam, class_fraction=0.1": partial(torch.optim.SparseAdam),
}


@dataclass(frozen=True)
class Arguments:
    """Time optimizers on the class parameters of a HIST loss."""

    classes: int = 100_000
    """C."""
    batch_size: int = 32
    """N."""
    steps: int = 7
    """Timed steps, after two others."""
    json: Path | None = None
    """Write what was measured here too."""


def main(arguments: Arguments) -> None:
    """Measure, then print the table."""
    environment = describe_environment(torch.device("cpu"), 1)
    print(f"commit {environment['commit']}, {environment['processor']}, {torch.get_num_threads()} threads")
    print(f"C = {arguments.classes}, N = {arguments.batch_size}, D = h = {WIDTH}, float32")
    print(f"{'':36} {'step ms':>9} {'loss ms':>9} {'step/loss':>9} {'kept MB':>9}")
    rows = []
    for name, kind in OPTIMIZERS.items():
        step, loss, kept = _measure(arguments, kind, sparse="class_fraction" in name)
        print(
            f"{name:36} {1e3 * step:9.1f} {1e3 * loss:9.1f} {step / loss:9.2f} {kept / 1e6:9.1f}", flush=True
        )
        rows.append({"optimizer": name, "step_seconds": step, "loss_seconds": loss, "kept_bytes": kept})
    content = {"environment": environment, "classes": arguments.classes, "rows": rows}
    write_report(arguments.json, content)


def _measure(
    arguments: Arguments, kind: Callable[[Parameters], torch.optim.Optimizer], *, sparse: bool
) -> tuple[float, float, int]:
    torch.manual_seed(0)
    loss = HISTLoss(
        arguments.classes,
        WIDTH,
        hidden_dim=WIDTH,
        implementation="chunked",
        class_fraction=0.1 if sparse else 1.0,
        sparse_gradients=sparse,
    )
    parameters: Parameters = list(loss.class_parameters().values())
    optimizer = kind(parameters)
    embeddings = torch.randn(arguments.batch_size, WIDTH)
    losses, steps = [], []
    for _ in range(arguments.steps + 2):
        labels = torch.randint(arguments.classes, (arguments.batch_size,))
        began = time.perf_counter()
        loss(embeddings, labels).backward()
        middle = time.perf_counter()
        optimizer.step()
        ended = time.perf_counter()
        optimizer.zero_grad()
        losses.append(middle - began)
        steps.append(ended - middle)
    kept = [value for state in optimizer.state.values() for value in state.values()]
    size = sum(value.nbytes for value in kept if isinstance(value, Tensor))
    return statistics.median(steps[2:]), statistics.median(losses[2:]), size


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
