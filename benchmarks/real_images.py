"""How good the recipes are on real images: mean and spread over seeds, last epoch, on classes never seen.

    python -m benchmarks.real_images omniglot --data-root ../shared/data/omniglot_small

writes docs/results/NAME.md and NAME.json with the commit, the hardware, the seeds and the time.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from tuplet import Run, override, recipe
from tuplet.data.load import load_data
from tuplet.report.run_report import summary_page
from tuplet.training.devices import launch
from tuplet.training.experiment import epochs_of_runs


@dataclass(frozen=True)
class Arguments:
    """Train a recipe with several seeds and write its results."""

    recipe: tyro.conf.Positional[str]
    """omniglot, folder, or demo for generated characters."""
    data_root: Path | None = None
    """Folder of train/<class>/* and test/<class>/*; generated images need none."""
    title: str = ""
    """First part of the name of the files; the recipe's name where it is not given."""
    seeds: int = 3
    """Runs, with seeds 0, 1, ..."""
    set: tuple[str, ...] = ()
    """More fields to change, as path=value."""
    runs: Path = Path("runs")
    """Where the run folders go; a finished run there is not repeated."""
    results: Path = Path("docs/results")
    """Where the results go."""


def main(arguments: Arguments) -> None:
    """Run every seed, then write the table."""
    name = arguments.title or arguments.recipe
    changes: dict[str, object] = {"name": name}
    if arguments.data_root is not None:
        changes["data.root"] = str(arguments.data_root)
    for pair in arguments.set:
        path, _, value = pair.partition("=")
        changes[path] = value
    config = override(recipe(arguments.recipe), changes)
    fabric, images = launch(config), load_data(config)
    runs = []
    for seed in range(arguments.seeds):
        folder = arguments.runs / f"{name}-seed{seed}"
        of_seed = override(config, {"seed": seed})
        for run, report in epochs_of_runs(of_seed, folder, fabric=fabric, images=images):
            print(f"{run.folder.name}, epoch {report.epoch}", file=sys.stderr, flush=True)
        runs.append(Run(folder))
    command = shlex.join(["python", "-m", "benchmarks.real_images", *sys.argv[1:]])
    text = summary_page(name, runs, command=command)
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / f"{name}.md").write_text(text)
    plain = [[asdict(epochs[0]), asdict(epochs[-1])] for epochs in (run.reports() for run in runs)]
    (arguments.results / f"{name}.json").write_text(json.dumps(plain, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
