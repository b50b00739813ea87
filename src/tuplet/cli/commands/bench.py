"""`tuplet bench RECIPE`: several losses under one protocol."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from tuplet.cli.arguments import parse
from tuplet.cli.commands.base_config import require_extra
from tuplet.cli.console import say_epochs
from tuplet.config import LossName, RunConfig
from tuplet.config.overrides import with_absolute_paths
from tuplet.errors import InputError
from tuplet.metrics.names import retrieval_names
from tuplet.recipes.catalogue import recipe, with_loss

_USAGE = f"""\
usage: tuplet bench RECIPE [--losses NAME,NAME,...] [--trials N] [--sampler gp|tpe|random]
                    [--seeds N] [--to FOLDER] [--field value ...]

Trains several losses on the same images: settings of each are searched with as many trials on validation
classes, the best ones then trained with as many seeds. Ends in one table: means, intervals, paired
tests, the frozen backbone, cost.

Losses: {", ".join(get_args(LossName))}.
The same command goes on where it was stopped.

tuplet recipes lists the recipes; tuplet bench RECIPE --help lists every field."""


@dataclass(frozen=True)
class BenchArguments:
    """Compare losses under one protocol: as many trials for each on validation classes, then as many seeds.

    The same command with the same --to goes on where it was stopped, and adds losses or seeds to what is
    there. Ends with a table in TO/comparison.md and everything behind it in TO/comparison.json.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    losses: str = ",".join(get_args(LossName))
    """Separated by commas; the first is the one that the others are held against."""
    seeds: int = 5
    """Final trainings of each loss, with seeds 0, 1, ..., >= 1."""
    trials: int = 8
    """Settings tried for each loss on a fold of the training classes, >= 1; the first are the published ones.
    1 takes the published ones untried."""
    sampler: Literal["gp", "tpe", "random"] = "gp"
    """Where the other settings come from, over the same ranges as those of tuplet tune --space wide."""
    metric: str = "recall_at_1"
    """By which the settings are chosen: recall_at_K, map_at_r or r_precision, on the validation classes."""
    to: Path | None = None
    """Folder of all runs and of the table; the default is runs/bench-NAME."""


def bench(arguments: list[str]) -> None:
    """Train several losses under one protocol and write one table of them."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return
    if arguments[0].startswith("-"):
        raise InputError(
            f"tuplet bench starts with {arguments[0]!r}; want a recipe first: tuplet bench RECIPE"
        )
    base = recipe(arguments[0])
    program = f"tuplet bench {arguments[0]}"
    chosen = parse(BenchArguments, BenchArguments(base), arguments[1:], program)
    names = _losses(chosen.losses)
    _check(chosen)
    require_extra("tune", "optuna", "psycopg")
    from tuplet.cli.commands.tune import say_trials
    from tuplet.data.files import write_atomically
    from tuplet.data.load import load_data, split_of
    from tuplet.data.splits import describe
    from tuplet.research.bench import Protocol, compare_losses, comparison_page, train_loss
    from tuplet.training.devices import launch

    folder = chosen.to or Path("runs") / f"bench-{chosen.config.name}"
    config = with_absolute_paths(chosen.config)
    configs = {name: with_loss(config, name) for name in names}
    protocol = Protocol(configs, chosen.trials, chosen.seeds, chosen.metric, folder, chosen.sampler)
    fabric = launch(config)
    images = load_data(config)
    if fabric.is_global_zero:
        print(describe(split_of(images, configs[names[0]])), flush=True)
    go_on = f"the same command with --to {folder} goes on"
    for name in names:
        if chosen.trials > 1:
            say_trials(protocol.search(name), fabric=fabric, images=images, go_on=go_on)
        epochs = train_loss(protocol, name, fabric=fabric, images=images)
        say_epochs(epochs, speaks=fabric.is_global_zero, go_on=go_on)
    found = compare_losses(protocol, fabric=fabric, images=images)
    if fabric.is_global_zero:
        page = comparison_page(protocol, found, command=shlex.join(["tuplet", "bench", *arguments]))
        write_atomically(folder / "comparison.md", page.encode())
        write_atomically(folder / "comparison.json", (json.dumps(asdict(found), indent=1) + "\n").encode())
        print(f"\n{page}\nwritten to {folder}")


def _losses(text: str) -> list[LossName]:
    known: dict[str, LossName] = {name: name for name in get_args(LossName)}
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"--losses has {unknown[0]!r}; want some of {','.join(known)}")
    if len(set(names)) < len(names):
        raise InputError(f"--losses {text} names one twice; want each once")
    return [known[name] for name in names]


def _check(chosen: BenchArguments) -> None:
    for name in ("seeds", "trials"):
        if getattr(chosen, name) < 1:
            raise InputError(f"--{name} is {getattr(chosen, name)}; want 1 or more")
    evaluation = chosen.config.evaluation
    if evaluation.split != "test":
        raise InputError("evaluation.split is 'validation'; want test: the trials use validation classes")
    metrics = retrieval_names(evaluation.recall_at)
    if chosen.metric not in metrics:
        raise InputError(f"--metric is {chosen.metric!r}; want one of {', '.join(metrics)}")
