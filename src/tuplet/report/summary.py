"""Several runs that differ in their seed, as one page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tuplet.errors import InputError
from tuplet.evaluation.evaluate import EvalReport
from tuplet.metrics.intervals import SeedMean, interval_of_share, seed_mean
from tuplet.metrics.names import metric_title
from tuplet.training.environment import short_commit
from tuplet.training.experiment import Selected, select
from tuplet.training.run_folder import Run

_ALIKE = ("commit", "processor", "cores", "device", "torch")


def summary_page(title: str, runs: Sequence[Run], *, command: str) -> str:
    """Mean, standard deviation and t interval over the seeds of every metric, and what they ran on.

    Args:
        title: of the page.
        runs: finished, alike but for their seed.
        command: that made them.

    Raises:
        InputError: (a ValueError) runs with other settings, or of several commits or machines.
    """
    _require_alike(runs)
    reports = [run.reports() for run in runs]
    selected = [select(run.config, epochs) for run, epochs in zip(runs, reports, strict=True)]
    before = [epochs[0].evaluation for epochs in reports]
    shown = selected[0].evaluation
    seconds = seed_mean([sum(epoch.train_seconds for epoch in epochs) for epochs in reports])
    lines = [
        f"# {title}",
        "",
        f"{shown.num_images:,} {shown.split} images of {shown.num_classes:,} classes never trained on,"
        f" {shown.num_queries:,} queries. Selection: {_selection(selected)}.",
        f"Seeds {', '.join(str(run.config.seed) for run in runs)}: mean, standard deviation and 95 % t"
        " interval over them.",
        "",
        "| metric (%) | before training | after | std | 95 % interval |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for metric in shown.retrieval:
        first = [one.retrieval[metric] for one in before if one is not None]
        values = seed_mean([one.evaluation.retrieval[metric] for one in selected])
        lines.append(f"| {metric_title(metric)} | {_percent(seed_mean(first).mean)} | {_spread(values)} |")
    lines += _clustering([one.evaluation for one in selected])
    environment = runs[0].read_json(runs[0].environment_file)
    lines += [
        "",
        f"Training took {seconds.mean:.0f} s a seed (the longest {max(seconds.values):.0f} s), evaluation"
        f" apart. {environment['processor']}, {environment['cores']} cores, device {environment['device']};"
        f" torch {environment['torch']}; commit {short_commit(environment)}.",
        "",
        f"    {command}",
        "",
    ]
    return "\n".join(lines)


def _require_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    environments = [run.read_json(run.environment_file) for run in runs]
    for run, environment in zip(runs, environments, strict=True):
        if replace(run.config, seed=0, schedule=first.config.schedule) != replace(first.config, seed=0):
            raise InputError(
                f"{run.folder} has other settings than {first.folder}; want one but for the seed"
            )
        if any(environment.get(key) != environments[0].get(key) for key in _ALIKE):
            raise InputError(
                f"{run.folder} and {first.folder} are of two commits or machines; want one table of one: use"
                " a new folder"
            )


def _selection(selected: Sequence[Selected]) -> str:
    labels = list(dict.fromkeys(one.label for one in selected))
    return "; ".join(labels)


def _clustering(evaluations: Sequence[EvalReport]) -> list[str]:
    clusters = [one.clustering for one in evaluations if one.clustering is not None]
    if len(clusters) < len(evaluations):
        return []
    return [
        f"| NMI | | {_spread(seed_mean([one.nmi_mean for one in clusters]))} |",
        f"| AMI | | {_spread(seed_mean([one.ami_mean for one in clusters]))} |",
        "",
        f"NMI and AMI: {clusters[0].settings}.",
    ]


def _spread(value: SeedMean) -> str:
    ends = interval_of_share(value)
    if value.std is None or ends is None:
        return f"{_percent(value.mean)} | | "
    return f"{_percent(value.mean)} | {_percent(value.std)} | {' to '.join(map(_percent, ends))}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
