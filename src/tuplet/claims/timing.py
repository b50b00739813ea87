"""How long the trainings of a study take: from the reports of the first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lightning_fabric import Fabric

from tuplet.claims.plan import Job
from tuplet.claims.running import POLL_SECONDS, epochs_of, run_folder
from tuplet.config import RunConfig
from tuplet.experiment import Images, fold_folder
from tuplet.runs import EpochReport, LockedRunError, Run

PILOT_EPOCHS = 2


@final
@dataclass(frozen=True)
class Speed:
    """What a training takes.

    Attributes:
        start_seconds: once a training: loading, the first measurement, saving.
        epoch_seconds: training and measuring of one epoch.
        images: training images of the run that was timed, by which other runs are scaled.
    """

    start_seconds: float
    epoch_seconds: float
    images: int


def measure_speed(
    job: Job,
    folder: Path,
    *,
    fabric: Fabric,
    images: Images,
    on_epoch: Callable[[Run, EpochReport], None] = lambda run, report: None,
    waiting: Callable[[], None] = lambda: None,
) -> Speed:
    """What the first epochs of a run take; the run goes on from there when its turn comes.

    Where the run has those epochs already, nothing is trained: its own reports tell.

    Args:
        job: the first of the study.
        folder: of the study.
        fabric: launched; one rank.
        images: of the runs.
        on_epoch: told of each epoch as it ends.
        waiting: called when another process trains the run, once.

    Raises:
        InputError: (a ValueError) a run that cannot be trained.
    """
    where = run_folder(folder, job.key)
    timed = where if num_trainings(job.config) == 1 else fold_folder(where, 0)
    wanted = min(PILOT_EPOCHS, job.config.schedule.last_epoch)
    loading, waits = None, False
    while not any(report.epoch >= wanted for report in _reports(timed)):
        began = time.perf_counter()
        try:
            with closing(epochs_of(job, folder, fabric=fabric, images=images)) as epochs:
                for run, report in epochs:
                    if loading is None:
                        told = report.train_seconds + report.evaluation_seconds
                        loading = time.perf_counter() - began - told
                    on_epoch(run, report)
                    if run.folder == timed and report.epoch >= wanted:
                        break
        except LockedRunError:  # another process trains it, and its reports will tell
            if not waits:
                waits = True
                waiting()
            time.sleep(POLL_SECONDS)
    reports = _reports(timed)
    # The first epoch is slower than those after it.
    training = [report.train_seconds for report in reports[1:]]
    measuring = [report.evaluation_seconds for report in reports if report.evaluation is not None]
    every = Run(timed).config.evaluation.every_epochs
    epoch = statistics.median(training[1:] or training) + statistics.mean(measuring) / every
    # Clustering and saving at the end take about as long as the start.
    start = 2 * ((loading or 0.0) + reports[0].evaluation_seconds)
    return Speed(start, epoch, num_images(job.config, len(images.of(job.config).train)))


def num_trainings(config: RunConfig) -> int:
    """How many trainings a run takes: with selection validation one a fold, and the run itself."""
    chosen = config.evaluation.selection == "validation" and config.schedule.stop_after is None
    return 1 + config.evaluation.validation_folds if chosen else 1


def num_images(config: RunConfig, otherwise: int) -> int:
    """Training images of a run, where its config tells."""
    data = config.data
    return data.glyph_train_classes * data.glyphs_per_class if data.source == "glyphs" else otherwise


def _reports(folder: Path) -> list[EpochReport]:
    return Run(folder).reports() if (folder / "config.yaml").exists() else []
