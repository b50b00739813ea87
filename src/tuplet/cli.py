"""The command table. Heavy imports happen inside the command, so that --help answers at once."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tuplet.arguments import parse
from tuplet.commands.bench import bench
from tuplet.commands.compare import compare
from tuplet.commands.evaluate import evaluate
from tuplet.config import ComputeConfig, DataConfig, RunConfig
from tuplet.console import epoch_line, metric_table, recipe_lines, train_usage, usage
from tuplet.errors import InputError
from tuplet.overrides import override
from tuplet.recipes import RECIPES, recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from tuplet.data.table import Split
    from tuplet.runs import Run


@dataclass(frozen=True)
class TrainArguments:
    """Train a model, measure it after every epoch, and write its report."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    to: Path | None = None
    """Folder of the new run; the default is runs/NAME-DATE-TIME."""


@dataclass(frozen=True)
class ResumeArguments:
    """Go on with a run that was stopped, on other devices if need be."""

    compute: ComputeConfig = field(default_factory=ComputeConfig)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with 2 on an error that the user can mend, in one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        _run(given)
    except InputError as error:
        if error.one_rank_only or os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"tuplet: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that cannot be written: the user's to mend as well
        print(
            f"tuplet: {error}; a run that was under way goes on with tuplet train --resume", file=sys.stderr
        )
        sys.exit(2)


def _run(given: list[str]) -> None:
    if not given or given[0] in ("-h", "--help"):
        print(usage({name: text for name, (_, text) in COMMANDS.items()}))
    elif given[0] == "--version":
        from importlib.metadata import version

        print(f"tuplet {version('tuplet')}")
    elif given[0] in COMMANDS:
        COMMANDS[given[0]][0](given[1:])
    else:
        raise InputError(f"there is no command {given[0]!r}; want one of {', '.join(COMMANDS)}")


def demo(arguments: list[str]) -> None:
    """Generate characters, train on some, search among others, write the report."""
    chosen = parse(TrainArguments, TrainArguments(recipe("demo")), arguments, "tuplet demo")
    run = _train(chosen.config, chosen.to)
    if run is not None:
        program = "tuplet" if shutil.which("tuplet") else sys.argv[0]
        print(f"\nOpen {run.report_file} in a browser: curves, maps, and the worst mistakes as pictures.")
        print("Try next, on your own pictures in folders PHOTOS/<class>/*:")
        print(f"  {program} train folder --data.root PHOTOS")
        print(f"  {program} train --help")


def train(arguments: list[str]) -> None:
    """Train by a recipe, by a config file, or go on with a run that was stopped."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(train_usage(RECIPES))
        return
    head, _, value = arguments[0].partition("=")
    first, *rest = [head, *([value] if value else []), *arguments[1:]]
    if first == "--resume":
        _resume(_value_of(first, rest), rest[1:])
        return
    if first == "--config":
        from tuplet.runs import read_config

        file = _value_of(first, rest)
        config, rest, program = read_config(Path(file)), rest[1:], f"tuplet train --config {file}"
    elif first.startswith("-"):
        raise InputError(
            f"tuplet train starts with {first!r}; want RECIPE, --config FILE or --resume RUN first"
        )
    else:
        config, program = recipe(first), f"tuplet train {first}"
    chosen = parse(TrainArguments, TrainArguments(config), rest, program)
    _train(chosen.config, chosen.to)


def report(arguments: list[str]) -> None:
    """Write the report of a run again."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: tuplet report RUN")
        return
    _no_more(arguments[1:], "tuplet report RUN")
    from tuplet.runs import Run
    from tuplet.training import launch, load_split

    run = Run(arguments[0])
    _write_report(run, launch(run.config), load_split(run.config))


def recipes(arguments: list[str]) -> None:
    """List the recipes, or print one in full."""
    if arguments and arguments[0] not in ("-h", "--help"):
        from tuplet.runs import write_config

        _no_more(arguments[1:], "tuplet recipes NAME")
        print(write_config(recipe(arguments[0])), end="")
        return
    print("\n".join(recipe_lines(RECIPES)))
    print("\ntuplet recipes NAME prints one in full; tuplet train NAME --help lists what can be changed.")


