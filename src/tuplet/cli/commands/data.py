"""tuplet data: count the images of a data set, and get a benchmark from where it is published."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuplet.cli.arguments import parse
from tuplet.config import DataConfig
from tuplet.errors import InputError

if TYPE_CHECKING:
    from tuplet.data.fetch import Bar
    from tuplet.data.published_sets import Benchmark


USAGE = """\
usage: tuplet data describe --root FOLDER [--source SOURCE] [--field value ...]
       tuplet data fetch BENCHMARK [--to FOLDER]

describe counts the images and classes that a run would train on and be tested on. Sources: folder, cub, cars,
sop, inshop, torchvision (with --dataset NAME) and table; tuplet data describe --help lists every field.

fetch gets cub or sop from where it is published, checks it, unpacks it into FOLDER (data) and counts it; of
cars and inshop it says what has to be got by hand. A download that was cut off is gone on with."""


@dataclass(frozen=True)
class FetchArguments:
    """Get a benchmark from where it is published."""

    to: Path = Path("data")
    """Folder that the benchmark's own folder goes to."""


def data(arguments: list[str]) -> None:
    """Count the images and classes of a data set, or get a benchmark."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    commands = {"describe": describe_data, "fetch": fetch_data}
    if arguments[0] not in commands:
        raise InputError(f"tuplet data has no {arguments[0]!r}; want describe or fetch")
    commands[arguments[0]](arguments[1:])


def describe_data(arguments: list[str]) -> None:
    """Print the counts of the split that a config's data make.

    Args:
        arguments: fields of the config's data, as options.

    Raises:
        InputError: an argument or the data cannot be used.
    """
    config = parse(DataConfig, DataConfig(), arguments, "tuplet data describe")
    from tuplet.data.load import load
    from tuplet.data.splits import describe
    from tuplet.progress import track

    print(describe(load(config, progress=lambda rows: track(rows, "reading"))))


def fetch_data(arguments: list[str]) -> None:
    """Get a benchmark and print its counts, or print what has to be done by hand.

    Args:
        arguments: its name, and options.

    Raises:
        InputError: no such benchmark, one that has to be got by hand and is not there, or what `fetch` and
            `load_benchmark` raise.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    from tuplet.data.fetch import fetch
    from tuplet.data.published_sets import BENCHMARKS, load_benchmark
    from tuplet.data.splits import describe

    name = arguments[0] if arguments else ""
    if name not in BENCHMARKS:
        got = f"has no {name!r}" if name else "is missing its benchmark"
        raise InputError(f"tuplet data fetch {got}; want one of {', '.join(BENCHMARKS)}")
    to = parse(FetchArguments, FetchArguments(), arguments[1:], f"tuplet data fetch {name}").to
    benchmark = BENCHMARKS[name]
    if benchmark.archive is None:
        folder = to / name
        if not folder.is_dir():
            print(_by_hand(name, benchmark, folder))
            raise InputError(f"{benchmark.title} has to be got by hand, and {folder} is not there yet")
    else:
        folder = to / benchmark.archive.folder
        was_there = folder.exists()
        if not was_there:
            print(f"{benchmark.title}: {benchmark.archive.url} -> {folder}", flush=True)
        with _bar() as bar:
            fetch(benchmark.archive, to, bar)
        if was_there:
            print(f"{folder} is there already")
    print(describe(load_benchmark(name, folder)))
    print(f"\nTry next: tuplet train {name}-resnet50 --data.root {folder}")


def _by_hand(name: str, benchmark: Benchmark, folder: Path) -> str:
    """What a person has to do, a step a line."""
    steps = [
        *benchmark.by_hand,
        "See whether all is there: tuplet data describe --source {name} --root {folder}",
    ]
    lines = [f"{at}. {step.format(folder=folder, name=name)}" for at, step in enumerate(steps, 1)]
    return "\n".join([f"{benchmark.title} has to be got by hand:", *lines])


@contextmanager
def _bar() -> Iterator[Bar]:
    """Shows on standard error how far it has come, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    quiet = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=None)

        def show(what: str, done: int, whole: int | None) -> None:
            progress.update(task, description=what, completed=done, total=whole)

        yield show
