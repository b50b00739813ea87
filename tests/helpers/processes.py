"""Processes for one test: forks of a server that has imported the libraries once, for that takes seconds.

tuplet is not among them: each process imports it anew, as a new interpreter would.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path
from queue import Empty

import torch
from torch import distributed, multiprocessing

LIBRARIES = [
    *("torch", "torch.distributed.checkpoint", "torch.distributed.run", "torchvision.transforms.v2"),
    *("timm", "lightning_fabric"),
    *("faiss", "scipy.stats", "sklearn.cluster", "matplotlib.backends.backend_agg", "matplotlib.figure"),
    *("beartype", "filelock", "huggingface_hub", "jaxtyping", "jinja2", "pydantic", "pytest", "tyro", "yaml"),
]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(LIBRARIES)


def in_processes(target, ranks, *arguments):
    """What each process puts into the queue: target(rank, ranks, port, queue, *arguments)."""
    queue, port = FORKS.Queue(), free_port()
    processes = [started(target, rank, ranks, port, queue, *arguments) for rank in range(ranks)]
    said = []
    try:
        while len(said) < ranks:
            assert not any(process.exitcode for process in processes)
            with contextlib.suppress(Empty):
                said.append(queue.get(timeout=1))
    finally:
        codes = exit_codes(processes, seconds=20)
    assert codes == [0] * ranks, codes
    return sorted(said)


@contextlib.contextmanager
def gloo_group(rank, ranks, port):
    """Be one of the ranks of a process group, inside the block."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    yield
    distributed.destroy_process_group()


def command_started(ranks, *arguments):
    """The ranks of one job, each a process that runs `tuplet` with these arguments."""
    port = free_port()
    return [started(_run_command, rank, ranks, port, [*map(str, arguments)]) for rank in range(ranks)]


def command_in_background(folder, *arguments):
    """A process that runs `tuplet` with these arguments; what it prints goes to stdout.txt and stderr.txt."""
    return started(_run_command_into, folder, [*map(str, arguments)])


def line_with(text, file, process):
    """Wait until a running process has printed a line with this text, and return the line."""
    while True:
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        for line in lines:
            if text in line and line.endswith("\n"):
                return line.rstrip("\n")
        assert process.exitcode is None, lines
        time.sleep(0.02)


def print_into(stdout, stderr=None):
    """Send what this process prints, its libraries too, to one file or two."""
    for number, file in ((1, stdout), (2, stderr or stdout)):
        with file.open("a") as stream:
            os.dup2(stream.fileno(), number)


def run_command(ranks, *arguments):
    """Run `tuplet` with these arguments on every rank, and assert that each ends well."""
    codes = exit_codes(command_started(ranks, *arguments), seconds=480)
    assert codes == [0] * ranks, codes


def started(target, *arguments):
    """A process that runs target(*arguments)."""
    process = FORKS.Process(target=_run, args=(target, *arguments))
    process.start()
    return process


def exit_codes(processes, *, seconds):
    """How each process ended: all of them, or none is left after one that failed, or after these seconds."""
    ending = time.monotonic() + seconds
    running = list(processes)
    while running and time.monotonic() < ending and not any(process.exitcode for process in processes):
        wait([process.sentinel for process in running], timeout=1)
        running = [process for process in running if process.exitcode is None]
    for process in running:
        process.kill()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(target, *arguments):
    # The fork of a process with threads may hang: what a lost thread had locked stays locked.
    assert len(list(Path(f"/proc/{os.getppid()}/task").iterdir())) == 1
    multiprocessing.set_start_method(None, force=True)  # loaders start as they do elsewhere
    target(*arguments)


def _run_command(rank, ranks, port, arguments):
    from tuplet.cli.main import main

    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    if ranks > 1:  # as Fabric's launcher sets them for the ranks that it starts
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0")
        os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    sys.argv = ["tuplet", *arguments]
    main(arguments)


def _run_command_into(folder, arguments):
    print_into(folder / "stdout.txt", folder / "stderr.txt")
    os.setsid()  # so that Ctrl-C can be sent to it and to its loaders, and to nobody else
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background would ignore it
    # What Fabric starts as the other ranks.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("tuplet.__main__")
    _run_command(0, 1, 0, arguments)
