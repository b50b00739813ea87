"""What the command line says: usage, epochs, measurements, in plain text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tuplet.errors import counted
from tuplet.metrics.names import headline_metric, metric_title

if TYPE_CHECKING:
    from tuplet.config import RunConfig
    from tuplet.evaluation.evaluate import EvalReport
    from tuplet.training.run_folder import EpochReport
if TYPE_CHECKING:
    from tuplet.training.run_folder import EpochReport, Run


_TERM_TITLES = {"distribution": "distribution", "cross_entropy": "hypergraph"}


def usage(commands: Mapping[str, str]) -> str:
    """What `tuplet --help` prints, given each command's line."""
    return "\n".join(
        [
            "usage: tuplet COMMAND ...",
            "",
            "Labelled images in, an embedding model and an honest account of it out.",
            "",
            *(f"  {name:<12}{text}" for name, text in commands.items()),
            "",
            "tuplet COMMAND --help says more.",
        ]
    )


def train_usage(recipes: Mapping[str, Callable[[], RunConfig]]) -> str:
    """What `tuplet train --help` prints, given the recipes."""
    return "\n".join(
        [
            "usage: tuplet train RECIPE [--to FOLDER] [--field value ...]",
            "       tuplet train --config FILE [--to FOLDER] [--field value ...]",
            "       tuplet train --resume RUN [--compute.field value ...]",
            "",
            "Recipes:",
            *recipe_lines(recipes),
            "",
            "tuplet train RECIPE --help lists every field.",
        ]
    )


def recipe_lines(recipes: Mapping[str, Callable[[], RunConfig]]) -> list[str]:
    """A table of recipes: what for, and below that, for each one, its name and what tells it from others."""
    width = max(map(len, recipes))
    head = ("name", "data", "backbone", "tau", "alpha", "lambda_s", "epochs")
    lines = [_recipe_row(width, *head)]
    purpose = ""
    for name, make in recipes.items():
        before, purpose = purpose, (make.__doc__ or "").splitlines()[0]
        if purpose != before:
            lines += ["", purpose]
        run = make()
        backbone = run.model.backbone.split(".")[0]
        numbers = (run.loss.tau, run.loss.alpha, run.loss.lambda_s, run.schedule.epochs)
        lines.append(_recipe_row(width, name, run.data.source, backbone, *(f"{n:g}" for n in numbers)))
    return lines


def _recipe_row(width: int, name: str, data: str, backbone: str, *numbers: str) -> str:
    tau, alpha, lambda_s, epochs = numbers
    return f"  {name:<{width}}  {data:<6}  {backbone:<24}  {tau:>3}  {alpha:>5}  {lambda_s:>8}  {epochs:>6}"


def epoch_line(report: EpochReport, epochs: int) -> str:
    """One epoch in one line: losses, speed, Recall@K for the first K."""
    parts = [f"epoch {report.epoch:>{len(str(epochs))}}/{epochs}"]
    if report.losses:
        beside = ", ".join(
            f"{_TERM_TITLES[name]} {value:6.3f}" for name, value in report.losses.items() if name != "total"
        )
        parts.append(f"loss {report.losses['total']:7.3f}" + (f" ({beside})" if beside else ""))
        parts.append(f"{report.images_per_second:6,.0f} images/s")
    else:
        parts.append("before training")
    if report.evaluation is not None:
        retrieval = report.evaluation.retrieval
        first = headline_metric(retrieval)
        if first is not None:
            parts.append(f"{metric_title(first)} {100 * retrieval[first]:5.1f} %")
    return "  ".join(parts)


def metric_table(report: EvalReport, after: str = "") -> str:
    """Every metric of a split, a line each, under what was measured on how many images.

    Args:
        report: what was measured.
        after: what the model had learnt then, such as "last epoch of 50"; may be empty.
    """
    intervals = {name: of["classes"] for name, of in (report.intervals or {}).items()}
    known = next((one for one in intervals.values() if one is not None), None)
    rows = [_measured(report, after)]
    if known is not None:
        rows.append(f"{'':<25}{100 * known.level:.10g} % interval over classes")
    for name, value in report.retrieval.items():
        row, interval = f"  {metric_title(name):<12} {100 * value:6.2f} %", intervals.get(name)
        rows.append(
            row if interval is None else f"{row}  {100 * interval.low:6.2f} .. {100 * interval.high:.2f} %"
        )
    clusters = report.clustering
    if clusters is not None:
        rows += [
            _clustering_row("NMI", clusters.nmi_mean, clusters.nmi_std, clusters.nmi_arithmetic_mean),
            _clustering_row("AMI", clusters.ami_mean, clusters.ami_std, clusters.ami_arithmetic_mean),
        ]
        rows.append(f"  {clusters.settings}")
    if report.num_gallery is not None:
        rows.append("  NMI and AMI are left out: with a gallery there is no agreement on what to cluster")
    if known is not None:
        rows.append(
            f"  interval: bootstrap, {known.num_resamples:,} draws of whole classes, seed {known.seed}: how"
            " far other such classes would move the number"
        )
        rows.append("  with this one model; training it again with another seed moves it as well")
    elif report.intervals is not None:
        rows.append("  without intervals: there is one class, and nothing tells how another would fare")
    return "\n".join(rows)


def _clustering_row(title: str, mean: float, std: float, arithmetic: float | None) -> str:
    beside = "" if arithmetic is None else f"; arithmetic average {100 * arithmetic:.2f} %"
    return f"  {title:<12} {100 * mean:6.2f} % (std {100 * std:.2f}){beside}"


def _measured(report: EvalReport, after: str) -> str:
    """What was measured: how many images or other items, of how many classes, against what."""
    # "test" and "validation" are splits by name; anything else is a folder or file.
    title = f"{report.split} split" if report.split in ("test", "validation") else report.split
    against = "" if report.num_gallery is None else f" in a gallery of {report.num_gallery:,}"
    distance = "" if report.distance == "cosine" else f", by {report.distance} distance"
    images, classes = counted(report.num_images, "image"), counted(report.num_classes, "class")
    queries = f"{counted(report.num_queries, 'query', 'queries')}{against}{distance}"
    return f"{title}: {images} of {classes}, {queries}{'; ' if after else ''}{after}"


def say_epochs(epochs: Iterable[tuple[Run, EpochReport]], *, speaks: bool, go_on: str) -> int:
    """How many epochs there were, each printed below the folder of its run. Ctrl-C ends the process.

    Args:
        epochs: of one run after the other.
        speaks: whether this rank prints.
        go_on: what to do after Ctrl-C, or where a file cannot be written, for whoever reads.
    """
    told: Path | None = None
    number = 0
    try:
        for run, epoch in epochs:
            number += 1
            if speaks and run.folder != told:
                told = run.folder
                print(f"\nrun       {run.folder}", flush=True)
            if speaks:
                print(epoch_line(epoch, run.config.schedule.last_epoch), flush=True)
    except OSError as error:
        error.add_note(go_on)
        raise
    except KeyboardInterrupt:
        if speaks:
            print(f"\nstopped; {go_on}", file=sys.stderr)
        sys.exit(130)
    return number
