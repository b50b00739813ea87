"""How long a training takes, from the reports of the first run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from fabricated import fabricate, measured

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.research.claims import budget as timing
from tuplet.research.claims import running
from tuplet.research.claims.budget import Speed, measure_speed
from tuplet.research.claims.plan import Job, glyphs, run_key
from tuplet.research.claims.running import Worker, run_folder
from tuplet.training.devices import launch
from tuplet.training.experiment import ImageCache, fold_folder, fold_of
from tuplet.training.run_folder import EpochReport, Run

BASE = override(glyphs(), {"schedule.epochs": 9, "compute.accelerator": "cpu"})
VALIDATED = {"evaluation.selection": "validation", "evaluation.validation_folds": 3}


def speed_of(config: RunConfig, folder: Path, *, waiting=lambda: None, **told) -> Speed:
    images = ImageCache(config, SimpleNamespace(train=range(7)))  # the config says how many there are
    worker = Worker(folder, launch(config), images, **told)
    return measure_speed(Job(run_key(config), config, "timed"), worker, waiting=waiting)


def begin(config: RunConfig, where: Path, train_seconds: Sequence[float]) -> None:
    """A run with an epoch 0 and some more, each of which took 1 s to measure."""
    run = Run.create(config, where)
    for epoch, seconds in enumerate([0.0, *train_seconds]):
        run.append(EpochReport(epoch, {}, measured(0.5), seconds, 1.0, 0.0, {}))


@pytest.fixture
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def epochs_of_runs(*_, **__):
        raise AssertionError("a training began")

    monkeypatch.setattr(running, "epochs_of_runs", epochs_of_runs)


@pytest.mark.usefixtures("nothing_is_trained")
def test_the_speed_of_a_finished_run_is_in_its_reports(tmp_path: Path) -> None:
    fabricate(tmp_path, BASE, [0.5] * 10, seconds=4.0)
    assert speed_of(BASE, tmp_path) == Speed(2.0, 5.0, 40 * 12)


@pytest.mark.usefixtures("nothing_is_trained")
def test_the_first_epoch_does_not_count_and_measuring_does_as_often_as_it_is(tmp_path: Path) -> None:
    config = override(BASE, {"evaluation.every_epochs": 4})
    begin(config, run_folder(tmp_path, run_key(config)), [60.0, 4.0])
    assert speed_of(config, tmp_path) == Speed(2.0, 4.25, 40 * 12)


@pytest.mark.usefixtures("nothing_is_trained")
def test_the_speed_of_validated_runs_is_that_of_their_first_fold(tmp_path: Path) -> None:
    config = override(BASE, VALIDATED)
    begin(fold_of(config, 0), fold_folder(run_folder(tmp_path, run_key(config)), 0), [60.0, 3.0])
    assert speed_of(config, tmp_path) == Speed(2.0, 4.0, 40 * 12)


def test_a_run_that_was_begun_goes_on_to_be_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = run_folder(tmp_path, run_key(BASE))
    begin(BASE, where, [60.0])
    trained = []

    def epochs_of_runs(config: RunConfig, folder: Path, **_):
        run = Run(folder)
        for epoch in range(2, 10):
            trained.append(epoch)
            run.append(EpochReport(epoch, {}, measured(0.5), 7.0, 1.0, 0.0, {}))
            yield run, run.reports()[-1]

    monkeypatch.setattr(running, "epochs_of_runs", epochs_of_runs)
    clock = iter([100.0, 111.0])  # 8 s of those 11 are the epoch's own
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    told: list[int] = []
    speed = speed_of(BASE, tmp_path, on_epoch=lambda run, report: told.append(report.epoch))
    assert speed == Speed(2 * (3.0 + 1.0), 8.0, 40 * 12)
    assert trained == told == [2]


def test_a_run_that_another_process_trains_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that is said once; the time it takes is no time that a training of ours takes."""
    where = run_folder(tmp_path, run_key(BASE))
    begin(BASE, where, [60.0])
    lock = ExitStack()
    lock.enter_context(Run(where).locked())
    told: list[str] = []
    tries = iter(["locked", "locked", "lost"])

    def epochs_of_runs(config: RunConfig, folder: Path, **_):
        run = Run(folder)
        if next(tries) == "lost":
            lock.close()
        with run.locked():
            run.append(EpochReport(2, {}, measured(0.5), 7.0, 1.0, 0.0, {}))
            yield run, run.reports()[-1]

    monkeypatch.setattr(running, "epochs_of_runs", epochs_of_runs)
    clock = iter([0.0, 30.0, 100.0, 111.0])
    monkeypatch.setattr(
        timing, "time", SimpleNamespace(perf_counter=lambda: next(clock), sleep=lambda seconds: None)
    )
    assert speed_of(BASE, tmp_path, waiting=lambda: told.append("waiting")) == Speed(8.0, 8.0, 40 * 12)
    assert told == ["waiting"]
