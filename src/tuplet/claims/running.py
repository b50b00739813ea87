"""The trainings of a study: each an ordinary run, taken from a queue that several workers may share."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import optuna
import torch
from filelock import Timeout
from lightning_fabric import Fabric
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from tuplet.claims.plan import Job
from tuplet.errors import InputError
from tuplet.experiment import Images, epochs_of_runs
from tuplet.overrides import to_dict
from tuplet.runs import EpochReport, Run, write_atomically
from tuplet.session import DivergedError
from tuplet.tuning.storage import Storage, sqlite_url, storage_errors
from tuplet.tuning.workers import work

State: TypeAlias = Literal["finished", "failed", "begun", "not run"]

FAULTS_OF_A_RUN = (InputError, RuntimeError, MemoryError)
"""What a run may fail of and another may not; a full disk or a broken device ends the study."""

_POLL_SECONDS = 2.0


def run_folder(folder: Path, key: str) -> Path:
    """Where the run of that key is, in the folder of its study."""
    return folder / "runs" / key


def failure_file(folder: Path, key: str) -> Path:
    """What is written of a run that failed; one that diverged is tried again only without it."""
    return folder / "runs" / f"{key}.failed.json"


def state_of(folder: Path, key: str) -> State:
    """How far a run has come."""
    where = run_folder(folder, key)
    begun = (where / "config.yaml").exists()
    if begun and (where / "model").exists():
        run = Run(where)
        reports = run.reports()
        if reports and reports[-1].epoch == run.config.schedule.last_epoch:
            return "finished"
    if failure_file(folder, key).exists():
        return "failed"
    return "begun" if begun else "not run"


def failure_of(folder: Path, key: str) -> str:
    """Why a run failed, in a line."""
    tree: dict[str, Any] = json.loads(failure_file(folder, key).read_text())
    return str(tree["error"])


def queue_name(folder: Path, study_id: str) -> str:
    """What the queue of a study is called in its database.

    Args:
        folder: of the study.
        study_id: of its plan; empty: its queue is called after the folder's last name.
    """
    return f"claims-{study_id or folder.absolute().name}"


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    *,
    fabric: Fabric,
    images: Images,
    study_id: str = "",
    storage_url: str | None = None,
    heartbeat_seconds: int = 20,
    on_job: Callable[[Job, int], None] = lambda job, left: None,
    on_epoch: Callable[[Run, EpochReport], None] = lambda run, report: None,
    on_failure: Callable[[Job, str], None] = lambda job, error: None,
    waiting: Callable[[int], None] = lambda running: None,
) -> None:
    """Nothing; every job is finished or has failed, here or by another worker.

    Any number of processes may do the same at once. What is finished is not repeated, what was begun goes
    on, and what another worker began and lost is taken up by the next. What else waits in the queue, for
    another command, goes on waiting.

    Args:
        jobs: in the order wanted.
        folder: of the study; workers on several machines share it.
        fabric: launched; one rank.
        images: of the runs.
        study_id: of the plan.
        storage_url: address of the queue's database; None: an SQLite file in the folder.
        heartbeat_seconds: between two signs of life of a worker, >= 1.
        on_job: told of a job that begins, and of how many are left with it.
        on_epoch: told of each epoch as it ends.
        on_failure: told of a run that cannot be finished, such as one that diverged.
        waiting: told of the number of jobs that run elsewhere, when no other is left to begin.

    Raises:
        InputError: (a ValueError) a storage that cannot be used.
    """
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    url = storage_url or sqlite_url((folder / "queue.db").absolute())
    storage = Storage(url, heartbeat_seconds=heartbeat_seconds)
    queue = storage.study(queue_name(folder, study_id))
    left = list(jobs)

    def train_one(trial: optuna.Trial) -> float:
        job = _taken(storage, queue, trial, left, folder)
        if job is None:
            return 0.0
        on_job(job, len(left))
        epochs = epochs_of(job, folder, fabric=fabric, images=images, on_locked=lambda: waiting(1))
        try:
            # Closed whatever is raised, or the run would stay locked as long as the error is kept.
            with closing(epochs):
                for run, report in epochs:
                    on_epoch(run, report)
        except torch.AcceleratorError:
            raise  # the device answers no run of this process any more
        except FAULTS_OF_A_RUN as error:
            record_failure(folder, job, in_a_line(error), lasting=isinstance(error, DivergedError))
            on_failure(job, in_a_line(error))
        return 1.0

    with storage_errors(storage.name), storage.lock(queue.study_name):
        for job in jobs:
            _forget_failure(folder, job.key)
    told = 0
    while left := [job for job in left if _is_left(folder, job.key)]:
        with storage_errors(storage.name), storage.lock(queue.study_name):
            running = _offer(queue, left)
        if running < len(left):
            # Without a limit a trial is taken always, and nothing waits for other commands' runs.
            next(work(storage, queue, train_one, wanted=sys.maxsize), None)
            continue
        if running != told:
            told = running
            waiting(running)
        time.sleep(_POLL_SECONDS)


def epochs_of(
    job: Job, folder: Path, *, fabric: Fabric, images: Images, on_locked: Callable[[], None] = lambda: None
) -> Generator[tuple[Run, EpochReport]]:
    """Each epoch of a job as it ends, with its run; one that another process trains goes on after that.

    Args:
        job: to be trained.
        folder: of the study.
        fabric: launched; one rank.
        images: of the runs.
        on_locked: told once that another process trains it.

    Raises:
        InputError: (a ValueError) as `epochs_of_runs` does, but for the lock of another process.
    """
    told = False
    while True:
        split = images.of(job.config)
        epochs = epochs_of_runs(job.config, run_folder(folder, job.key), fabric=fabric, images=split)
        try:
            with closing(cast("Generator[tuple[Run, EpochReport]]", epochs)):
                yield from epochs
            return
        except InputError as error:
            if not isinstance(error.__context__, Timeout):
                raise
        if not told:
            told = True
            on_locked()
        time.sleep(_POLL_SECONDS)


def in_a_line(error: BaseException) -> str:
    """What an error says, in a line; of what is no message of ours, its kind and how it begins."""
    words = " ".join(str(error).split())
    if isinstance(error, InputError):
        return words
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__


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


def _is_left(folder: Path, key: str) -> bool:
    return state_of(folder, key) in ("begun", "not run")


def _offer(queue: optuna.Study, jobs: Sequence[Job]) -> int:
    """Let every job wait in the queue that does not wait or run there already; how many of them run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(queue)
    waiting, running = (set(_by_run(queue, one)) for one in (TrialState.WAITING, TrialState.RUNNING))
    for job in jobs:
        if job.key not in waiting | running:
            queue.enqueue_trial({}, user_attrs=_attributes(job))
    return sum(job.key in running for job in jobs)


