"""Embed pictures into one index with several processes, each of which takes a share of the files."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from tuplet.errors import InputError, SearchIndexError
from tuplet.inference.pictures import PictureEncoder
from tuplet.progress import without_bars
from tuplet.search.embedding import Embedded, Entry, ReadingSettings, embed_entries
from tuplet.search.index import ImageIndex
from tuplet.search.storage import Uri
from tuplet.search.writing import RowWriter

_THREADS = "OMP_NUM_THREADS"
"""How many threads PyTorch and onnxruntime compute with."""


@dataclass(frozen=True)
class Workers:
    """Processes that embed.

    Attributes:
        count: how many, >= 2.
        open_encoder: opens the model of the index in each of them; picklable, such as a `functools.partial`.
    """

    count: int
    open_encoder: Callable[[], PictureEncoder]


def embed_in_processes(
    index: ImageIndex, work: Sequence[Entry], workers: Workers, settings: ReadingSettings
) -> Embedded:
    """Embed files in several processes, into the same table; return what all of them did.

    Every worker opens the model, takes each `workers.count`-th file, and commits by itself; LanceDB puts the
    commits in order. The lock of the index stays with this process: workers end when it ends, however it
    ends.

    Args:
        index: locked by this process; it is refreshed.
        work: files, no id twice.
        workers: how many, and the model.
        settings: how each of them reads files.

    Raises:
        InputError: (a ValueError) what a worker raised.
        SearchIndexError: a worker was killed. The others have finished; what it had committed stays, and the
            same command embeds the rest.
    """
    # Fresh interpreters: the threads of LanceDB and PyTorch do not survive a fork.
    context = get_context("spawn")
    processes: list[tuple[SpawnProcess, Connection]] = []
    try:
        with _fewer_threads(workers.count):
            for number in range(workers.count):
                share = work[number :: workers.count]
                receiver, sender = context.Pipe(duplex=False)
                arguments = (sender, number, index.uri, index.name, share, workers, settings)
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                # Close our copy of the sending end: with only the worker's open, `recv` ends when it dies.
                sender.close()
                processes.append((process, receiver))
        results = _results([receiver for _, receiver in processes])
    finally:
        for process, _ in processes:
            process.terminate()
        for process, receiver in processes:
            process.join()
            receiver.close()
    index.refresh()
    failures = [result for result in results if isinstance(result, InputError)]
    if failures:
        raise failures[0]
    done = [result for result in results if isinstance(result, Embedded)]
    if len(done) < len(results):
        raise SearchIndexError(
            f"{len(results) - len(done)} of {len(results)} worker processes ended early (killed, or out of"
            f" memory); {index.uri} holds what they had written; want the same command again, perhaps with"
            " fewer --workers",
            subject=index.uri,
            given=len(results) - len(done),
        )
    return Embedded.total(done)


def _results(receivers: Sequence[Connection]) -> list[Embedded | InputError | None]:
    """Return what each worker sent, in their order; None from one that ended before."""
    results = dict[Connection, Embedded | InputError | None]()
    while len(results) < len(receivers):
        for receiver in wait([open_end for open_end in receivers if open_end not in results]):
            assert isinstance(receiver, Connection)
            try:
                results[receiver] = receiver.recv()
            except (EOFError, OSError):  # OSError: it was killed while it sent
                results[receiver] = None
    return [results[receiver] for receiver in receivers]


@contextmanager
def _fewer_threads(num_processes: int) -> Iterator[None]:
    """Divide the cores among the started processes, unless OMP_NUM_THREADS is set."""
    if _THREADS in os.environ:
        yield
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ[_THREADS] = str(max(1, cores // num_processes))
    try:
        yield
    finally:
        del os.environ[_THREADS]


def _work(
    sender: Connection,
    number: int,
    uri: Uri,
    name: str,
    share: Sequence[Entry],
    workers: Workers,
    settings: ReadingSettings,
) -> None:
    """Embed a share of the files, and send what was done or the error of one line."""
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    result: Embedded | InputError
    try:
        # One bar is enough: the shares are of one size.
        with without_bars() if number else nullcontext():
            result = embed_entries(share, workers.open_encoder(), RowWriter(ImageIndex(uri, name)), settings)
    except InputError as error:
        result = error
    sender.send(result)
    sender.close()
    sys.stderr.flush()


def _end_with_parent() -> None:
    """End this process when its parent has ended: from then on another one may lock the index."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
