"""Workers on a real PostgreSQL server: one is killed in mid-trial, and the server goes away for a moment."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from processes import command_in_background
from tiny_run import tiny_options

from tuplet.research.queue import Queue, first_number

USER = "postgres" if os.getuid() == 0 else None


def program(name: str) -> str:
    """A program of the server, which Debian keeps off the PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda file: int(file.parts[4]))
    found = shutil.which(name) or (str(versions[-1]) if versions else None)
    if found is None:
        pytest.skip("PostgreSQL's server is not installed; Debian has it as postgresql")
    return found


class Server:
    """A server of its own in a folder of its own, which only a socket in that folder leads to."""

    def __init__(self, folder: Path) -> None:
        self.url = f"postgresql:///postgres?host={folder}&user=postgres"
        self._data = folder / "data"
        self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "-D", str(self._data))
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = ''\nunix_socket_directories = '{folder}'\nfsync = off\n")
        self.start()

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(self._data / "log"), "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "immediate", "stop")

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [program(name), *arguments],
            user=USER,
            group=USER,
            cwd="/",
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # pytest's own folders are closed to other users, and the server does not run as root.
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        program("initdb")
        if USER is not None:
            shutil.chown(folder, USER, USER)
        server = Server(folder)
        try:
            yield server
        finally:
            server.stop()


SEARCH = ["--trials=4", "--sampler=random", "--heartbeat-seconds=1", "--pruner=median"]


def worker(server: Server, folder: Path) -> BaseProcess:
    folder.mkdir()
    options = tiny_options(schedule__epochs=16, schedule__warmup_epochs=0)
    where = ["--storage", server.url, "--study", "shared", "--to", folder]
    return command_in_background(folder, "tune", "demo", *options, *SEARCH, *where)


def test_a_worker_is_killed_in_mid_trial(server: Server, tmp_path: Path) -> None:
    study = Queue(server.url, "shared").study
    lost, other = (worker(server, tmp_path / name) for name in ("lost", "other"))
    try:
        deadline = time.monotonic() + 120
        while sum(bool(trial.intermediate_values) for trial in running(study)) < 2:
            assert (lost.exitcode, other.exitcode) == (None, None)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        lost.kill()
        other.join(240)
        ended = other.exitcode
    finally:
        lost.kill()
        other.kill()
    said = (tmp_path / "other" / "stdout.txt").read_text()
    assert ended == 0, (tmp_path / "other" / "stderr.txt").read_text()

    trials = study.get_trials()
    (left,) = (trial for trial in trials if trial.state == TrialState.FAIL)
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) == 4 == len(trials) - 1
    # None twice: each was first tried under a number of its own, and one under two.
    (again,) = (trial for trial in ended if trial.number != first_number(trial))
    assert {first_number(trial) for trial in ended} == set(range(5)) - {again.number}
    assert first_number(again) == left.number
    assert again.params == left.params
    assert len({tuple(trial.params.items()) for trial in ended}) == 4
    assert (tmp_path / "other" / "trials" / f"{left.number:04d}" / "metrics.jsonl").exists()
    assert "best.yaml" in said


def running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def test_a_server_that_is_away_for_a_moment_costs_nothing(server: Server) -> None:
    queue = Queue(server.url, "restarted", heartbeat_seconds=1)

    def job(trial: optuna.Trial) -> float:
        value = trial.suggest_float("x", 0, 1)
        if trial.number == 0:
            server.stop()
            time.sleep(1.2)
            server.start()
        return value

    ended = list(queue.work(job, wanted=2))
    assert [trial.state for trial in ended] == [TrialState.COMPLETE] * 2
    assert [trial.value for trial in queue.study.get_trials()] == [trial.params["x"] for trial in ended]
