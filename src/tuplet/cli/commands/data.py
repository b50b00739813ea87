"""`tuplet data`: count the images of a data set, and download a benchmark from where it is published."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tuplet.config import DataConfig
from tuplet.data.fetch import Bar, fetch
from tuplet.data.load import load
from tuplet.data.published_sets import BENCHMARKS, Benchmark, load_benchmark
from tuplet.data.splits import describe
from tuplet.errors import DataError, SettingsError
from tuplet.progress import track


def describe_data(config: DataConfig) -> None:
    """Print the counts of the split that a config's data make."""
    print(describe(load(config, progress=lambda rows: track(rows, "reading"))))


def fetch_data(name: str, to: Path) -> None:
    """Download a benchmark and print its counts, or print what has to be done by hand.

    Args:
        name: of the benchmark.
        to: the folder in which its own folder is created.
    """
    if name not in BENCHMARKS:
        got = f"has no {name!r}" if name else "is missing its benchmark"
        wanted = ", ".join(BENCHMARKS)
        raise SettingsError(f"tuplet data fetch {got}; want one of {wanted}", subject="fetch", given=name)
    benchmark = BENCHMARKS[name]
    if benchmark.archive is None:
        folder = to / name
        if not folder.is_dir():
            print(_by_hand(name, benchmark, folder))
            raise DataError(
                f"{benchmark.title} has to be downloaded by hand, and {folder} does not exist yet",
                subject=folder,
            )
    else:
        folder = to / benchmark.archive.folder
        was_there = folder.exists()
        if not was_there:
            print(f"{benchmark.title}: {benchmark.archive.url} -> {folder}", flush=True)
        with _bar() as bar:
            fetch(benchmark.archive, to, bar)
        if was_there:
            print(f"{folder} exists already")
    print(describe(load_benchmark(name, folder)))
    print(f"\nTry next: tuplet train {name}-resnet50 --data.root {folder}")


def _by_hand(name: str, benchmark: Benchmark, folder: Path) -> str:
    """Return what a person has to do, a step a line."""
    steps = [
        *benchmark.by_hand,
        "Check that everything is there: tuplet data describe --source {name} --root {folder}",
    ]
    lines = [f"{at}. {step.format(folder=folder, name=name)}" for at, step in enumerate(steps, 1)]
    return "\n".join([f"{benchmark.title} has to be downloaded by hand:", *lines])


@contextmanager
def _bar() -> Iterator[Bar]:
    """Show the progress on standard error, if that is a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    quiet = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=None)

        def show(what: str, done: int, whole: int | None) -> None:
            progress.update(task, description=what, completed=done, total=whole)

        yield show
