"""The command table. Heavy imports happen inside the command, so that --help answers at once."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from tuplet.config import DataConfig, RunConfig
from tuplet.errors import InputError
from tuplet.recipes import RECIPES, recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from tuplet.data.table import Split
    from tuplet.evaluation import EvalReport
    from tuplet.runs import EpochReport, Run

A = TypeVar("A")


@dataclass(frozen=True)
class TrainArguments:
    """Train a model, measure it after every epoch, and write its report."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    to: Path | None = None
    """Folder of the new run; the default is runs/NAME-DATE-TIME."""


@dataclass(frozen=True)
class EvaluateArguments:
    """Measure a trained model, on its own test images or on others (--data.root)."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    json: bool = False
    """Print JSON instead of words."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with 2 on an error that the user can mend, in one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_usage())
        return
    if given[0] == "--version":
        from importlib.metadata import version

        print(f"tuplet {version('tuplet')}")
        return
    try:
        if given[0] not in COMMANDS:
            raise InputError(f"there is no command {given[0]!r}; want one of {', '.join(COMMANDS)}")
        COMMANDS[given[0]][0](given[1:])
    except InputError as error:
        print(f"tuplet: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)


def demo(arguments: list[str]) -> None:
    """Generate characters, train on some, search among others, write the report."""
    chosen = _parse(TrainArguments, TrainArguments(recipe("demo")), arguments, "tuplet demo")
    run = _train(chosen.config, chosen.to)
    if run is not None:
        print("\nTry next, on your own pictures in folders PHOTOS/<class>/*:")
        print("  tuplet train folder --data.root PHOTOS")
        print("  tuplet train --help")


def train(arguments: list[str]) -> None:
    """Train by a recipe, by a config file, or go on with a run that was stopped."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_train_usage())
        return
    first, rest = arguments[0], arguments[1:]
    if first == "--resume":
        _resume(_value_of(first, rest))
        return
    if first == "--config":
        from tuplet.runs import read_config

        config, rest = read_config(Path(_value_of(first, rest))), rest[1:]
        program = f"tuplet train --config {arguments[1]}"
    elif first.startswith("-"):
        raise InputError(
            f"tuplet train starts with {first!r}; want RECIPE, --config FILE or --resume RUN first"
        )
    else:
        config, program = recipe(first), f"tuplet train {first}"
    chosen = _parse(TrainArguments, TrainArguments(config), rest, program)
    _train(chosen.config, chosen.to)


def evaluate(arguments: list[str]) -> None:
    """Measure the model of a run: Recall@K, R-precision, MAP@R, NMI, AMI."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: tuplet evaluate RUN [--data.root FOLDER] [--json] [any field of the config]")
        if arguments and arguments[0] not in ("-h", "--help"):
            raise InputError(f"tuplet evaluate starts with {arguments[0]!r}; want the folder of a run first")
        return
    from tuplet.evaluation import embed
    from tuplet.evaluation import evaluate as measure
    from tuplet.runs import Run
    from tuplet.training import launch, load_split

    run = Run(arguments[0])
    defaults = EvaluateArguments(run.config)
    chosen = _parse(EvaluateArguments, defaults, arguments[1:], f"tuplet evaluate {arguments[0]}")
    fabric = launch(chosen.config)
    split = load_split(chosen.config)
    network = fabric.setup_module(run.embedder())
    workers = chosen.config.compute.num_workers
    embedded = embed(network, split.test, chosen.config.data, fabric=fabric, num_workers=workers)
    report = measure(embedded, chosen.config.evaluation, clustering=True)
    if fabric.is_global_zero and chosen.json:
        import dataclasses
        import json

        print(json.dumps(dataclasses.asdict(report), indent=2))
    elif fabric.is_global_zero:
        print(_table(report))


