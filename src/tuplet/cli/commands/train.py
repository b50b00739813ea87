"""`tuplet train` and `tuplet demo`: one run, or all the trainings behind one number."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from lightning_fabric import Fabric

from tuplet.cli.arguments import parse
from tuplet.cli.commands.report import write_run_report
from tuplet.cli.console import print_compute_notes, print_epochs, same_command_resumes
from tuplet.cli.options import MovedImages, ResumeArguments, TrainArguments
from tuplet.config import RunConfig
from tuplet.config.overrides import override, with_absolute_paths
from tuplet.data.files import write_atomically
from tuplet.data.load import load_data, load_split, split_of
from tuplet.data.splits import Split, describe
from tuplet.report.run_report import summary_page
from tuplet.training.devices import launch
from tuplet.training.experiment import epochs_of_runs, images_of, open_on_every_rank, seed_folder
from tuplet.training.loop import train_epochs
from tuplet.training.run_folder import Run, removed_on_input_error, resume_command
from tuplet.training.tracking import Tracking


def demo(chosen: TrainArguments, command: str) -> None:
    """Generate characters, train on some, search among others, write the report."""
    run = train(chosen, command)
    if run is not None:
        program = "tuplet"
        if not shutil.which(program):  # an environment that is not active is named by its own path
            is_module = Path(sys.argv[0]).name == "__main__.py"
            program = f"{sys.executable} -m tuplet" if is_module else sys.argv[0]
        print(f"\nOpen {run.report_file} in a browser: curves, maps, and the worst mistakes as pictures.")
        print("Try next, on your own pictures in folders PHOTOS/<class>/*:")
        print(f"  {program} train folder --data.root PHOTOS")
        print(f"  {program} train --help")


def train(chosen: TrainArguments, command: str) -> Run | None:
    """Train to the end; return the run on the rank that prints, if there is only one run."""
    config = with_absolute_paths(chosen.config)
    fabric = launch(config)
    default = Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(fabric.broadcast(chosen.to or default))
    with Tracking(chosen.track if fabric.is_global_zero else ()) as tracking:
        if chosen.seeds > 1 or config.evaluation.selection == "validation":
            return _several(replace(chosen, config=config, to=folder), fabric, command, tracking)
        return _one(config, folder, fabric, tracking)


def resume(folder: str, arguments: Iterable[str]) -> None:
    """Resume the run in a folder, on the devices and with the folder of images that the arguments name."""
    run = Run(folder)
    defaults = ResumeArguments(run.config.compute, MovedImages(run.config.data.root))
    chosen = parse(ResumeArguments, [*arguments], f"tuplet train --resume {folder}", defaults)
    run.config = replace(run.config, compute=chosen.compute)
    if chosen.data.root is not None and chosen.data.root != run.config.data.root:
        run.config = override(run.config, {"data.root": chosen.data.root.absolute()})
    fabric = launch(run.config)
    with Tracking(chosen.track if fabric.is_global_zero else ()) as tracking:
        _finish(run, fabric, images_of(run), tracking)


def _one(config: RunConfig, folder: Path, fabric: Fabric, tracking: Tracking) -> Run | None:
    split = load_split(config)
    with removed_on_input_error(folder) if fabric.is_global_zero else nullcontext():
        return _finish(open_on_every_rank(config, folder, fabric), fabric, split, tracking)


def _several(chosen: TrainArguments, fabric: Fabric, command: str, tracking: Tracking) -> Run | None:
    """Train the folds, if the selection needs them, and each seed; then summarise the seeds."""
    first_rank = fabric.is_global_zero
    config, folder, seeds = chosen.config, chosen.to, chosen.seeds
    assert folder is not None
    images = load_data(config)
    split = split_of(images, config)
    if first_rank:
        print(describe(split, measured=config.evaluation.split), flush=True)
    print_compute_notes(config, fabric, split.train.num_classes)
    folders = {
        config.seed + number: seed_folder(folder, config.seed + number) if seeds > 1 else folder
        for number in range(seeds)
    }
    how = same_command_resumes(folder)
    for seed, where in folders.items():
        epochs = epochs_of_runs(replace(config, seed=seed), where, fabric=fabric, images=images)
        print_epochs(epochs, first_rank=first_rank, how_to_resume=how, tracking=tracking)
    runs = [Run(where) for where in folders.values()]
    for run in runs:
        write_run_report(run, fabric, split_of(images, run.config), tracking)
    if first_rank and seeds > 1:
        page = summary_page(config.name, runs, command=command)
        write_atomically(folder / "summary.md", page.encode())
        tracking.files(folder, [folder / "summary.md"])
        print(f"\n{page}\nsummary   {folder / 'summary.md'}")
    return runs[0] if first_rank and seeds == 1 else None


def _finish(run: Run, fabric: Fabric, split: Split, tracking: Tracking) -> Run | None:
    first_rank = fabric.is_global_zero
    if first_rank:
        print(describe(split, measured=run.config.evaluation.split), flush=True)
    print_compute_notes(run.config, fabric, split.train.num_classes)
    epochs = ((run, epoch) for epoch in train_epochs(run, fabric=fabric, split=split))
    how = f"resume with: {resume_command(run.folder)}"
    num_epochs = print_epochs(epochs, first_rank=first_rank, how_to_resume=how, tracking=tracking)
    if num_epochs == 0 and first_rank:
        print(f"\nrun       {run.folder}")
        last = run.config.schedule.last_epoch
        print(f"finished  already, at epoch {last}; only its report was written again", flush=True)
    write_run_report(run, fabric, split, tracking)
    return run if first_rank else None
