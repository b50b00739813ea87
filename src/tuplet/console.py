"""What the command line says: usage, epochs, measurements, in plain text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tuplet.metrics.names import headline_metric, metric_title

if TYPE_CHECKING:
    from tuplet.evaluation import EvalReport
    from tuplet.runs import EpochReport


def usage(commands: Mapping[str, str]) -> str:
    """What `tuplet --help` prints, given each command's line."""
    return "\n".join(
        [
            "usage: tuplet COMMAND ...",
            "",
            "Labelled images in, an embedding model and an honest account of it out.",
            "",
            *(f"  {name:<10}{text}" for name, text in commands.items()),
            "",
            "tuplet COMMAND --help says more.",
        ]
    )


def train_usage(recipes: Mapping[str, Callable[[], object]]) -> str:
    """What `tuplet train --help` prints, given the recipes."""
    return "\n".join(
        [
            "usage: tuplet train RECIPE [--to FOLDER] [--field value ...]",
            "       tuplet train --config FILE [--to FOLDER] [--field value ...]",
            "       tuplet train --resume RUN [--compute.field value ...]",
            "",
            "Recipes:",
            *(f"  {line}" for line in recipe_lines(recipes)),
            "",
            "tuplet train RECIPE --help lists every field.",
        ]
    )


def recipe_lines(recipes: Mapping[str, Callable[[], object]]) -> list[str]:
    """Each recipe's name and what it is for, a line each."""
    width = max(map(len, recipes))
    return [f"{name:<{width}}  {(make.__doc__ or '').splitlines()[0]}" for name, make in recipes.items()]


def epoch_line(report: EpochReport, epochs: int) -> str:
    """One epoch in one line: losses, speed, Recall@K for the first K."""
    parts = [f"epoch {report.epoch:>{len(str(epochs))}}/{epochs}"]
    if report.losses:
        losses = report.losses
        parts.append(
            f"loss {losses['total']:7.3f} (distribution {losses['distribution']:7.3f},"
            f" hypergraph {losses['cross_entropy']:6.3f})"
        )
        parts.append(f"{report.images_per_second:6,.0f} images/s")
    else:
        parts.append("before training")
    if report.evaluation is not None:
        retrieval = report.evaluation.retrieval
        first = headline_metric(retrieval)
        if first is not None:
            parts.append(f"{metric_title(first)} {100 * retrieval[first]:5.1f} %")
    return "  ".join(parts)


def metric_table(report: EvalReport, epoch: int, epochs: int) -> str:
    """Every metric of a split, a line each, under what was measured on how many images, after which epoch."""
    rows = [
        f"{report.split} split: {report.num_images:,} images of {report.num_classes:,} classes,"
        f" {report.num_queries:,} queries; after epoch {epoch} of {epochs}"
    ]
    rows += [f"  {metric_title(name):<12} {100 * value:6.2f} %" for name, value in report.retrieval.items()]
    clusters = report.clustering
    if clusters is not None:
        rows.append(f"  {'NMI':<12} {100 * clusters.nmi_mean:6.2f} % (std {100 * clusters.nmi_std:.2f})")
        rows.append(f"  {'AMI':<12} {100 * clusters.ami_mean:6.2f} % (std {100 * clusters.ami_std:.2f})")
        rows.append(f"  {clusters.settings}")
    return "\n".join(rows)
