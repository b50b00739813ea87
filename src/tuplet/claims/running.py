"""The trainings of a study: each an ordinary run, taken from a queue that several workers may share."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import optuna
from lightning_fabric import Fabric
from optuna.trial import TrialState

from tuplet.claims.plan import Job
from tuplet.config import ComputeConfig
from tuplet.errors import InputError
from tuplet.experiment import Images, epochs_of_runs
from tuplet.overrides import from_dict, to_dict
from tuplet.runs import EpochReport, Run, write_atomically
from tuplet.session import DivergedError
from tuplet.tuning.storage import Storage, sqlite_url, storage_errors
from tuplet.tuning.workers import work

State: TypeAlias = Literal["finished", "failed", "begun", "not run"]

_QUEUE = "claims"


def run_folder(folder: Path, key: str) -> Path:
    """Where the run of that key is, in the folder of its study."""
    return folder / "runs" / key


def failure_file(folder: Path, key: str) -> Path:
    """What is written of a run that failed; one that diverged is tried again only without it."""
    return folder / "runs" / f"{key}.failed.json"


def state_of(folder: Path, key: str) -> State:
    """How far a run has come."""
    if failure_file(folder, key).exists():
        return "failed"
    where = run_folder(folder, key)
    if not (where / "config.yaml").exists():
        return "not run"
    run = Run(where)
    reports = run.reports()
    ended = bool(reports) and reports[-1].epoch == run.config.schedule.last_epoch
    return "finished" if ended and run.model_folder.exists() else "begun"


def failure_of(folder: Path, key: str) -> str:
    """Why a run failed, in a line."""
    tree: dict[str, Any] = json.loads(failure_file(folder, key).read_text())
    return str(tree["error"])


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    *,
    fabric: Fabric,
    images: Images,
    storage_url: str | None = None,
    heartbeat_seconds: int = 20,
    on_job: Callable[[Job, int], None] = lambda job, left: None,
    on_epoch: Callable[[Run, EpochReport], None] = lambda run, report: None,
    on_failure: Callable[[Job, str], None] = lambda job, error: None,
    waiting: Callable[[int], None] = lambda running: None,
) -> None:
    """Nothing; every job is finished or has failed, here or by another worker.

    Any number of processes may do the same at once. What is finished is not repeated, what was begun goes
    on, and what another worker began and lost is taken up by the next.

    Args:
        jobs: in the order wanted.
        folder: of the study; workers on several machines share it.
        fabric: launched; one rank.
        images: of the runs.
        storage_url: address of the queue's database; None: an SQLite file in the folder.
        heartbeat_seconds: between two signs of life of a worker, >= 1.
        on_job: told of a job that begins, and of how many are left with it.
        on_epoch: told of each epoch as it ends.
        on_failure: told of a run that cannot be finished, such as one that diverged.
        waiting: told of the number of jobs that run elsewhere, when no other is left to begin.

    Raises:
        InputError: (a ValueError) a storage that cannot be used.
    """
    compute = jobs[0].config.compute if jobs else ComputeConfig()
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    url = storage_url or sqlite_url((folder / "queue.db").absolute())
    storage = Storage(url, heartbeat_seconds=heartbeat_seconds)
    name = f"{_QUEUE}-{folder.absolute().name}"
    queue = storage.study(name)
    with storage_errors(storage.name), storage.lock(name):
        for job in jobs:
            _forget_failure(folder, job.key)
        _enqueue(queue, [job for job in jobs if state_of(folder, job.key) in ("begun", "not run")])

    def train_one(trial: optuna.Trial) -> float:
        job = _taken(trial, compute)  # perhaps one that another command wants
        if state_of(folder, job.key) in ("finished", "failed"):
            return 0.0
        on_job(job, sum(state_of(folder, one.key) in ("begun", "not run") for one in jobs))
        try:
            where = run_folder(folder, job.key)
            epochs = epochs_of_runs(job.config, where, fabric=fabric, images=images.of(job.config))
            # Closed whatever is raised, or the run would stay locked as long as the error is kept.
            with closing(cast("Generator[tuple[Run, EpochReport]]", epochs)):
                for run, report in epochs:
                    on_epoch(run, report)
        except InputError as error:
            record_failure(folder, job, str(error), lasting=isinstance(error, DivergedError))
            on_failure(job, str(error))
        return 1.0

    for _ in work(storage, queue, train_one, wanted=0, waiting=waiting):
        pass


def record_failure(folder: Path, job: Job, error: str, *, lasting: bool) -> None:
    """Write down that a run cannot be finished, and why.

    Args:
        folder: of the study.
        job: that failed.
        error: in words.
        lasting: whether it would fail again, having trained; other causes may have gone by the next command.
    """
    tree = {"run": job.title, "error": " ".join(error.split()), "lasting": lasting}
    write_atomically(failure_file(folder, job.key), (json.dumps(tree, indent=1) + "\n").encode())


def _forget_failure(folder: Path, key: str) -> None:
    """Let a run be tried again whose failure may have been mended."""
    file = failure_file(folder, key)
    if file.exists() and not json.loads(file.read_text())["lasting"]:
        file.unlink()


def _enqueue(queue: optuna.Study, jobs: Sequence[Job]) -> None:
    """Let every job wait in the queue that does not wait or run there already."""
    under_way = {
        trial.user_attrs.get("run")
        for trial in queue.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    }
    for job in jobs:
        if job.key not in under_way:
            attributes = {"run": job.key, "title": job.title, "config": to_dict(job.config)}
            queue.enqueue_trial({}, user_attrs=attributes)


def _taken(trial: optuna.Trial, compute: ComputeConfig) -> Job:
    """The job of a trial, on this worker's devices."""
    told = trial.user_attrs
    return Job(told["run"], replace(from_dict(told["config"]), compute=compute), told["title"])