def _taken(
    storage: Storage, queue: optuna.Study, trial: optuna.Trial, left: Sequence[Job], folder: Path
) -> Job | None:
    """The job that a trial is for, one of those that are left; None where others took them meanwhile.

    Optuna gives out what has waited longest. Where that is another command's, the two trials change places.
    """
    jobs = {job.key: job for job in left}
    key = trial.user_attrs.get("run")
    with storage_errors(storage.name), storage.lock(queue.study_name):
        elsewhere = {
            one for one, at in _by_run(queue, TrialState.RUNNING).items() if at.number != trial.number
        }
        if key is None or key in elsewhere or not _is_left(folder, key):
            return None  # it waited twice
        if key in jobs:
            return jobs[key]
        others = {name: trial.user_attrs[name] for name in _attributes(left[0]) if name in trial.user_attrs}
        for waiting, held in _by_run(queue, TrialState.WAITING).items():
            if waiting in jobs and waiting not in elsewhere and _is_left(folder, waiting):
                database = storage.optuna_storage
                study = database.get_study_id_from_name(queue.study_name)
                place = database.get_trial_id_from_study_id_trial_number(study, held.number)
                for name, value in _attributes(jobs[waiting]).items():
                    trial.set_user_attr(name, value)
                for name, value in others.items():
                    database.set_trial_user_attr(place, name, value)
                return jobs[waiting]
        queue.enqueue_trial({}, user_attrs=others)
    return None


def _by_run(queue: optuna.Study, state: TrialState) -> dict[str, FrozenTrial]:
    """The trials in a state, by the run that they are for."""
    trials = queue.get_trials(deepcopy=False, states=(state,))
    return {one.user_attrs["run"]: one for one in trials if "run" in one.user_attrs}


def _attributes(job: Job) -> dict[str, Any]:
    """What a trial says of its job; all of it, for workers of older versions too."""
    return {"run": job.key, "title": job.title, "config": to_dict(job.config)}
