"""How good the recipes are on real images: mean and spread over seeds, last epoch, on classes never seen.

    python benchmarks/real_images.py omniglot --data-root ../shared/data/omniglot_small

writes docs/results/NAME.md and NAME.json with the commit, the hardware, the seeds and the time.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from scipy.stats import t as student

from tuplet import EpochReport, Run, RunConfig, override, recipe, train
from tuplet.metrics.names import metric_title


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
    runs = [_trained(override(config, {"seed": seed}), arguments.runs) for seed in range(arguments.seeds)]
    arguments.results.mkdir(parents=True, exist_ok=True)
    reports = [run.reports() for run in runs]
    text = _table(name, config, runs, reports)
    (arguments.results / f"{name}.md").write_text(text)
    plain = [[asdict(report) for report in (seed[0], seed[-1])] for seed in reports]
    (arguments.results / f"{name}.json").write_text(json.dumps(plain, indent=1) + "\n")
    print(text)


def _trained(config: RunConfig, folder: Path) -> Run:
    path = folder / f"{config.name}-seed{config.seed}"
    run = Run(path) if (path / "config.yaml").exists() else Run.create(config, path)
    if run.config != config:
        sys.exit(f"{path} holds a run with other settings; want a new --runs folder, or remove it")
    for report in train(run):
        print(f"seed {config.seed}, epoch {report.epoch}", file=sys.stderr, flush=True)
    return run


def _table(name: str, config: RunConfig, runs: list[Run], reports: list[list[EpochReport]]) -> str:
    environments = [run.read_json(run.environment_file) for run in runs]
    environment = environments[0]
    for other in environments:
        if any(other[key] != environment[key] for key in ("commit", "processor", "cores", "device", "torch")):
            sys.exit(
                "the runs are of several commits or machines; want one table of one: use a new --runs folder"
            )
    last = reports[0][-1].evaluation
    assert last is not None
    seconds = [sum(report.train_seconds for report in seed) for seed in reports]
    lines = [
        f"# {name}",
        "",
        f"{last.num_images:,} test images of {last.num_classes} classes never trained on,"
        f" {last.num_queries:,} queries. Selection: last epoch of {config.schedule.epochs}."
        f" Seeds 0..{len(runs) - 1}; mean, standard deviation and 95 % t interval over the seeds.",
        "",
        "| metric (%) | before training | after | std | 95 % interval |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for metric in last.retrieval:
        before = [100 * seed[0].evaluation.retrieval[metric] for seed in reports if seed[0].evaluation]
        after = [100 * seed[-1].evaluation.retrieval[metric] for seed in reports if seed[-1].evaluation]
        lines.append(f"| {metric_title(metric)} | {statistics.mean(before):.1f} | {_spread(after)} |")
    if last.clustering is not None:
        for label, key in (("NMI", "nmi_mean"), ("AMI", "ami_mean")):
            values = [
                100 * getattr(seed[-1].evaluation.clustering, key)
                for seed in reports
                if seed[-1].evaluation and seed[-1].evaluation.clustering
            ]
            lines.append(f"| {label} | | {_spread(values)} |")
        lines += ["", f"NMI and AMI: {last.clustering.settings}."]
    lines += [
        "",
        f"Training took {statistics.mean(seconds):.0f} s a seed (the longest {max(seconds):.0f} s),"
        f" evaluation apart. {environment['processor']}, {environment['cores']} cores, device"
        f" {environment['device']}; torch {environment['torch']}; commit {environment['commit'][:12]}.",
        "",
        f"    python benchmarks/real_images.py {' '.join(sys.argv[1:])}",
        "",
    ]
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f} | | "
    deviation = statistics.stdev(values)
    half = float(student.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    return f"{mean:.1f} | {deviation:.1f} | {mean - half:.1f} to {mean + half:.1f}"


if __name__ == "__main__":
    main(tyro.cli(Arguments))
