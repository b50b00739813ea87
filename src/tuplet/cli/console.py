"""Print what commands have to say: usage, epochs, measurements, tables, in plain text."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tuplet.errors import counted
from tuplet.metrics.names import headline_metric, metric_title

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from tuplet.config import RunConfig
    from tuplet.evaluation.measure import EvalReport
    from tuplet.training.run_folder import EpochReport, Run
    from tuplet.training.tracking import Tracking


_TERM_TITLES = {"distribution": "distribution", "cross_entropy": "hypergraph"}


def usage(forms: Sequence[str], about: str, lines: Sequence[str] = ()) -> str:
    """Return the short help of a command: the forms in which it is called, what it does, and more lines."""
    called = [f"{'usage:' if at == 0 else '':<6} tuplet {form}" for at, form in enumerate(forms)]
    return "\n\n".join(part for part in ("\n".join(called), about, "\n".join(lines)) if part)


def recipe_lines(recipes: Mapping[str, Callable[[], RunConfig]]) -> list[str]:
    """Return a table of the recipes: for each group its purpose, for each recipe what differs from others."""
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
    """Return one epoch as one line: losses, speed, Recall@K for the first K."""
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
    """Return every metric of a split, a line each, below what was measured on how many images.

    Args:
        report: of the split.
        after: which epoch the model is of, such as "last epoch of 50"; may be empty.
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
        rows.append("  with this one model; training again with another seed moves it as well")
    elif report.intervals is not None:
        rows.append("  without intervals: there is one class, and nothing shows how another would do")
    return "\n".join(rows)


def _clustering_row(title: str, mean: float, std: float, arithmetic: float | None) -> str:
    beside = "" if arithmetic is None else f"; arithmetic average {100 * arithmetic:.2f} %"
    return f"  {title:<12} {100 * mean:6.2f} % (std {100 * std:.2f}){beside}"


def _measured(report: EvalReport, after: str) -> str:
    """Return the size of a measurement as text: images, classes, and the gallery if there is one."""
    # "test" and "validation" are splits by name; anything else is a folder or file.
    title = f"{report.split} split" if report.split in ("test", "validation") else report.split
    against = "" if report.num_gallery is None else f" in a gallery of {report.num_gallery:,}"
    distance = "" if report.distance == "cosine" else f", by {report.distance} distance"
    images, classes = counted(report.num_images, "image"), counted(report.num_classes, "class")
    queries = f"{counted(report.num_queries, 'query', 'queries')}{against}{distance}"
    return f"{title}: {images} of {classes}, {queries}{'; ' if after else ''}{after}"


def same_command_resumes(folder: Path) -> str:
    """Return how to resume a command that writes to a folder, quoted for a shell."""
    return f"the same command with --to {shlex.quote(str(folder))} resumes"


@contextmanager
def with_resume_hint(how: str) -> Iterator[None]:
    """Add how to resume to a Ctrl-C, a file that cannot be written or a lost process; `main` prints it."""
    try:
        yield
    except (KeyboardInterrupt, OSError, RuntimeError) as error:
        error.add_note(how)
        raise


def print_epochs(
    epochs: Iterable[tuple[Run, EpochReport]],
    *,
    first_rank: bool,
    how_to_resume: str,
    tracking: Tracking | None = None,
) -> int:
    """Print each epoch below the folder of its run, and return how many there were.

    Args:
        epochs: of one run after the other.
        first_rank: whether this rank prints.
        how_to_resume: after Ctrl-C, or if a file cannot be written.
        tracking: gets each epoch too.
    """
    folder: Path | None = None
    number = 0
    with with_resume_hint(how_to_resume):
        for run, epoch in epochs:
            number += 1
            if first_rank and run.folder != folder:
                folder = run.folder
                print(f"\nrun       {run.folder}", flush=True)
            if first_rank:
                print(epoch_line(epoch, run.config.schedule.last_epoch), flush=True)
            if tracking is not None:
                tracking.epoch(run, epoch)
    return number


def print_compute_notes(config: RunConfig, fabric: Fabric, num_classes: int | None = None) -> None:
    """Print what the precision and the memory of a config cost here, see `compute_notes`."""
    from tuplet.training.advice import compute_notes

    if fabric.is_global_zero:
        for note in compute_notes(config, fabric.device, num_classes):
            print(f"note: {note}", file=sys.stderr)


def print_json(tree: object) -> None:
    """Print plain data as JSON."""
    print(json.dumps(tree, indent=2))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: int) -> None:
    """Print a table as wide as it has to be, so that paths can be copied.

    Args:
        headings: of the columns; may be empty.
        rows: texts from anywhere.
        right: so many columns from the left are flush right.
    """
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place < right else "left", no_wrap=True)
    cells = [[Text(printable(cell)) for cell in row] for row in rows]
    for row in cells:
        table.add_row(*row)
    console = Console(highlight=False)
    widest = [max(row[column].cell_len for row in cells) for column in range(len(headings))]
    console.width = max(console.width, sum(width + 12 for width in widest))
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def printable(text: str) -> str:
    """Return a text that is safe for a terminal, with control characters escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
