"""Workers on one study: every trial is taken once, and tried again where its worker was lost."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tuplet.errors import InputError, RunFolderError, SettingsError
from tuplet.research.queue import Queue, first_number, sqlite_url


def opened(folder: Path, *, heartbeat_seconds: int = 20) -> Queue:
    return Queue(sqlite_url(folder / "study.db"), "one", heartbeat_seconds=heartbeat_seconds)


def parabola(trial: optuna.Trial) -> float:
    return -((trial.suggest_float("x", 0, 1) - 0.5) ** 2)


def test_as_many_trials_as_are_wanted(tmp_path: Path) -> None:
    queue = opened(tmp_path)
    numbers: list[int] = []
    ended = list(queue.work(parabola, wanted=3, prepare=lambda _, number: numbers.append(number)))
    assert [trial.number for trial in ended] == [0, 1, 2] == numbers
    assert all(trial.value == -((trial.params["x"] - 0.5) ** 2) for trial in ended)
    assert list(queue.work(parabola, wanted=2)) == []
    assert [trial.number for trial in opened(tmp_path).work(parabola, wanted=4)] == [3]


def test_two_workers_never_take_one_too_many(tmp_path: Path) -> None:
    opened(tmp_path)  # One makes the tables before two use them.
    begun = threading.Barrier(2)
    by_worker: list[list[int]] = [[], []]

    def worker(place: int) -> None:
        queue = opened(tmp_path)
        begun.wait(timeout=20)
        for trial in queue.work(slow, wanted=6, poll_seconds=0.05):
            by_worker[place].append(trial.number)

    def slow(trial: optuna.Trial) -> float:
        time.sleep(0.03)
        return parabola(trial)

    threads = [threading.Thread(target=worker, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(by_worker[0] + by_worker[1]) == list(range(6))
    assert by_worker[0]
    assert by_worker[1]
    states = Counter(trial.state for trial in opened(tmp_path).study.get_trials())
    assert states == {TrialState.COMPLETE: 6}


def test_ctrl_c_lets_the_trial_be_tried_again(tmp_path: Path) -> None:
    queue = opened(tmp_path)
    seen: list[float] = []

    def stopped(trial: optuna.Trial) -> float:
        seen.append(trial.suggest_float("x", 0, 1))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return seen[-1]

    with pytest.raises(KeyboardInterrupt):
        list(queue.work(stopped, wanted=3))
    again = list(opened(tmp_path).work(stopped, wanted=3))
    assert [(trial.number, first_number(trial)) for trial in again] == [(2, 1), (3, 3)]
    assert again[0].params["x"] == seen[1] == seen[2]
    states = [trial.state for trial in queue.study.get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


def test_what_the_job_raises_ends_the_work(tmp_path: Path) -> None:
    queue = opened(tmp_path)

    def broken(trial: optuna.Trial) -> float:
        raise InputError("no such image")

    with pytest.raises(InputError) as error:
        list(queue.work(broken, wanted=2))
    assert str(error.value) == "no such image"
    assert [trial.number for trial in queue.work(parabola, wanted=2)] == [1, 2]


def test_a_pruned_trial_counts(tmp_path: Path) -> None:
    queue = opened(tmp_path)

    def poor(trial: optuna.Trial) -> float:
        raise optuna.TrialPruned

    assert [trial.state for trial in queue.work(poor, wanted=2)] == [TrialState.PRUNED] * 2


def silence(folder: Path) -> None:
    """Make every heartbeat an hour old; the first one comes from a thread, perhaps after the trial begins."""
    update = "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')"
    for _ in range(3_000):
        with contextlib.closing(sqlite3.connect(folder / "study.db", timeout=60)) as database, database:
            if database.execute(update).rowcount:
                return
        time.sleep(0.01)
    raise AssertionError("no heartbeat within half a minute")


def test_the_trial_of_a_lost_worker_is_tried_again_once(tmp_path: Path) -> None:
    """The lost one comes back: what it says then is not counted."""
    queue = opened(tmp_path)
    others: list[optuna.trial.FrozenTrial] = []
    waits: list[int] = []

    def lost(trial: optuna.Trial) -> float:
        value = parabola(trial)
        if trial.number == 0:
            silence(tmp_path)
            others.extend(opened(tmp_path).work(parabola, wanted=2, waiting=waits.append))
        return value

    assert list(queue.work(lost, wanted=2)) == []
    trials = queue.study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert [(trial.number, first_number(trial)) for trial in others] == [(1, 0), (2, 2)]
    assert trials[0].params == trials[1].params
    assert waits == []


@pytest.mark.parametrize("raised", [KeyboardInterrupt, InputError("x")])
def test_a_lost_worker_that_is_stopped(tmp_path: Path, raised: BaseException | type[BaseException]) -> None:
    queue = opened(tmp_path)

    def lost(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        if trial.number == 0:
            silence(tmp_path)
            list(opened(tmp_path).work(parabola, wanted=1))
        raise raised

    with pytest.raises(KeyboardInterrupt if raised is KeyboardInterrupt else InputError):
        list(queue.work(lost, wanted=1))
    assert [trial.state for trial in queue.study.get_trials()] == [TrialState.FAIL, TrialState.COMPLETE]


def test_waiting_for_trials_that_run_elsewhere(tmp_path: Path) -> None:
    queue = opened(tmp_path)
    elsewhere = optuna.load_study(study_name="one", storage=sqlite_url(tmp_path / "study.db")).ask()
    waits: list[int] = []

    def end_it(running: int) -> None:
        waits.append(running)
        queue.study.tell(elsewhere, 0.5)

    assert list(queue.work(parabola, wanted=1, waiting=end_it, poll_seconds=0.01)) == []
    assert waits == [1]


@pytest.mark.parametrize("url", ["mysql://root@localhost/x", "runs/study.db"])
def test_addresses_of_another_kind(url: str) -> None:
    with pytest.raises(SettingsError) as error:
        Queue(url, "one")
    assert (error.value.subject, error.value.given) == ("--storage", url.partition("://")[0])


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@127.0.0.1:1/x", "postgresql+psycopg://me:***@127.0.0.1:1/x"),
        ("sqlite:////no/such/folder/study.db", "sqlite:////no/such/folder/study.db"),
    ],
)
def test_databases_that_cannot_be_used(url: str, shown: str) -> None:
    with pytest.raises(RunFolderError) as error:
        Queue(url, "one")
    assert error.value.subject == shown
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_lost_sign_of_life_does_not_end_the_trial(tmp_path: Path) -> None:
    queue = opened(tmp_path, heartbeat_seconds=1)
    errors: list[object] = []
    before: Callable[..., object] = threading.excepthook
    threading.excepthook = errors.append

    def without_table(trial: optuna.Trial) -> float:
        with sqlite3.connect(tmp_path / "study.db") as database:
            database.execute("ALTER TABLE trial_heartbeats RENAME TO away")
        time.sleep(1.3)
        with sqlite3.connect(tmp_path / "study.db") as database:
            database.execute("ALTER TABLE away RENAME TO trial_heartbeats")
        database.close()
        return 0.5

    try:
        assert [trial.value for trial in queue.work(without_table, wanted=1)] == [0.5]
    finally:
        threading.excepthook = before  # type: ignore[assignment]
    assert errors == []
