"""The queue of a study: what fails stops nothing, what was begun goes on, what is finished stays as it is."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.research.claims import running
from tuplet.research.claims.plan import Job, run_key
from tuplet.research.claims.running import (
    Worker,
    failure_file,
    failure_of,
    is_lasting,
    is_trained_now,
    queue_name,
    record_failure,
    run_folder,
    state_of,
)
from tuplet.research.queue import Queue, sqlite_url
from tuplet.training.devices import launch
from tuplet.training.experiment import ImageCache, fold_folder, fold_of, open_run
from tuplet.training.run_folder import EpochReport, Run


@pytest.fixture(scope="module")
def quick(tiny: RunConfig) -> RunConfig:
    return override(tiny, {"schedule.epochs": 2, "evaluation.kmeans_runs": 0})


def job(config: RunConfig, **changes) -> Job:
    changed = override(config, {path.replace("__", "."): value for path, value in changes.items()})
    return Job(run_key(changed), changed, ", ".join(f"{path}={value}" for path, value in changes.items()))


def test_a_failed_run_is_told_and_stops_nothing(tmp_path: Path, quick: RunConfig) -> None:
    jobs = [
        job(quick, seed=1, optimizer__lr_backbone=1e30, schedule__warmup_epochs=0),
        job(quick, seed=2, data__batch_size=64),
        job(quick, seed=3),
    ]
    fabric, images = launch(quick), ImageCache()
    told: list[str] = []
    failures: list[str] = []

    def run() -> None:
        Worker(
            tmp_path,
            fabric,
            images,
            on_job=lambda one, left: told.append(f"{one.title} {left}"),
            on_failure=lambda one, error: failures.append(error),
        ).run(jobs)

    run()
    assert [state_of(tmp_path, one.key) for one in jobs] == ["failed", "failed", "finished"]
    assert [line.rpartition(" ")[2] for line in told] == ["3", "2", "1"]
    assert "training stopped at epoch 1" in failures[0]
    assert "data.batch_size = 64" in failures[1]
    assert failure_of(tmp_path, jobs[1].key) == failures[1]
    assert [is_lasting(tmp_path, one.key) for one in jobs[:2]] == [True, False]
    assert Run(run_folder(tmp_path, jobs[2].key)).config == jobs[2].config

    told.clear()
    run()  # what diverged would diverge again; what else failed may have been mended
    assert [line.rpartition(" ")[0] for line in told] == [jobs[1].title]
    failure_file(tmp_path, jobs[0].key).unlink()
    assert state_of(tmp_path, jobs[0].key) == "begun"


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> dict[int, BaseException]:
    """Runs whose epochs take no time; what is put in by seed is raised."""
    errors: dict[int, BaseException] = {}

    def epochs(config: RunConfig, where: Path, **_):
        if config.seed in errors:
            raise errors[config.seed]
        run = open_run(config, where)
        with run.locked():
            for epoch in range(len(run.reports()), config.schedule.last_epoch + 1):
                run.append(EpochReport(epoch, {}, None, 1.0, 0.0, 1.0, {}))
                yield run, run.reports()[-1]
            run.model_folder.mkdir()

    monkeypatch.setattr(running, "epochs_of_runs", epochs)
    monkeypatch.setattr(running, "POLL_SECONDS", 0.01)
    return errors


class Command:
    """A command with its jobs; `epochs` are those that it trained, by seed."""

    def __init__(self, folder: Path, quick: RunConfig, *seeds: int, run_id: str = "", **options) -> None:
        self.folder = folder
        self.jobs = [job(quick, seed=seed) for seed in seeds]
        self.run_id = run_id
        self.worker = Worker(folder, launch(quick), ImageCache(), on_epoch=self.on_epoch, **options)
        self.stop_at: tuple[int, int] | None = None
        self.epochs: list[tuple[int, int]] = []
        self.meanwhile = lambda: None

    def on_epoch(self, run: Run, report: EpochReport) -> None:
        self.epochs.append((run.config.seed, report.epoch))
        if self.epochs[-1] == self.stop_at:
            raise KeyboardInterrupt
        self.meanwhile()

    def run(self, *, stop_at: tuple[int, int] | None = None) -> None:
        self.stop_at = stop_at
        with nullcontext() if stop_at is None else pytest.raises(KeyboardInterrupt):
            self.worker.run(self.jobs, self.run_id)

    @property
    def states(self) -> list[str]:
        return [state_of(self.folder, one.key) for one in self.jobs]


def test_a_command_runs_its_own_jobs_and_leaves_others_waiting(
    tmp_path: Path, quick: RunConfig, untrained
) -> None:
    stopped = Command(tmp_path, quick, 4, 6, 7)
    stopped.run(stop_at=(4, 1))
    assert stopped.states == ["begun", "not run", "not run"]
    new = Command(tmp_path, quick, 5, 7)
    new.run()
    assert sorted(new.epochs) == [(seed, epoch) for seed in (5, 7) for epoch in (0, 1, 2)]
    assert stopped.states == ["begun", "not run", "finished"]
    # What waited before still waits, each once.
    queue = Queue(sqlite_url(tmp_path / "queue.db"), queue_name(tmp_path, "", stopped.jobs)).study
    waiting = [one.user_attrs["run"] for one in queue.get_trials(states=(TrialState.WAITING,))]
    assert sorted(waiting) == sorted(one.key for one in stopped.jobs)
    stopped.epochs.clear()
    stopped.run()
    assert sorted(stopped.epochs) == [(4, 2), (6, 0), (6, 1), (6, 2)]


def test_workers_share_jobs_and_wait_for_what_runs_elsewhere(
    tmp_path: Path, quick: RunConfig, untrained
) -> None:
    told: list[int] = []

    def give_up(num_running: int) -> None:
        told.append(num_running)
        raise KeyboardInterrupt

    first = Command(tmp_path, quick, 1, 2, 3)
    second = Command(tmp_path, quick, 1, 2, waiting=give_up)

    def meanwhile() -> None:
        first.meanwhile = lambda: None
        with pytest.raises(KeyboardInterrupt):
            second.run()

    first.meanwhile = meanwhile
    first.run()
    assert second.epochs == [(2, 0), (2, 1), (2, 2)]
    assert told == [1]
    assert first.epochs == [(seed, epoch) for seed in (1, 3) for epoch in (0, 1, 2)]


def test_studies_in_folders_of_one_name_on_one_database(tmp_path: Path, quick: RunConfig, untrained) -> None:
    url = sqlite_url(tmp_path / "shared.db")
    for ids in (("one", "two"), ("", "")):  # those of old plans have one queue
        here, there = tmp_path / f"a{ids[0]}" / "study", tmp_path / f"b{ids[0]}" / "study"
        stopped = Command(here, quick, 1, 2, run_id=ids[0], storage_url=url)
        stopped.run(stop_at=(1, 0))
        other = Command(there, quick, 3, run_id=ids[1], storage_url=url)
        other.run()
        assert other.epochs == [(3, 0), (3, 1), (3, 2)]
        assert [one.name for one in (there / "runs").iterdir()] == [other.jobs[0].key]


def test_one_queue_for_all_workers_of_a_command(tmp_path: Path, quick: RunConfig) -> None:
    here, there = tmp_path / "a" / "study", tmp_path / "b" / "study"
    one, two = job(quick, seed=1), job(quick, seed=2)
    assert queue_name(here, "id", [one, two]) == queue_name(there, "id", [two, one])
    assert queue_name(here, "id", [one, two]) != queue_name(here, "id", [one])
    assert queue_name(here, "id", [one]) != queue_name(here, "other", [one])
    assert queue_name(here, "", [one]) == queue_name(there, "", [one]) != queue_name(tmp_path, "", [one])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of\nmemory"), "OutOfMemoryError: CUDA out of memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_run_that_is_too_large_stops_nothing(
    tmp_path: Path, quick: RunConfig, untrained: dict[int, BaseException], error: BaseException, words: str
) -> None:
    untrained[1] = error
    worker = Command(tmp_path, quick, 1, 2)
    worker.run()
    assert worker.states == ["failed", "finished"]
    assert failure_of(tmp_path, worker.jobs[0].key) == words
    untrained.clear()
    worker.run()
    assert worker.states == ["finished", "finished"]


@pytest.mark.parametrize("error", [OSError("no space left"), torch.AcceleratorError("illegal access")])
def test_a_broken_machine_ends_the_study(
    tmp_path: Path, quick: RunConfig, untrained: dict[int, BaseException], error: BaseException
) -> None:
    untrained[1] = error
    worker = Command(tmp_path, quick, 1, 2)
    with pytest.raises(type(error)):
        worker.run()
    assert worker.states == ["not run", "not run"]
    untrained.clear()
    worker.run()
    assert worker.states == ["finished", "finished"]


def test_a_finished_run_is_no_failed_one(tmp_path: Path, quick: RunConfig, untrained) -> None:
    worker = Command(tmp_path, quick, 1)
    worker.run()
    record_failure(tmp_path, worker.jobs[0], "another worker's", lasting=True)
    assert worker.states == ["finished"]


def test_a_run_that_another_process_trains_is_left_for_later(
    tmp_path: Path, quick: RunConfig, untrained
) -> None:
    lock = ExitStack()
    told: list[int | str] = []

    def give_way(num_running: int) -> None:
        told.append(num_running)
        lock.close()

    worker = Command(
        tmp_path, quick, 1, 2, waiting=give_way, on_job=lambda one, left: told.append(f"{one.title}, {left}")
    )
    run = open_run(worker.jobs[0].config, run_folder(tmp_path, worker.jobs[0].key))
    lock.enter_context(run.locked())
    worker.run()
    assert told == ["seed=2, 2", 1, "seed=1, 1"]
    assert worker.states == ["finished", "finished"]
    assert not failure_file(tmp_path, worker.jobs[0].key).exists()


def test_so_is_one_that_another_process_begins_just_now(
    tmp_path: Path, quick: RunConfig, untrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "is_trained_now", lambda folder, key: False)
    lock = ExitStack()
    worker = Command(tmp_path, quick, 1, 2)
    run = open_run(worker.jobs[0].config, run_folder(tmp_path, worker.jobs[0].key))
    lock.enter_context(run.locked())
    worker.meanwhile = lock.close
    worker.run()
    assert [seed for seed, epoch in worker.epochs if epoch == 0] == [2, 1]
    assert worker.states == ["finished", "finished"]
    assert not failure_file(tmp_path, worker.jobs[0].key).exists()


def test_images_are_decoded_once_for_runs_on_the_same_ones(quick: RunConfig) -> None:
    images = ImageCache()
    first = images.of(quick)
    for changes in ({"data.label_noise": 0.2}, {"data.batch_size": 4}, {"seed": 9}, {"data.imbalance": 3}):
        assert images.of(override(quick, changes)) is first
    assert len(first.train) == 36
    more = images.of(override(quick, {"data.glyph_train_classes": 7}))
    assert len(more.train) == 42
    assert len(images.of(quick).train) == 36


def test_state_of_what_was_never_begun(tmp_path: Path, quick: RunConfig) -> None:
    assert state_of(tmp_path, run_key(replace(quick, seed=77))) == "not run"


def test_a_run_whose_first_fold_is_trained_is_begun_and_nobody_trains_what_was_killed(
    tmp_path: Path, quick: RunConfig
) -> None:
    one = job(quick, seed=1)
    fold = open_run(fold_of(one.config, 0), fold_folder(run_folder(tmp_path, one.key), 0))
    assert state_of(tmp_path, one.key) == "begun"
    with fold.locked():
        assert is_trained_now(tmp_path, one.key)
    assert not is_trained_now(tmp_path, one.key)
    assert not is_trained_now(tmp_path, job(quick, seed=2).key)
