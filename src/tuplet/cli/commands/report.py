"""`tuplet report RUN`: write the report of a run again."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric

from tuplet.cli.console import metric_table
from tuplet.cli.measure_tables import usable_calibration
from tuplet.config.overrides import override
from tuplet.data.splits import Split
from tuplet.evaluation.calibration import CALIBRATION_FILE, Calibration
from tuplet.evaluation.evaluate import embed
from tuplet.inference.encoder import PictureEmbedder
from tuplet.inference.pictures import absolute
from tuplet.report.plots import chart_images, map_image
from tuplet.report.run_report import ReportContent, write_report
from tuplet.training.devices import launch
from tuplet.training.experiment import images_of, select
from tuplet.training.run_folder import Run
from tuplet.training.tracking import Tracking


def report(folder: str) -> None:
    """Measure the run in a folder again and write its report."""
    run = Run(folder)
    one_machine = override(run.config, {"compute.num_nodes": 1})
    write_run_report(run, launch(one_machine), images_of(run))


def write_run_report(run: Run, fabric: Fabric, split: Split, tracking: Tracking | None = None) -> None:
    """Write the report of a run; on the first rank print its metrics and where the report is.

    Args:
        run: with at least one epoch.
        fabric: launched.
        split: of the run.
        tracking: gets the report and its figures.
    """
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
    content = ReportContent(run.config, epochs, environment, train_part, test_part, notes, _calibration(run))
    maps = write_report(content, run.report_file)
    if tracking:
        drawn = {f"map_{name.lower()}": map_image(one) for name, one in maps.items()}
        tracking.finished(run, chart_images(epochs) | drawn)
    chosen = select(run.config, epochs)
    print(f"\n{metric_table(chosen.evaluation, chosen.label)}")
    print(f"\nreport    {run.report_file}")


def _calibration(run: Run) -> Calibration | None:
    """Return the calibration of a run's network; None where there is none, or it is of other weights."""
    if not (run.folder / CALIBRATION_FILE).is_file():
        return None
    model = PictureEmbedder(run.embedder(), run.config.data, absolute(run.folder), torch.device("cpu")).model
    return usable_calibration(model)
