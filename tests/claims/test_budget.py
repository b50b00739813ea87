"""How long a study takes, from the runs that there are, and what a budget removes: its own runs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated import fabricate, measured

from tuplet.claims import budget, running
from tuplet.claims.budget import Speed, first_point, fit, measure_speed, num_trainings, within
from tuplet.claims.catalogue import glyphs
from tuplet.claims.plan import Entry, Job, Plan, jobs_of, run_key, whole
from tuplet.claims.running import run_folder
from tuplet.config import RunConfig
from tuplet.errors import InputError
from tuplet.experiment import Images, fold_folder, fold_of
from tuplet.overrides import override
from tuplet.runs import EpochReport, Run
from tuplet.training import launch

BASE = override(glyphs(), {"schedule.epochs": 9, "compute.accelerator": "cpu"})
VALIDATED = {"evaluation.selection": "validation", "evaluation.validation_folds": 3}


def job(config: RunConfig) -> Job:
    return Job(run_key(config), config, "timed")


def speed_of(config: RunConfig, folder: Path) -> Speed:
    return measure_speed(job(config), folder, fabric=launch(config), images=Images())


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
    assert speed_of(BASE, tmp_path) == Speed(2 * (3.0 + 1.0), 8.0, 40 * 12)
    assert trained == [2]


def test_validation_takes_a_training_a_fold_more(tmp_path: Path) -> None:
    assert num_trainings(BASE) == 1
    assert num_trainings(override(BASE, VALIDATED)) == 4
    assert num_trainings(override(BASE, {**VALIDATED, "schedule.stop_after": 5})) == 1
    plan = Plan(override(BASE, VALIDATED))
    entry = whole(plan.claims["2"], 2)
    speeds = {"on": Speed(1.0, 2.0, 40 * 12)}
    enough = 5 * 2 * 4 * (1 + 2 * 9)
    assert fit(plan, [entry], speeds, enough, tmp_path) == [entry]
    assert fit(plan, [entry], speeds, enough - 1, tmp_path) != [entry]


class Study:
    """A study whose runs are timed by a table, their folders made as a timed run makes them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.plan, self.said = folder, Plan(BASE), []
        self.failing: set[str] = set()
        self.entry = whole(self.plan.claims["2"], 2)
        first = first_point(self.plan.claims["2"], self.entry)
        self.pilot = run_folder(folder, run_key(self.plan.config(self.entry, first, 0)))

        def measure_speed(one: Job, folder: Path, **_) -> Speed:
            for where in (run_folder(folder, one.key), fold_folder(run_folder(folder, one.key), 0)):
                where.mkdir(parents=True, exist_ok=True)
            if one.key in self.failing:
                raise MemoryError
            return Speed(1.0, 2.0, 40 * 12)

        monkeypatch.setattr(budget, "measure_speed", measure_speed)

    def within(self, seconds: float) -> list[Entry]:
        return within(
            self.plan,
            [self.entry],
            seconds,
            self.folder,
            fabric=launch(BASE),
            images=Images(),
            say=self.said.append,
        )


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return Study(tmp_path, monkeypatch)


def test_a_run_that_was_only_timed_goes(study: Study) -> None:
    (fitting,) = study.within(3 * 2 * 19 - 1)
    assert fitting.epochs is not None
    assert list((study.folder / "runs").iterdir()) == []
    study.within(5 * 2 * 19 + 60)  # in time for all of its epochs, and so it goes on
    assert study.pilot.exists()


def test_a_run_that_there_was_before_stays(study: Study) -> None:
    study.pilot.mkdir(parents=True)
    study.within(3 * 2 * 19 - 1)
    assert [one.name for one in (study.folder / "runs").iterdir()] == [study.pilot.name]


def test_a_run_that_another_claim_wants_stays(study: Study) -> None:
    other = whole(study.plan.claims["hgnn"], 2)
    assert study.pilot.name in {one.key for one in jobs_of(study.plan, [other])}
    study.plan = study.plan.including([other], "tuplet claims run hgnn")
    study.within(3 * 2 * 19 - 1)
    assert study.pilot.exists()


def test_where_one_run_fails_another_is_timed(study: Study) -> None:
    study.failing = {study.pilot.name}
    assert study.within(1000.0) == [study.entry]
    assert study.said == [
        "timing    claim 2: L = 2",
        "failed    claim 2: L = 2: MemoryError",
        "timing    claim 2: L = 1",
    ]
    study.failing = {one.key for one in jobs_of(study.plan, [replace(study.entry, num_seeds=1)])}
    with pytest.raises(InputError, match="no run could be timed for --budget"):
        study.within(1000.0)
