"""How long a step of the HIST loss takes in this source tree, against another one, in one run.

    python -m benchmarks.loss_step.before OTHER/src --threads 2

Each tree has a process of its own, and their steps alternate, so that a machine that is busy for a while
slows both. Where two processes do not fit into memory (a million classes with gradients take 12 GB), one
lives at a time: they take turns of a few steps each. The ratio is the median over neighbours, below one where
this tree is faster. Calls are those of torch's operations in a step, forward and backward.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import tyro

WIDTH = 512
"""D, and the hidden width h."""


def main(
    other: tyro.conf.Positional[Path],
    *,
    n: int = 32,
    c: tuple[int, ...] = (100, 11_318, 1_000_000),
    steps: int = 40,
    threads: int = 2,
    together: int = 200_000,
    turns: int = 6,
) -> None:
    """Print a table of both trees.

    Args:
        other: the `src` folder of the tree that is compared with.
        n: samples in a batch.
        c: classes.
        steps: timed in each tree, after two that are not.
        threads: of torch.
        together: most classes with which both processes live at the same time.
        turns: of each tree beyond that, of three steps each, whose median counts.
    """
    own = Path(__file__).parents[2] / "src"
    print("| C | this | other | this / other (quartiles) | calls: this | other | reads: this | other |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for num_classes in c:
        starts = [partial(_Worker, tree, n, num_classes, threads) for tree in (own, other)]
        if num_classes <= together:
            calls, times = _step_by_step(starts, steps)
        else:
            calls, times = _turn_by_turn(starts, turns)
        ratios = [a / b for a, b in zip(*times, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        this, before = (f"{1000 * statistics.median(each):.3g} ms" for each in times)
        ratio = f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
        counted = [calls[place][kind] for kind in (0, 1) for place in (0, 1)]
        print(f"| {num_classes:,} | {this} | {before} | {ratio} | {' | '.join(counted)} |", flush=True)


Starts: TypeAlias = Sequence[Callable[[], "_Worker"]]


def _step_by_step(starts: Starts, steps: int) -> tuple[list[list[str]], list[list[float]]]:
    """Return calls and reads of a step, and the seconds of all, by tree; both processes live throughout."""
    workers = [start() for start in starts]
    calls = [worker.ask("count").split() for worker in workers]
    times: list[list[float]] = [[], []]
    for step in range(steps):
        # Whoever comes first finds the caches as the other left them: take turns.
        for place in (0, 1) if step % 2 else (1, 0):
            times[place].append(float(workers[place].ask("step")))
    for worker in workers:
        worker.end()
    return calls, times


def _turn_by_turn(starts: Starts, turns: int) -> tuple[list[list[str]], list[list[float]]]:
    """Do the same with one process at a time; a turn's median counts as one step."""
    calls: list[list[str]] = [[], []]
    times: list[list[float]] = [[], []]
    for turn in range(turns):
        for place in (0, 1) if turn % 2 else (1, 0):
            worker = starts[place]()
            calls[place] = worker.ask("count").split()
            times[place].append(statistics.median(float(worker.ask("step")) for _ in range(3)))
            worker.end()
    return calls, times


class _Worker:
    """A process with one tree's loss, which does a step for each line it gets."""

    def __init__(self, tree: Path, n: int, c: int, threads: int) -> None:
        command = [sys.executable, __file__, "--worker", str(tree.resolve()), str(n), str(c), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        if not answer:
            sys.exit(f"a worker ended with status {self._process.wait()}; its error is above")
        return answer

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _work(tree: str, n: int, c: int, threads: int) -> None:
    sys.path.insert(0, tree)
    import time

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    import tuplet
    from tuplet import HISTLoss

    assert Path(tuplet.__file__).is_relative_to(tree), tuplet.__file__

    class Calls(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.counts: Counter[str] = Counter()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.counts[function.overloadpacket.__name__] += 1
            return function(*args, **(kwargs or {}))

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loss = HISTLoss(c, WIDTH, hidden_dim=WIDTH)
    embeddings, labels = torch.randn(n, WIDTH, requires_grad=True), torch.randint(0, c, (n,))

    def step() -> float:
        embeddings.grad = None
        loss.zero_grad(set_to_none=True)
        start = time.perf_counter()
        loss(embeddings, labels).backward()
        return time.perf_counter() - start

    step()
    step()
    for line in sys.stdin:
        if line.strip() == "step":
            print(step(), flush=True)
        else:
            with Calls() as calls:
                step()
            print(calls.counts.total(), calls.counts["_local_scalar_dense"], flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _work(sys.argv[2], *(int(number) for number in sys.argv[3:]))
    else:
        tyro.cli(main)
