"""The page of a comparison of losses, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuplet.metrics.intervals import SeedMean, interval_of_share
from tuplet.metrics.names import headline_metric, metric_title
from tuplet.report.markdown import table_head, table_row
from tuplet.research.bench.comparison import BenchResult, Difference
from tuplet.research.bench.protocol import Protocol
from tuplet.training.environment import short_commit


def comparison_page(protocol: Protocol, result: BenchResult, *, command: str) -> str:
    """Write the comparison as Markdown: scores, differences, settings, cost, and how to read them.

    Args:
        protocol: what every loss got.
        result: of the comparison.
        command: that wrote the page.
    """
    config = next(iter(protocol.losses.values()))
    frozen = result.frozen
    metrics = list(frozen.retrieval)
    shown = [headline_metric(frozen.retrieval) or metrics[0], "map_at_r"]
    gallery = "" if frozen.num_gallery is None else f" in a gallery of {frozen.num_gallery:,}"
    seeds = f"Seeds 0..{protocol.num_seeds - 1}" if protocol.num_seeds > 1 else "Seed 0 only: no intervals"
    labels = sorted({label for loss in result.losses for label in loss.labels})
    an_own = "an epoch of its own for each run (comparison.json names it)"
    environments = [environment for loss in result.losses for environment in loss.environments]
    lines = [
        f"# Losses compared: {config.name}",
        "",
        f"{frozen.num_images:,} test images of {frozen.num_classes:,} classes never trained on,"
        f" {frozen.num_queries:,} queries{gallery}. {seeds}.",
        f"Selection: {labels[0] if len(labels) == 1 else an_own}.",
        _settings_line(protocol),
        "",
        *_score_table(protocol, result, shown),
        "",
        *_difference_table(result, shown),
        *_setting_table(protocol, result),
        *_cost_table(result),
        f"Wall-clock time of training alone. {machines(environments)}; commit {commits(environments)}.",
        "",
        f"    {command}",
        "",
    ]
    return "\n".join(lines)


def spread(value: SeedMean, factor: float = 100.0) -> str:
    """Return a mean times a factor, and its standard deviation where there are several seeds."""
    digits = 1 if factor == 100 else 2
    std = "" if value.std is None else f" ± {factor * value.std:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{std}"


def machines(environments: Sequence[Mapping[str, Any]]) -> str:
    """Return the hardware and software of the trainings as text; where they differ, each value once."""

    def every(name: str) -> str:
        return ", ".join(dict.fromkeys(str(environment.get(name, "unknown")) for environment in environments))

    return (
        f"{every('processor')}, {every('cores')} cores, threads: {every('threads')}, device"
        f" {every('device')}; torch {every('torch')}"
    )


def commits(environments: Sequence[Mapping[str, Any]]) -> str:
    """Return the commits of the trainings, each once."""
    return ", ".join(dict.fromkeys(map(short_commit, environments)))


def _settings_line(protocol: Protocol) -> str:
    if protocol.num_trials == 1:
        return "Settings: as published, nothing tried."
    config = next(iter(protocol.losses.values()))
    folds, epochs = config.evaluation.validation_folds, config.schedule.epochs
    length = "" if protocol.trial_epochs in (None, epochs) else f" of {protocol.trial_epochs} epochs each"
    return (
        f"Settings: the best of {protocol.num_trials} trials a loss{length} by"
        f" {metric_title(protocol.metric)} on validation classes, fold 0 of {folds} of the"
        " training classes; never on test classes."
    )


def _score_table(protocol: Protocol, result: BenchResult, shown: Sequence[str]) -> list[str]:
    clusterings = ["nmi", "ami"] if "nmi" in result.losses[0].metrics else []
    head = [cell for metric in shown for cell in (metric_title(metric), "95 %")]
    titles = ["%", *head, *(metric.upper() for metric in clusterings)]
    rows = table_head(titles, "l" + "rl" * len(shown) + "r" * len(clusterings))
    for loss in result.losses:
        cells = [cell for m in shown for cell in (spread(loss.metrics[m]), _interval(loss.metrics[m]))]
        rows.append(table_row([loss.name, *cells, *(spread(loss.metrics[m]) for m in clusterings)]))
    frozen = result.frozen
    cells = [cell for metric in shown for cell in (_percent(frozen.retrieval[metric]), "")]
    if clusterings:
        both = frozen.clustering
        cells += ["", ""] if both is None else [_percent(both.nmi_mean), _percent(both.ami_mean)]
    pretrained = next(iter(protocol.losses.values())).model.pretrained
    title = "pretrained backbone, frozen" if pretrained else "untrained backbone"
    return [*rows, table_row([title, *cells])]


def _difference_table(result: BenchResult, shown: Sequence[str]) -> list[str]:
    if not result.differences:
        return []
    head = [cell for m in shown for cell in (metric_title(m), "95 %", "p seeds", "p classes")]
    rows = [
        f"Less {result.losses[0].name}, in points: mean over seeds of the paired differences, its 95 % t"
        " interval, p of the paired t test, and p of swapping the two losses in any test class.",
        "",
        *table_head(["", *head], "l" + "rlrr" * len(shown)),
    ]
    for loss in result.losses[1:]:
        cells = [
            cell
            for metric in shown
            for difference in result.differences
            if (difference.name, difference.metric) == (loss.name, metric)
            for cell in _difference(difference)
        ]
        rows.append(table_row([loss.name, *cells]))
    others = len(result.losses) - 1
    return [*rows, "", f"Both p are adjusted by Holm for the number of rows, {others}, metric by metric.", ""]


def _difference(difference: Difference) -> tuple[str, ...]:
    low, high = difference.over_seeds.low, difference.over_seeds.high
    interval = "" if low is None or high is None else f"{100 * low:+z.1f} to {100 * high:+z.1f}"
    return (
        f"{100 * difference.over_seeds.mean:+z.1f}",
        interval,
        _p(difference.p_over_seeds),
        _p(difference.p_over_classes),
    )


def _setting_table(protocol: Protocol, result: BenchResult) -> list[str]:
    if protocol.num_trials == 1:
        return []
    first = f"{metric_title(protocol.metric)} on validation classes: first trial"
    rows = table_head(["settings", first, "best", "changed"], "lrrl")
    for loss in result.losses:
        # Only a trial of own settings changes none; if it failed, it is not among the trials.
        own = [_percent(trial.value) for trial in loss.trials if not trial.changes]
        best = max((trial.value for trial in loss.trials if trial.value is not None), default=None)
        changes = ", ".join(f"{path}={value}" for path, value in loss.changes.items()) or "nothing"
        rows.append(table_row([loss.name, own[0] if own else "no value", _percent(best), changes]))
    firsts = "The first trial has the recipe's own settings of HIST, and each rival's published ones."
    return [*rows, "", firsts, ""]


def _cost_table(result: BenchResult) -> list[str]:
    gpus = any(environment.get("device") != "cpu" for environment in result.losses[0].environments)
    hours = "GPU hours" if gpus else "hours"
    rows = table_head(["cost", "training, minutes a seed", f"{hours}, seeds and trials"], "lrr")
    for loss in result.losses:
        ranks = int(loss.environments[0].get("ranks", 1)) if gpus else 1
        total = ranks * (sum(loss.train_seconds.values) + loss.trial_seconds) / 3600
        rows.append(table_row([loss.name, f"{loss.train_seconds.mean / 60:.1f}", f"{total:.2f}"]))
    return [*rows, ""]


def _interval(value: SeedMean) -> str:
    ends = interval_of_share(value)
    return "" if ends is None else " to ".join(map(_percent, ends))


def _percent(value: float | None) -> str:
    return "diverged" if value is None else f"{100 * value:.1f}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
