"""A comparison of losses as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tuplet.metrics.intervals import SeedMean, interval_of_share
from tuplet.metrics.names import headline_metric, metric_title
from tuplet.research.bench.cells import Protocol
from tuplet.research.bench.result import BenchResult, Difference
from tuplet.training.environment import short_commit


def comparison_page(protocol: Protocol, result: BenchResult, *, command: str) -> str:
    """The comparison as a page of Markdown: scores, differences, settings, cost, and how to read them.

    Args:
        protocol: what every loss got.
        result: what it found.
        command: that wrote the page.
    """
    config = next(iter(protocol.losses.values()))
    frozen = result.frozen
    metrics = list(frozen.retrieval)
    headline = headline_metric(frozen.retrieval) or metrics[0]
    shown = [headline, "map_at_r"]
    gallery = "" if frozen.num_gallery is None else f" in a gallery of {frozen.num_gallery:,}"
    seeds = f"Seeds 0..{protocol.num_seeds - 1}" if protocol.num_seeds > 1 else "Seed 0 only: no intervals"
    return "\n".join(
        [
            f"# Losses compared: {config.name}",
            "",
            f"{frozen.num_images:,} test images of {frozen.num_classes:,} classes never trained on,"
            f" {frozen.num_queries:,} queries{gallery}. {seeds}.",
            f"Selection: {_selection(result)}.",
            _settings_line(protocol),
            "",
            *_score_table(protocol, result, shown),
            "",
            *_difference_table(result, shown),
            *_setting_table(protocol, result),
            *_cost_table(protocol, result),
            *_environment(result),
            "",
            f"    {command}",
            "",
        ]
    )


def _selection(result: BenchResult) -> str:
    labels = sorted({label for loss in result.losses for label in loss.labels})
    return labels[0] if len(labels) == 1 else "an epoch of its own for each run (comparison.json names it)"


def _settings_line(protocol: Protocol) -> str:
    if protocol.num_trials == 1:
        return "Settings: as published, nothing tried."
    folds = next(iter(protocol.losses.values())).evaluation.validation_folds
    return (
        f"Settings: the best of {protocol.num_trials} trials a loss by {metric_title(protocol.metric)} on"
        f" validation classes, fold 0 of {folds} of the training classes; never on test classes."
    )


def _score_table(protocol: Protocol, result: BenchResult, shown: Sequence[str]) -> list[str]:
    clusters = "nmi" in result.losses[0].metrics
    rows = [
        f"| % | {' | '.join(f'{metric_title(m)} | 95 %' for m in shown)} |{' NMI | AMI |' * clusters}",
        f"| --- |{' ---: | --- |' * len(shown)}{' ---: | ---: |' * clusters}",
    ]
    for loss in result.losses:
        cells = [f"{_spread(loss.metrics[m])} | {_interval(loss.metrics[m])}" for m in shown]
        cells += [_spread(loss.metrics[m]) for m in ("nmi", "ami") if clusters]
        rows.append(f"| {loss.name} | {' | '.join(cells)} |")
    frozen = result.frozen
    cells = [f"{100 * frozen.retrieval[m]:.1f} | " for m in shown]
    if clusters:
        both = frozen.clustering
        cells += ["", ""] if both is None else [f"{100 * both.nmi_mean:.1f}", f"{100 * both.ami_mean:.1f}"]
    rows.append(f"| {_frozen_title(protocol)} | {' | '.join(cells)} |")
    return rows


def _frozen_title(protocol: Protocol) -> str:
    model = next(iter(protocol.losses.values())).model
    return "pretrained backbone, frozen" if model.pretrained else "untrained backbone"


def _difference_table(result: BenchResult, shown: Sequence[str]) -> list[str]:
    if not result.differences:
        return []
    first = result.losses[0].name
    rows = [
        f"Less {first}, in points: mean over seeds of the paired differences, its 95 % t interval, p of the"
        " paired t test, and p of swapping the two losses in any test class.",
        "",
        f"| | {' | '.join(f'{metric_title(m)} | 95 % | p seeds | p classes' for m in shown)} |",
        f"| --- |{' ---: | --- | ---: | ---: |' * len(shown)}",
    ]
    for loss in result.losses[1:]:
        cells = [
            _difference(one)
            for metric in shown
            for one in result.differences
            if (one.name, one.metric) == (loss.name, metric)
        ]
        rows.append(f"| {loss.name} | {' | '.join(cells)} |")
    others = len(result.losses) - 1
    return [*rows, "", f"Both p are adjusted by Holm for the number of rows, {others}, metric by metric.", ""]


def _difference(one: Difference) -> str:
    low, high = one.over_seeds.low, one.over_seeds.high
    interval = "" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
    p_values = f"{_p(one.p_over_seeds)} | {_p(one.p_over_classes)}"
    return f"{100 * one.over_seeds.mean:+.1f} | {interval} | {p_values}"


def _setting_table(protocol: Protocol, result: BenchResult) -> list[str]:
    if protocol.num_trials == 1:
        return []
    rows = [
        f"| settings | {metric_title(protocol.metric)} on validation classes: first trial | best | changed |",
        "| --- | ---: | ---: | --- |",
    ]
    for loss in result.losses:
        values = [trial.value for trial in loss.trials]
        best = max((value for value in values if value is not None), default=None)
        changes = ", ".join(f"{path}={value}" for path, value in loss.changes.items()) or "nothing"
        rows.append(f"| {loss.name} | {_percent(values[0])} | {_percent(best)} | {changes} |")
    firsts = "The first trial has the recipe's own settings of HIST, and each rival's published ones."
    return [*rows, "", firsts, ""]


def _cost_table(protocol: Protocol, result: BenchResult) -> list[str]:
    gpus = any(environment.get("device") != "cpu" for environment in result.losses[0].environments)
    hours = "GPU hours" if gpus else "hours"
    rows = [f"| cost | training, minutes a seed | {hours}, seeds and trials |", "| --- | ---: | ---: |"]
    for loss in result.losses:
        ranks = int(loss.environments[0].get("ranks", 1)) if gpus else 1
        total = ranks * (sum(loss.train_seconds.values) + loss.trial_seconds) / 3600
        rows.append(f"| {loss.name} | {loss.train_seconds.mean / 60:.1f} | {total:.2f} |")
    return [*rows, ""]


def _environment(result: BenchResult) -> list[str]:
    environments = [one for loss in result.losses for one in loss.environments]

    def every(name: str) -> str:
        return ", ".join(dict.fromkeys(str(one.get(name, "unknown")) for one in environments))

    commits = ", ".join(dict.fromkeys(map(short_commit, environments)))
    return [
        f"Wall-clock time of training alone. {every('processor')}, {every('cores')} cores,"
        f" threads: {every('threads')}, device {every('device')}; torch {every('torch')}; commit {commits}."
    ]


def _spread(value: SeedMean) -> str:
    std = "" if value.std is None else f" ± {100 * value.std:.1f}"
    return f"{100 * value.mean:.1f}{std}"


def _interval(value: SeedMean) -> str:
    ends = interval_of_share(value)
    return "" if ends is None else " to ".join(map(_percent, ends))


def _percent(value: float | None) -> str:
    return "diverged" if value is None else f"{100 * value:.1f}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
