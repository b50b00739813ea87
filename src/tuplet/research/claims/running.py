"""The trainings of a study: each an ordinary run, taken from a queue that several workers may share."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, TypeAlias

import optuna
import torch
from lightning_fabric import Fabric
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from tuplet.data.files import write_atomically
from tuplet.errors import InputError
from tuplet.research.claims.plan import Job
from tuplet.research.queue import Storage, sqlite_url, storage_errors, work
from tuplet.training.experiment import ImageCache, epochs_of_runs, fold_folder
from tuplet.training.run_folder import EpochReport, LockedRunError, Run
from tuplet.training.session import DivergedError

State: TypeAlias = Literal["finished", "failed", "begun", "not run"]

FAULTS_OF_A_RUN = (InputError, RuntimeError, MemoryError)
"""What a run may fail of and another may not; a full disk or a broken device ends the study."""

POLL_SECONDS = 2.0
"""Between two looks whether another process has ended what it trains."""


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
    return "begun" if begun or (fold_folder(where, 0) / "config.yaml").exists() else "not run"


def failure_of(folder: Path, key: str) -> str:
    """Why a run failed, in a line."""
    tree: dict[str, Any] = json.loads(failure_file(folder, key).read_text())
    return str(tree["error"])


def is_lasting(folder: Path, key: str) -> bool:
    """Whether a run that failed would fail again; the next command tries the others once more."""
    tree: dict[str, Any] = json.loads(failure_file(folder, key).read_text())
    return bool(tree["lasting"])


def is_trained_now(folder: Path, key: str) -> bool:
    """Whether a process trains the run, or one of its folds, at this moment."""
    where = run_folder(folder, key)
    for one in (where, *where.parent.glob(f"{key}-fold*")):
        try:
            if (one / "config.yaml").exists():
                with Run(one).locked():
                    pass
        except LockedRunError:
            return True
        except OSError:
            continue  # a study that may only be read, whose locks cannot be tried
    return False


def queue_name(folder: Path, study_id: str, jobs: Sequence[Job]) -> str:
    """What the queue of these jobs is called in its database: one for all workers of a command.

    Args:
        folder: of the study.
        study_id: of its plan; empty: its queues are called after the folder's last name.
        jobs: of the command, finished or not, in any order.
    """
    keys = " ".join(sorted(job.key for job in jobs))
    return f"claims-{study_id or folder.absolute().name}-{hashlib.sha256(keys.encode()).hexdigest()[:16]}"


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    *,
    fabric: Fabric,
    images: ImageCache,
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
    on, and what another worker began and lost is taken up by the next. Workers with the same jobs share a
    queue; what one with other jobs trains is known by the lock of its run, and left for later.

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
    queue = storage.study(queue_name(folder, study_id, jobs))
    left: dict[str, Job] = {}
    told = 0

    def run_one(trial: optuna.Trial) -> float:
        job = left.get(trial.user_attrs.get("run", ""))
        if job is None or not _is_left(folder, job.key) or is_trained_now(folder, job.key):
            return 0.0
        on_job(job, sum(_is_left(folder, key) for key in left))
        try:
            # Closed whatever is raised, or the run would stay locked as long as the error is kept.
            with closing(epochs_of(job, folder, fabric=fabric, images=images)) as epochs:
                for run, report in epochs:
                    on_epoch(run, report)
        except LockedRunError:
            pass  # begun elsewhere since we looked, and so left for later
        except torch.AcceleratorError:
            raise  # the device answers no run of this process any more
        except FAULTS_OF_A_RUN as error:
            record_failure(folder, job, failure_reason(error), lasting=isinstance(error, DivergedError))
            on_failure(job, failure_reason(error))
        return 1.0

    with storage_errors(storage.name), storage.lock(queue.study_name):
        for job in jobs:
            _forget_failure(folder, job.key)
    while left := {job.key: job for job in jobs if _is_left(folder, job.key)}:
        elsewhere = {key for key in left if is_trained_now(folder, key)}
        with storage_errors(storage.name), storage.lock(queue.study_name):
            _offer(queue, [job for key, job in left.items() if key not in elsewhere])
        for _ in work(storage, queue, run_one, wanted=0, waiting=waiting, poll_seconds=POLL_SECONDS):
            pass
        if len(elsewhere) == len(left):
            if told != len(left):
                told = len(left)
                waiting(told)
            time.sleep(POLL_SECONDS)


def epochs_of(
    job: Job, folder: Path, *, fabric: Fabric, images: ImageCache
) -> Generator[tuple[Run, EpochReport]]:
    """Each epoch of a job as it ends, with its run.

    Args:
        job: to be trained.
        folder: of the study.
        fabric: launched; one rank.
        images: of the runs.

    Raises:
        LockedRunError: (an InputError) another process trains it.
        InputError: (a ValueError) as `epochs_of_runs` does.
    """
    where = run_folder(folder, job.key)
    return epochs_of_runs(job.config, where, fabric=fabric, images=images.of(job.config))


def failure_reason(error: BaseException) -> str:
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
    if failure_file(folder, key).exists() and not is_lasting(folder, key):
        failure_file(folder, key).unlink()


def _is_left(folder: Path, key: str) -> bool:
    return state_of(folder, key) in ("begun", "not run")


def _offer(queue: optuna.Study, jobs: Iterable[Job]) -> None:
    """Let every job wait in the queue that does not wait or run there already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(queue)
    there = queue.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    offered = {one.user_attrs.get("run") for one in there}
    for job in jobs:
        if job.key not in offered:
            queue.enqueue_trial({}, user_attrs={"run": job.key, "title": job.title})
