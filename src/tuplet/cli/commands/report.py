"""`tuplet report RUN`: the report of a run, written again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuplet.cli.arguments import no_more
from tuplet.cli.console import metric_table

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from tuplet.data.splits import Split
    from tuplet.training.run_folder import Run


_USAGE = """\
usage: tuplet report RUN

Measures the run in the folder RUN again and writes RUN/report.html. Its epochs stay as they are."""


def report(arguments: list[str]) -> None:
    """Write the report of a run again."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return
    no_more(arguments[1:], "tuplet report RUN")
    from tuplet.data.load import load_split
    from tuplet.training.devices import launch
    from tuplet.training.run_folder import Run

    run = Run(arguments[0])
    write_run_report(run, launch(run.config), load_split(run.config))


def write_run_report(run: Run, fabric: Fabric, split: Split) -> None:
    """Nothing; the run's report is written, and on the first rank its metrics and its place are printed.

    Args:
        run: with at least one epoch.
        fabric: launched.
        split: of the run.
    """
    from tuplet.evaluation.evaluate import embed
    from tuplet.report.run_report import ReportContent, write_report
    from tuplet.training.experiment import select

    network = fabric.setup_module(run.embedder())
    data, workers = run.config.data, run.config.compute.num_workers
    train_part, test_part = (
        embed(network, table, data, fabric=fabric, num_workers=workers) for table in (split.train, split.test)
    )
    if not fabric.is_global_zero:
        return
    epochs = run.reports()
    environment = run.read_json(run.environment_file)
    notes = [*split.notes, *(f"skipped: {line}" for line in split.skipped)]
    if split.gallery is not None:
        notes.append(
            "metrics are of queries in the gallery, maps and mistakes of the queries among themselves"
        )
    write_report(
        ReportContent(run.config, epochs, environment, train_part, test_part, notes), run.report_file
    )
    chosen = select(run.config, epochs)
    print(f"\n{metric_table(chosen.evaluation, chosen.label)}")
    print(f"\nreport    {run.report_file}")
