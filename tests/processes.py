"""Several processes of torch.distributed for one test."""

from __future__ import annotations

import contextlib
import socket
from queue import Empty

from torch import multiprocessing


def in_processes(target, ranks, *arguments):
    """What each process puts into the queue: target(rank, ranks, port, queue, *arguments)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=target, args=(rank, ranks, port, queue, *arguments)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    said = []
    while len(said) < ranks:
        assert not any(process.exitcode for process in processes)
        with contextlib.suppress(Empty):
            said.append(queue.get(timeout=1))
    for process in processes:
        process.join(20)
    return sorted(said)
