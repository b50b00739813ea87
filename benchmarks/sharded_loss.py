"""Classes spread over processes: the loss and gradients of one process, and how much memory each takes.

    python -m benchmarks.sharded_loss --processes 4 --classes 100003

prints one table: each process's classes, its memory for them by count and as the system sees it, and how far
its loss and its gradients are from those of one process that keeps all classes.
"""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, distributed, multiprocessing

from benchmarks.cells import write_report
from tuplet.losses.hist import HISTLoss
from tuplet.losses.many_classes.shards import ClassShard, gather_batch
from tuplet.training.environment import describe_environment


@dataclass(frozen=True)
class Arguments:
    """Compare a loss whose classes are spread over gloo processes with that of one process."""

    processes: int = 4
    """R."""
    classes: int = 100_003
    """C over all processes."""
    batch_size: int = 32
    """N over all processes, a multiple of them."""
    width: int = 512
    """D and h."""
    json: Path | None = None
    """Write what was measured here too."""


@dataclass(frozen=True)
class Report:
    """What one process saw; the errors are norms of differences over norms."""

    classes: int
    counted_bytes: int
    resident_bytes: int
    loss_error: float
    class_gradient_error: float
    hidden_gradient_error: float
    embedding_gradient_error: float


def main(arguments: Arguments) -> None:
    """Run one process alone, then all of them together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    alone, together = context.Queue(), context.Queue()
    whole = context.Process(target=_alone, args=(arguments, alone))
    whole.start()
    all_bytes = alone.get()
    whole.join()
    ranks = [
        context.Process(target=_rank, args=(rank, arguments, port, together))
        for rank in range(arguments.processes)
    ]
    for process in ranks:
        process.start()
    reports: list[Report] = [report for _, report in sorted(together.get() for _ in ranks)]
    for process in ranks:
        process.join()

    environment = describe_environment(torch.device("cpu"), arguments.processes)
    print(f"commit {environment['commit']}, {environment['processor']}, torch {environment['torch']}")
    print(
        f"C = {arguments.classes}, N = {arguments.batch_size}, D = h = {arguments.width}; one process keeps"
        f" {all_bytes / 1e6:.1f} MB of class parameters and their gradients"
    )
    print(
        "process  classes  counted MB  of one process  resident MB  loss"
        "  by classes  by hidden  by embeddings"
    )
    for rank, report in enumerate(reports):
        print(
            f"{rank:7}  {report.classes:7}  {report.counted_bytes / 1e6:10.1f}"
            f"  {report.counted_bytes / all_bytes:14.4f}  {report.resident_bytes / 1e6:11.1f}"
            f"  {report.loss_error:.0e}  {report.class_gradient_error:10.0e}"
            f"  {report.hidden_gradient_error:9.0e}  {report.embedding_gradient_error:13.0e}"
        )
    content = {
        "environment": environment,
        "arguments": asdict(arguments),
        "bytes_of_one_process": all_bytes,
        "processes": [asdict(report) for report in reports],
    }
    write_report(arguments.json, content)


def _batch(arguments: Arguments) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(arguments.batch_size, arguments.width, generator=generator)
    return embeddings, torch.randint(arguments.classes, (arguments.batch_size,), generator=generator)


def _loss(arguments: Arguments, shard: ClassShard) -> HISTLoss:
    torch.manual_seed(0)
    width = arguments.width
    return HISTLoss(arguments.classes, width, hidden_dim=width, implementation="chunked", shard=shard)


def _counted(loss: HISTLoss) -> int:
    parameters = loss.class_parameters().values()
    return sum(2 * parameter.nbytes for parameter in parameters)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _alone(arguments: Arguments, queue: multiprocessing.Queue) -> None:
    queue.put(_counted(_loss(arguments, ClassShard(arguments.classes))))


def _rank(rank: int, arguments: Arguments, port: int, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=arguments.processes)
    embeddings, labels = _batch(arguments)
    # Libraries and threads are loaded by a small loss, so that what follows is the classes'.
    small = HISTLoss(64, arguments.width, shard=ClassShard.of_group(64))
    small(embeddings, labels % 64).backward()
    before = _resident()
    loss = _loss(arguments, ClassShard.of_group(arguments.classes))
    mine = slice(rank * len(labels) // arguments.processes, (rank + 1) * len(labels) // arguments.processes)
    own = embeddings[mine].clone().requires_grad_()
    value = loss(*gather_batch(own, labels[mine]))
    value.backward()
    resident = _resident() - before

    # One process with all classes, one after the other for the sake of memory.
    for turn in range(arguments.processes):
        if turn == rank:
            report = _compare(arguments, loss, float(value.detach()), own, mine, resident)
        distributed.barrier()
    queue.put((rank, report))
    distributed.destroy_process_group()


def _compare(
    arguments: Arguments, loss: HISTLoss, value: float, own: Tensor, mine: slice, resident: int
) -> Report:
    embeddings, labels = _batch(arguments)
    embeddings.requires_grad_()
    whole = _loss(arguments, ClassShard(arguments.classes))
    expected = whole(embeddings, labels)
    expected.backward()
    shard = loss.shard
    assert shard is not None
    rows = slice(shard.first, shard.first + shard.num_kept)
    wanted, of_classes = dict(whole.named_parameters()), loss.class_parameters()
    by_classes: list[float] = []
    # Jointly: a bias before BatchNorm has no gradient but rounding, and nothing to be compared with.
    hidden: tuple[list[Tensor], list[Tensor]] = [], []
    for name, parameter in loss.named_parameters():
        gradient = wanted[name].grad
        assert gradient is not None
        assert parameter.grad is not None
        if name in of_classes:
            by_classes.append(_error(parameter.grad, gradient[rows], gradient))
        else:
            hidden[0].append(parameter.grad.flatten())
            hidden[1].append(gradient.flatten())
    got, expected_hidden = (torch.cat(part) for part in hidden)
    assert own.grad is not None
    assert embeddings.grad is not None
    by_embeddings = _error(own.grad / arguments.processes, embeddings.grad[mine], embeddings.grad)
    return Report(
        shard.num_kept,
        _counted(loss),
        resident,
        abs(value - float(expected.detach())) / abs(float(expected.detach())),
        max(by_classes),
        _error(got, expected_hidden, expected_hidden),
        by_embeddings,
    )


def _error(got: Tensor, wanted: Tensor, scale: Tensor) -> float:
    return float((got - wanted).norm() / scale.norm())


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
