"""How much of a study a budget leaves, and which runs it removes: its own, where nobody trains them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fabricated import fabricate, measured

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.errors import SettingsError
from tuplet.research.claims import budget, running
from tuplet.research.claims.budget import (
    Speed,
    first_point,
    fit_to_budget,
    measure_speed,
    num_trainings,
    reduce_entries,
)
from tuplet.research.claims.plan import Entry, Job, Plan, full_entry, glyphs, jobs_of, run_key
from tuplet.research.claims.running import Worker, record_failure, run_folder
from tuplet.training.devices import launch
from tuplet.training.experiment import ImageCache, fold_folder, fold_of, open_run
from tuplet.training.run_folder import EpochReport, Run

BASE = override(glyphs(), {"schedule.epochs": 9, "compute.accelerator": "cpu"})
VALIDATED = {"evaluation.selection": "validation", "evaluation.validation_folds": 3}


def test_validation_takes_a_training_a_fold_more(tmp_path: Path) -> None:
    assert num_trainings(BASE) == 1
    assert num_trainings(override(BASE, VALIDATED)) == 4
    assert num_trainings(override(BASE, {**VALIDATED, "schedule.stop_after": 5})) == 1
    plan = Plan(override(BASE, VALIDATED))
    entry = full_entry(plan.claims["2"], 2)
    speeds = {"on": Speed(1.0, 2.0, 40 * 12)}
    enough = 5 * 2 * 4 * (1 + 2 * 9)
    assert reduce_entries(plan, [entry], speeds, enough, tmp_path) == [entry]
    assert reduce_entries(plan, [entry], speeds, enough - 1, tmp_path) != [entry]


class Study:
    """A study whose runs are timed by a table, their folders made as a timed run makes them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.plan, self.said = folder, Plan(BASE), []
        self.failing: set[str] = set()
        self.meanwhile: set[str] = set()
        self.epochs: list[int] = []
        self.trained_by_others = ExitStack()
        self.entry = full_entry(self.plan.claims["2"], 2)
        first = first_point(self.plan.claims["2"], self.entry)
        self.pilot = run_folder(folder, run_key(self.plan.config(self.entry, first, 0)))

        def measure_speed(one: Job, worker: Worker, **_) -> Speed:
            for where in (run_folder(folder, one.key), fold_folder(run_folder(folder, one.key), 0)):
                where.mkdir(parents=True, exist_ok=True)
            if one.key in self.failing:
                raise MemoryError
            if one.key in self.meanwhile:
                run = open_run(one.config, run_folder(folder, one.key))
                self.trained_by_others.enter_context(run.locked())
                worker.on_epoch(run, EpochReport(2, {}, None, 1.0, 0.0, 0.0, {}))
            return Speed(1.0, 2.0, 40 * 12)

        monkeypatch.setattr(budget, "measure_speed", measure_speed)

    def fit_to_budget(self, seconds: float) -> list[Entry]:
        worker = Worker(
            self.folder,
            launch(BASE),
            ImageCache(),
            on_epoch=lambda run, report: self.epochs.append(report.epoch),
        )
        return fit_to_budget(self.plan, [self.entry], seconds, worker, say=self.said.append)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return Study(tmp_path, monkeypatch)


def test_a_run_that_was_only_timed_goes(study: Study) -> None:
    (fitting,) = study.fit_to_budget(3 * 2 * 19 - 1)
    assert fitting.epochs is not None
    assert list((study.folder / "runs").iterdir()) == []
    study.fit_to_budget(5 * 2 * 19 + 60)  # in time for all of its epochs, and so it goes on
    assert study.pilot.exists()


def test_a_run_that_there_was_before_stays(study: Study) -> None:
    study.pilot.mkdir(parents=True)
    study.fit_to_budget(3 * 2 * 19 - 1)
    assert [one.name for one in (study.folder / "runs").iterdir()] == [study.pilot.name]


def test_a_run_that_another_claim_wants_stays(study: Study) -> None:
    other = full_entry(study.plan.claims["hgnn"], 2)
    assert study.pilot.name in {one.key for one in jobs_of(study.plan, [other])}
    study.plan = study.plan.including([other], "tuplet claims run hgnn")
    study.fit_to_budget(3 * 2 * 19 - 1)
    assert study.pilot.exists()


