"""`tuplet train` and `tuplet demo`: one run, or all the trainings behind one number."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tuplet.cli.arguments import parse
from tuplet.cli.commands.base_config import base_config, require_root, value_of
from tuplet.cli.commands.report import write_run_report
from tuplet.cli.console import say_epochs, train_usage
from tuplet.config import ComputeConfig, RunConfig
from tuplet.config.overrides import with_absolute_paths
from tuplet.errors import InputError
from tuplet.recipes.catalogue import RECIPES, recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from tuplet.data.splits import Split
    from tuplet.training.run_folder import Run


@dataclass(frozen=True)
class TrainArguments:
    """Train a model, measure it after every epoch, and write its report.

    The option --loss NAME takes another loss than hist, with its published settings and the batches that it
    needs.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    to: Path | None = None
    """Folder of the new run; the default is runs/NAME-DATE-TIME."""
    seeds: int = 1
    """Runs, with seeds `seed`, `seed` + 1, ..., >= 1. Several go into folders below TO, beside a summary of
    mean, standard deviation and interval; the same command with the same --to goes on with them."""


@dataclass(frozen=True)
class ResumeArguments:
    """Go on with a run that was stopped, on other devices if need be."""

    compute: ComputeConfig = field(default_factory=ComputeConfig)


def demo(arguments: list[str]) -> None:
    """Generate characters, train on some, search among others, write the report."""
    chosen = parse(TrainArguments, TrainArguments(recipe("demo")), arguments, "tuplet demo")
    run = _train(chosen, ["demo", *arguments])
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
    if any(one.partition("=")[0] == "--resume" for one in arguments[1:]):
        raise InputError(
            "--resume is not the first argument; want tuplet train --resume RUN, without a recipe"
        )
    option, _, value = arguments[0].partition("=")
    if option == "--resume":
        rest = [*([value] if value else []), *arguments[1:]]
        _resume(value_of(option, rest), rest[1:])
        return
    config, rest, program = base_config(arguments, "tuplet train")
    chosen = parse(TrainArguments, TrainArguments(config), rest, program)
    if chosen.seeds < 1:
        raise InputError(f"--seeds is {chosen.seeds}; want 1 or more")
    _train(chosen, ["train", *arguments])


def _train(chosen: TrainArguments, arguments: Sequence[str]) -> Run | None:
    """Train what was asked for to its end; the run on the rank that prints, where there is but one."""
    require_root(chosen.config)
    from tuplet.training.devices import launch

    config = with_absolute_paths(chosen.config)
    fabric = launch(config)
    default = Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(fabric.broadcast(chosen.to or default))
    if chosen.seeds > 1 or config.evaluation.selection == "validation":
        return _several(config, folder, chosen.seeds, fabric, arguments)
    return _one(config, folder, fabric)


def _one(config: RunConfig, folder: Path, fabric: Fabric) -> Run | None:
    from tuplet.data.load import load_split
    from tuplet.ranks import on_first
    from tuplet.training.run_folder import Run

    split = load_split(config)
    before = set(folder.iterdir()) if folder.is_dir() else None
    on_first(fabric, lambda: Run.create(config, folder).folder)
    run = Run(folder)
    try:
        return _finish(run, fabric, split)
    except InputError:
        if fabric.is_global_zero and not run.reports():
            _remove_new(run.folder, before)  # nothing was learnt, and the mended command may want the name
        raise


def _several(
    config: RunConfig, folder: Path, seeds: int, fabric: Fabric, arguments: Sequence[str]
) -> Run | None:
    """The folds, if the selection wants them, and the run of each seed; then what they say together."""
    from tuplet.data.files import write_atomically
    from tuplet.data.load import load_data, split_of
    from tuplet.data.splits import describe
    from tuplet.report.run_report import summary_page
    from tuplet.training.experiment import epochs_of_runs, seed_folder
    from tuplet.training.run_folder import Run

    speaks = fabric.is_global_zero
    images = load_data(config)
    if speaks:
        print(describe(split_of(images, config), measured=config.evaluation.split), flush=True)
    folders = {
        config.seed + number: seed_folder(folder, config.seed + number) if seeds > 1 else folder
        for number in range(seeds)
    }
    go_on = f"the same command with --to {folder} goes on"
    for seed, where in folders.items():
        epochs = epochs_of_runs(replace(config, seed=seed), where, fabric=fabric, images=images)
        say_epochs(epochs, speaks=speaks, go_on=go_on)
    runs = [Run(where) for where in folders.values()]
    for run in runs:
        write_run_report(run, fabric, split_of(images, run.config))
    if speaks and seeds > 1:
        page = summary_page(config.name, runs, command=shlex.join(["tuplet", *arguments]))
        write_atomically(folder / "summary.md", page.encode())
        print(f"\n{page}\nsummary   {folder / 'summary.md'}")
    return runs[0] if speaks and seeds == 1 else None


def _remove_new(folder: Path, before: set[Path] | None) -> None:
    """Remove what was not in the folder before, and the folder if it was not there itself."""
    for entry in set(folder.iterdir()) - (before or set()):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    if before is None:
        folder.rmdir()


def _resume(folder: str, arguments: list[str]) -> None:
    from tuplet.data.load import load_split
    from tuplet.training.devices import launch
    from tuplet.training.run_folder import Run

    run = Run(folder)
    defaults = ResumeArguments(run.config.compute)
    chosen = parse(ResumeArguments, defaults, arguments, f"tuplet train --resume {folder}")
    run.config = replace(run.config, compute=chosen.compute)
    _finish(run, launch(run.config), load_split(run.config))


def _finish(run: Run, fabric: Fabric, split: Split) -> Run | None:
    from tuplet.data.splits import describe
    from tuplet.training.loop import train_epochs as epochs

    speaks = fabric.is_global_zero
    if speaks:
        print(describe(split, measured=run.config.evaluation.split), flush=True)
    trained = ((run, epoch) for epoch in epochs(run, fabric=fabric, split=split))
    go_on = f"go on with: tuplet train --resume {run.folder}"
    if say_epochs(trained, speaks=speaks, go_on=go_on) == 0 and speaks:
        print(f"\nrun       {run.folder}")
        print(
            f"finished  before, after epoch {run.config.schedule.last_epoch}; only its report is new",
            flush=True,
        )
    write_run_report(run, fabric, split)
    return run if speaks else None