def data(arguments: list[str]) -> None:
    """Count the images and classes that a run would train on and be tested on."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: tuplet data describe --root FOLDER [any field of the config's data]")
        return
    if arguments[0] != "describe":
        raise InputError(f"tuplet data has no {arguments[0]!r}; want describe")
    config = parse(DataConfig, DataConfig(), arguments[1:], "tuplet data describe")
    from tuplet.data.loading import load
    from tuplet.data.splits import describe
    from tuplet.progress import track

    print(describe(load(config, progress=lambda rows: track(rows, "reading"))))


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "demo": (demo, "the whole job on generated characters, in about a minute"),
    "train": (train, "train a model:  tuplet train RECIPE [--field value ...]"),
    "evaluate": (evaluate, "measure a run, a saved model, or embeddings:  tuplet evaluate RUN|MODEL|FILE"),
    "compare": (compare, "how sure a difference is, on the same images:  tuplet compare A B"),
    "bench": (bench, "several losses under one protocol:  tuplet bench RECIPE [--losses hist,triplet]"),
    "report": (report, "write a run's report again:  tuplet report RUN"),
    "recipes": (recipes, "list the recipes, or print one:  tuplet recipes [NAME]"),
    "data": (data, "count images and classes:  tuplet data describe --root FOLDER"),
}


def _train(config: RunConfig, to: Path | None) -> Run | None:
    """Train a new run to its end; None on the ranks that have nothing to print."""
    from tuplet.ranks import on_first
    from tuplet.runs import Run
    from tuplet.training import launch, load_split

    fabric = launch(config)
    # The run may be resumed from another folder.
    paths = {"data.root": config.data.root, "model.weights": config.model.weights}
    config = override(config, {name: path.absolute() for name, path in paths.items() if path is not None})
    default = Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = fabric.broadcast(to or default)
    split = load_split(config)
    new = not Path(folder).exists()
    on_first(fabric, lambda: Run.create(config, folder).folder)
    run = Run(folder)
    try:
        return _finish(run, fabric, split)
    except InputError:
        if fabric.is_global_zero and not run.reports():
            _remove(run.folder, whole=new)  # nothing was learnt, and the mended command may want the name
        raise


def _remove(folder: Path, *, whole: bool) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    if whole:
        folder.rmdir()


def _resume(folder: str, arguments: list[str]) -> None:
    from tuplet.runs import Run
    from tuplet.training import launch, load_split

    run = Run(folder)
    defaults = ResumeArguments(run.config.compute)
    chosen = parse(ResumeArguments, defaults, arguments, f"tuplet train --resume {folder}")
    run.config = replace(run.config, compute=chosen.compute)
    _finish(run, launch(run.config), load_split(run.config))


def _finish(run: Run, fabric: Fabric, split: Split) -> Run | None:
    from tuplet.data.splits import describe
    from tuplet.training import train as epochs

    speaks = fabric.is_global_zero
    if speaks:
        print(describe(split, measured=run.config.evaluation.split))
        print(f"run       {run.folder}\n", flush=True)
    try:
        for epoch in epochs(run, fabric=fabric, split=split):
            if speaks:
                print(epoch_line(epoch, run.config.schedule.epochs), flush=True)
    except KeyboardInterrupt:
        if speaks:
            print(f"\nstopped; go on with: tuplet train --resume {run.folder}", file=sys.stderr)
        sys.exit(130)
    _write_report(run, fabric, split)
    return run if speaks else None


def _write_report(run: Run, fabric: Fabric, split: Split) -> None:
    from tuplet.evaluation import embed
    from tuplet.report import ReportContent, write_report

    network = fabric.setup_module(run.embedder())
    data, workers = run.config.data, run.config.compute.num_workers
    train_part, test_part = (
        embed(network, table, data, fabric=fabric, num_workers=workers) for table in (split.train, split.test)
    )
    if not fabric.is_global_zero:
        return
    epochs = run.reports()
    environment = run.read_json(run.environment_file)
    notes = [*split.notes, *(f"skipped: {line}" for line in split.skipped)]
    if split.gallery is not None:
        notes.append(
            "metrics are of queries in the gallery, maps and mistakes of the queries among themselves"
        )
    write_report(
        ReportContent(run.config, epochs, environment, train_part, test_part, notes), run.report_file
    )
    measured = [(epoch.epoch, epoch.evaluation) for epoch in epochs if epoch.evaluation is not None]
    for epoch, evaluation in measured[-1:]:
        after = f"after epoch {epoch} of {run.config.schedule.epochs}"
        print(f"\n{metric_table(evaluation, after)}")
    print(f"\nreport    {run.report_file}")


def _no_more(rest: Sequence[str], usage: str) -> None:
    if rest:
        raise InputError(f"{rest[0]!r} is one argument too many; want {usage}")


def _value_of(option: str, rest: Sequence[str]) -> str:
    if not rest:
        raise InputError(f"{option} stands alone; want a path after it")
    return rest[0]


if __name__ == "__main__":
    main()