def test_a_run_that_another_process_began_meanwhile_stays(study: Study) -> None:
    study.meanwhile = {study.pilot.name}
    with study.trained_by_others:
        (fitting,) = study.fit_to_budget(3 * 2 * 19 - 1)
        assert fitting.epochs is not None  # the run has more, and so is none of its own
        assert (study.pilot / "config.yaml").exists()
    assert study.epochs == [2]


def test_a_failure_that_is_tried_again_costs_time(study: Study) -> None:
    entries, speeds = [study.entry], {"on": Speed(1.0, 2.0, 40 * 12)}
    jobs = jobs_of(study.plan, entries)
    enough = len(jobs) * 19.0
    (study.folder / "runs").mkdir()
    record_failure(study.folder, jobs[3], "no such folder", lasting=False)
    assert reduce_entries(study.plan, entries, speeds, enough, study.folder) == entries
    assert reduce_entries(study.plan, entries, speeds, enough - 1, study.folder) != entries
    record_failure(study.folder, jobs[3], "it diverged", lasting=True)
    assert reduce_entries(study.plan, entries, speeds, enough - 19, study.folder) == entries


def test_where_one_run_fails_another_is_timed(study: Study) -> None:
    study.failing = {study.pilot.name}
    assert study.fit_to_budget(1000.0) == [study.entry]
    assert study.said == [
        "timing    claim 2: L = 2",
        "failed    claim 2: L = 2: MemoryError",
        "timing    claim 2: L = 1",
    ]
    study.failing = {one.key for one in jobs_of(study.plan, [replace(study.entry, num_seeds=1)])}
    with pytest.raises(SettingsError):
        study.fit_to_budget(1000.0)


def too_small(plan: Plan, keys: str, speed: Speed, seconds: float, folder: Path, **spent: float) -> str:
    entries = [full_entry(plan.claims[key], 3) for key in keys.split()]
    with pytest.raises(SettingsError) as refused:
        reduce_entries(plan, entries, {"on": speed}, seconds, folder, **spent)
    return str(refused.value)


def test_what_would_do_instead_of_a_budget_that_is_too_small(tmp_path: Path) -> None:
    """The smallest study of claim 2: three points, two seeds, a third of 9 epochs; 31 s a run."""
    speed, base = Speed(1.0, 10.0, 40 * 12), Plan(BASE)
    smallest = "the smallest claims run takes about 4 minutes here; want --budget 4m"
    said = too_small(base, "2", speed, 60.0, tmp_path)
    assert said == smallest
    # Timing took a minute of five, and a second more is too much.
    said = too_small(base, "2", speed, 240.0, tmp_path, spent=240.0 - 6 * 31 + 1)
    assert said.startswith(f"{smallest.replace('4', '5')}, or ")
    two = Plan(override(BASE, {"schedule.epochs": 2}))
    said = too_small(two, "2", Speed(1.0, 1.0, 40 * 12), 10.0, tmp_path)
    assert said == "the smallest claims run takes about 1 minute here; want --budget 1m"
    said = too_small(base, "2 3", speed, 60.0, tmp_path)
    assert said.endswith("m, or fewer claims")


def test_the_epochs_that_are_suggested_fit_and_one_more_does_not(tmp_path: Path) -> None:
    speed, seconds = Speed(1.0, 10.0, 40 * 12), 6 * 75.0
    long = Plan(override(BASE, {"schedule.epochs": 60}))
    said = too_small(long, "2", speed, seconds, tmp_path)
    (epochs,) = map(int, re.findall("or shorter runs such as --schedule.epochs ([0-9]+)", said))
    assert epochs == 7
    short = Plan(override(BASE, {"schedule.epochs": epochs}))
    entry = full_entry(short.claims["2"], 3)
    (fitting,) = reduce_entries(short, [entry], {"on": speed}, seconds, tmp_path)
    assert sum(10 * one.config.schedule.epochs + 1 for one in jobs_of(short, [fitting])) <= seconds
    # Of three points and two seeds, whose epochs are not taken down once more.
    assert 6 * (1 + 10 * epochs) <= seconds < 6 * (1 + 10 * (epochs + 1))


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
    monkeypatch.setattr(budget.time, "perf_counter", lambda: next(clock))
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
        budget, "time", SimpleNamespace(perf_counter=lambda: next(clock), sleep=lambda seconds: None)
    )
    assert speed_of(BASE, tmp_path, waiting=lambda: told.append("waiting")) == Speed(8.0, 8.0, 40 * 12)
    assert told == ["waiting"]
