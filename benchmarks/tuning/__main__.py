"""What a search finds and what it is worth: samplers on one budget, honest and oracle, trained again.

    python -m benchmarks.tuning --to runs/tuning --recipe "omniglot --data.root PHOTOS --schedule.epochs 3"

runs `tuplet tune` for every sampler and repeat and for the oracle, trains the best settings of each search
and the recipe's own with seeds that no search has seen, and writes README.md, tuning.json and curves.svg into
--results. What is finished in --to is not repeated.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import tyro

from benchmarks.tuning.page import SearchResult, curves, page
from tuplet.data.files import write_atomically
from tuplet.training.experiment import select
from tuplet.training.run_folder import Run

SPACE = (
    "loss.tau=2:64:log",
    "loss.alpha=0.25:4:log",
    "loss.lambda_s=0:3",
    "data.batch_size=16,32,64,128",
    "optimizer.lr_distributions=0.001:0.3:log",
)


Which: TypeAlias = tuple[str, str, int]
"""The objective, the sampler and the repeat of a search."""


@dataclass(frozen=True)
class Arguments:
    """Compare samplers, and honest searches with the oracle's."""

    recipe: str
    """A recipe and its options, as one argument: "omniglot --data.root PHOTOS --schedule.epochs 3"."""
    to: Path = Path("runs/tuning")
    """Folder of the searches and of the trainings after them."""
    results: Path = Path("docs/results/tuning")
    """Where the page goes."""
    samplers: str = "gp,tpe,random"
    """Compared on validation classes."""
    oracle: str = "gp"
    """Sampler of the searches on test classes."""
    space: tuple[str, ...] = SPACE
    """What is searched."""
    repeats: int = 3
    """Searches of each kind, with sampler seeds 0, 1, ..."""
    trials: int = 60
    """Of each search."""
    seeds: int = 3
    """Trainings of each search's best settings, with seeds 1, 2, ...; the trials had seed 0."""
    jobs: int = 2
    """Processes at a time."""


def main(arguments: Arguments) -> None:
    """Search, train, and write the page."""
    folders = _search_folders(arguments)
    searches = [
        _tune(arguments, *which, folder)
        for which, folder in folders.items()
        if not (folder / "trials.json").exists()
    ]
    _all(searches, arguments.jobs)
    _all(_trainings(arguments, folders), arguments.jobs)
    own = _scores(arguments, arguments.to / "recipe")
    found = [
        _result(arguments, objective, sampler, folder) for (objective, sampler, _), folder in folders.items()
    ]
    first = Run(next(where for _, where in _finals(arguments, arguments.to / "recipe")))
    runs = [first, *(Run(folder / "trials" / "0000") for folder in folders.values())]
    text = page(
        found,
        own,
        space=arguments.space,
        label=select(first.config, first.reports()).label,
        environments=[run.read_json(run.environment_file) for run in runs],
        command=shlex.join(["python", "-m", "benchmarks.tuning", *sys.argv[1:]]),
    )
    content = {"recipe": own, "searches": [asdict(one) for one in found]}
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.results / "README.md", text.encode())
    write_atomically(arguments.results / "tuning.json", (json.dumps(content, indent=1) + "\n").encode())
    write_atomically(arguments.results / "curves.svg", curves(found).encode())
    print(text)


def _search_folders(arguments: Arguments) -> dict[Which, Path]:
    kinds = [("validation", sampler) for sampler in arguments.samplers.split(",")]
    kinds.append(("oracle", arguments.oracle))
    return {
        (objective, sampler, repeat): arguments.to / f"{objective}-{sampler}-{repeat}"
        for repeat in range(arguments.repeats)
        for objective, sampler in kinds
    }


def _trainings(arguments: Arguments, folders: Mapping[Which, Path]) -> list[list[str]]:
    """Return the commands that train the recipe's settings and the best of each search, less what is done."""
    recipe = ["train", *shlex.split(arguments.recipe)]
    commands = [(recipe, run) for run in _finals(arguments, arguments.to / "recipe")]
    for (objective, _, _), folder in folders.items():
        # An oracle's best trial is itself a training on all training classes with the trials' seed.
        with_trials_seed = [(0, folder / "final" / "seed0")] if objective == "validation" else []
        best = ["train", "--config", str(folder / "best.yaml")]
        commands += [(best, run) for run in [*with_trials_seed, *_finals(arguments, folder / "final")]]
    return [
        [*command, "--seed", str(seed), "--to", str(where)]
        for command, (seed, where) in commands
        if not (where / "report.html").exists()
    ]


def _tune(arguments: Arguments, objective: str, sampler: str, repeat: int, folder: Path) -> list[str]:
    space = [part for one in arguments.space for part in ("--space", one)]
    how = ["--objective", objective, "--sampler", sampler, "--sampler-seed", str(repeat)]
    trials = ["--trials", str(arguments.trials), "--to", str(folder)]
    return ["tune", *shlex.split(arguments.recipe), *space, *how, *trials]


def _finals(arguments: Arguments, folder: Path) -> list[tuple[int, Path]]:
    return [(seed, folder / f"seed{seed}") for seed in range(1, arguments.seeds + 1)]


def _scores(arguments: Arguments, folder: Path) -> list[float]:
    """Recall@1 on the test classes of each new seed, by the recipe's own selection."""
    return [_score(where) for _, where in _finals(arguments, folder)]


def _score(folder: Path) -> float:
    run = Run(folder)
    return select(run.config, run.reports()).evaluation.retrieval["recall_at_1"]


def _result(arguments: Arguments, objective: str, sampler: str, folder: Path) -> SearchResult:
    rows: list[dict[str, Any]] = json.loads((folder / "trials.json").read_text())
    best = max(rows, key=lambda row: (row["value"], -row["number"]))
    return SearchResult(
        objective,
        sampler,
        tuple(row["value"] for row in rows),
        best["settings"],
        best["test"],
        best["test"] if objective == "oracle" else _score(folder / "final" / "seed0"),
        tuple(_scores(arguments, folder / "final")),
        sum(row.get("seconds", 0.0) for row in rows),
    )


def _all(commands: Sequence[list[str]], jobs: int) -> None:
    def one(command: list[str]) -> None:
        print("tuplet", *command, file=sys.stderr, flush=True)
        called = [sys.executable, "-m", "tuplet", *command]
        said = subprocess.run(
            called, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if said.returncode != 0:
            raise SystemExit(f"{shlex.join(called)}\n{said.stdout}{said.stderr}")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, commands))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