def report(arguments: list[str]) -> None:
    """Write the report of a run again."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: tuplet report RUN")
        return
    from tuplet.runs import Run
    from tuplet.training import launch, load_split

    run = Run(arguments[0])
    _write_report(run, launch(run.config), load_split(run.config))


def recipes(arguments: list[str]) -> None:
    """List the recipes, or print one in full."""
    if arguments and not arguments[0].startswith("-"):
        from tuplet.runs import write_config

        print(write_config(recipe(arguments[0])), end="")
        return
    width = max(map(len, RECIPES))
    for name, make in RECIPES.items():
        print(f"{name:<{width}}  {(make.__doc__ or '').splitlines()[0]}")
    print("\ntuplet recipes NAME prints one in full; tuplet train NAME --help lists what can be changed.")


def data(arguments: list[str]) -> None:
    """Count the images and classes that a run would train on and be tested on."""
    if not arguments or arguments[0] != "describe":
        print("usage: tuplet data describe --root FOLDER [any field of the config's data]")
        if arguments and arguments[0] not in ("-h", "--help"):
            raise InputError(f"tuplet data has no {arguments[0]!r}; want describe")
        return
    config = _parse(DataConfig, DataConfig(), arguments[1:], "tuplet data describe")
    from tuplet.data.loading import load
    from tuplet.data.splits import describe
    from tuplet.progress import track

    print(describe(load(config, progress=lambda rows: track(rows, "reading"))))


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "demo": (demo, "the whole job on generated characters, in about a minute"),
    "train": (train, "train a model:  tuplet train RECIPE [--field value ...]"),
    "evaluate": (evaluate, "measure a trained model:  tuplet evaluate RUN [--data.root FOLDER]"),
    "report": (report, "write a run's report again:  tuplet report RUN"),
    "recipes": (recipes, "list the recipes, or print one:  tuplet recipes [NAME]"),
    "data": (data, "count images and classes:  tuplet data describe --root FOLDER"),
}


def _usage() -> str:
    lines = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tuplet COMMAND ...",
            "",
            "Labelled images in, an embedding model and an honest account of it out.",
            "",
            *lines,
            "",
            "tuplet COMMAND --help says more.",
        ]
    )


def _train_usage() -> str:
    width = max(map(len, RECIPES))
    lines = [f"  {name:<{width}}  {(make.__doc__ or '').splitlines()[0]}" for name, make in RECIPES.items()]
    return "\n".join(
        [
            "usage: tuplet train RECIPE [--to FOLDER] [--field value ...]",
            "       tuplet train --config FILE [--to FOLDER] [--field value ...]",
            "       tuplet train --resume RUN",
            "",
            "Recipes:",
            *lines,
            "",
            "tuplet train RECIPE --help lists every field.",
        ]
    )


def _train(config: RunConfig, to: Path | None) -> Run | None:
    """Train a new run to its end; None on the ranks that have nothing to print."""
    from tuplet.runs import Run
    from tuplet.training import launch, load_split

    fabric = launch(config)
    default = Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = fabric.broadcast(to or default)
    split = load_split(config)
    if fabric.is_global_zero:
        Run.create(config, folder)
    fabric.barrier()
    run = Run(folder)
    try:
        return _finish(run, fabric, split)
    except InputError:
        if fabric.is_global_zero and not run.reports():
            shutil.rmtree(folder)  # nothing was learnt, and the mended command may want the same name
        raise


def _resume(folder: str) -> None:
    from tuplet.runs import Run
    from tuplet.training import launch, load_split

    run = Run(folder)
    _finish(run, launch(run.config), load_split(run.config))


def _finish(run: Run, fabric: Fabric, split: Split) -> Run | None:
    from tuplet.data.splits import describe
    from tuplet.training import train as epochs

    speaks = fabric.is_global_zero
    if speaks:
        print(describe(split))
        print(f"run     {run.folder}\n", flush=True)
    try:
        for epoch in epochs(run, fabric=fabric, split=split):
            if speaks:
                print(_line(epoch, run.config.schedule.epochs), flush=True)
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
    write_report(
        ReportContent(run.config, epochs, environment, train_part, test_part, notes), run.report_file
    )
    last = next(epoch.evaluation for epoch in reversed(epochs) if epoch.evaluation is not None)
    print(f"\n{_table(last)}\n\nreport  {run.report_file}")


def _line(report: EpochReport, epochs: int) -> str:
    parts = [f"epoch {report.epoch:>{len(str(epochs))}}/{epochs}"]
    if report.losses:
        losses = report.losses
        parts.append(
            f"loss {losses['total']:7.3f} = distribution {losses['distribution']:7.3f}"
            f" + hypergraph {losses['cross_entropy']:6.3f}"
        )
        parts.append(f"{report.images_per_second:6,.0f} images/s")
    else:
        parts.append("before training")
    if report.evaluation is not None:
        first = next(iter(report.evaluation.retrieval))
        parts.append(f"{_label(first)} {100 * report.evaluation.retrieval[first]:5.1f} %")
    return "  ".join(parts)


def _table(report: EvalReport) -> str:
    rows = [
        f"{report.split} split: {report.num_images:,} images of {report.num_classes:,} unseen classes,"
        f" {report.num_queries:,} queries; last epoch"
    ]
    rows += [f"  {_label(name):<12} {100 * value:6.2f} %" for name, value in report.retrieval.items()]
    clusters = report.clustering
    if clusters is not None:
        rows.append(f"  {'NMI':<12} {100 * clusters.nmi_mean:6.2f} % (std {100 * clusters.nmi_std:.2f})")
        rows.append(f"  {'AMI':<12} {100 * clusters.ami_mean:6.2f} % (std {100 * clusters.ami_std:.2f})")
        rows.append(f"  {clusters.settings}")
    return "\n".join(rows)


def _label(metric: str) -> str:
    names = {"r_precision": "R-precision", "map_at_r": "MAP@R"}
    return names.get(metric, metric.replace("recall_at_", "Recall@"))


def _value_of(option: str, rest: Sequence[str]) -> str:
    if not rest:
        raise InputError(f"{option} stands alone; want a path after it")
    return rest[0]


def _parse(kind: Callable[..., A], default: A, arguments: Sequence[str], program: str) -> A:
    """The arguments as tyro reads them from the types; its errors as one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parse: Any = tyro.cli
            parsed: A = parse(kind, default=default, args=list(arguments), prog=program)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(f"{_one_line(said.getvalue())}; {program} --help lists what it takes") from None
    return parsed


def _one_line(box: str) -> str:
    """What tyro's box says, without the box: the message, and the option that it thinks was meant."""
    sections: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        text = line.strip(" │")
        # Its title is followed by a line, or stands in one, depending on the terminal's encoding.
        if text.startswith(("╭", "╰")) or (text and not text.strip("─-")):
            sections.append([])
        elif text:
            sections[-1].append(text)
    _, message, *more = [*sections, [], []]
    hint = f", perhaps {more[0][1]}" if more[0][:1] == ["Perhaps you meant:"] else ""
    said = re.sub(r"^Error parsing [\w.]+: (?=[\w.]+ is )", "", " ".join(message))
    return (said or "the arguments cannot be used") + hint


if __name__ == "__main__":
    main()
