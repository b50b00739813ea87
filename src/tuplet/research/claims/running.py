"""The trainings of a claims run: each an ordinary run, taken from a queue that several workers may share."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import optuna
import torch
from lightning_fabric import Fabric

from tuplet.data.files import write_atomically
from tuplet.errors import one_line
from tuplet.research.claims.plan import Job
from tuplet.research.queue import FAULTS_OF_A_RUN, Queue, failure_reason, sqlite_url, with_driver
from tuplet.training.experiment import ImageCache, epochs_of_runs, fold_folder
from tuplet.training.run_folder import EpochReport, LockedRunError, Run
from tuplet.training.session import DivergedError

State: TypeAlias = Literal["finished", "failed", "begun", "not run"]

POLL_SECONDS = 2.0
"""Time between two checks whether another process has finished its training."""


def run_folder(folder: Path, key: str) -> Path:
    """Return the folder of a run, by its key, in the folder of its claims run."""
    return folder / "runs" / key


def failure_file(folder: Path, key: str) -> Path:
    """Return the file that says why a run failed; while it is there, one that diverged is not repeated."""
    return folder / "runs" / f"{key}.failed.json"


def state_of(folder: Path, key: str) -> State:
    """Return how far a run is."""
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
    """Return why a run failed, as one line."""
    return str(_failure(folder, key)["error"])


def is_lasting(folder: Path, key: str) -> bool:
    """Return whether a run that failed would fail again; otherwise the next command tries it once more."""
    return bool(_failure(folder, key)["lasting"])


def _failure(folder: Path, key: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(failure_file(folder, key).read_text())
    return tree


def record_failure(folder: Path, job: Job, error: str, *, lasting: bool) -> None:
    """Write down that a run cannot be finished, and why.

    Args:
        folder: of the claims run.
        job: that failed.
        error: in words.
        lasting: whether it would fail again, as one that diverged; other causes may be gone the next time.
    """
    tree = {"run": job.title, "error": one_line(error, None), "lasting": lasting}
    write_atomically(failure_file(folder, job.key), (json.dumps(tree, indent=1) + "\n").encode())


def is_trained_now(folder: Path, key: str) -> bool:
    """Return whether a process trains the run, or one of its folds, at this moment."""
    where = run_folder(folder, key)
    for of_fold in (where, *where.parent.glob(f"{key}-fold*")):
        try:
            if (of_fold / "config.yaml").exists():
                with Run(of_fold).locked():
                    pass
        except LockedRunError:
            return True
        except OSError:
            continue  # a folder that may only be read, whose locks cannot be tried
    return False


def queue_name(folder: Path, run_id: str, jobs: Sequence[Job]) -> str:
    """Return the name of the queue of these jobs in its database: the same for all workers of a command.

    Args:
        folder: of the claims run.
        run_id: of its plan; empty in old plans, whose queues have the folder's last name instead.
        jobs: of the command, finished or not, in any order.
    """
    keys = " ".join(sorted(job.key for job in jobs))
    return f"claims-{run_id or folder.absolute().name}-{hashlib.sha256(keys.encode()).hexdigest()[:16]}"


@final
@dataclass(frozen=True)
class Worker:
    """One process that trains the runs of a claims run; any number of others may do the same at once.

    Attributes:
        folder: of the claims run; workers on several machines share it.
        fabric: launched; one rank.
        images: of the runs.
        storage_url: address of the queue's database; None is an SQLite file in the folder.
        heartbeat_seconds: time between two heartbeats, >= 1.
        on_job: called as a job begins, with the number of jobs that are left, it included.
        on_epoch: called as each epoch ends.
        on_failure: called with a job that cannot be finished, such as one that diverged, and the reason.
        waiting: called with the number of jobs that run elsewhere, when there is none left to begin.
    Raises: SettingsError: `storage_url` is of a kind that no queue can be kept in.
    """

    folder: Path
    fabric: Fabric
    images: ImageCache
    storage_url: str | None = None
    heartbeat_seconds: int = 20
    on_job: Callable[[Job, int], None] = lambda job, left: None
    on_epoch: Callable[[Run, EpochReport], None] = lambda run, report: None
    on_failure: Callable[[Job, str], None] = lambda job, error: None
    waiting: Callable[[int], None] = lambda running: None

    def __post_init__(self) -> None:
        if self.storage_url is not None:
            with_driver(self.storage_url)  # before a plan is written that no queue could carry out

    def run(self, jobs: Sequence[Job], run_id: str = "") -> None:
        """Run jobs until each is finished or has failed, here or in another worker.

        A finished run is not repeated, a begun one continues, and a lost worker's run is taken by the next.
        Workers with the same jobs share a queue. Those with other jobs have other queues, and may want the
        same run: the lock of the run's folder shows that one trains it.

        Args:
            jobs: in the order wanted.
            run_id: of the plan.
        Raises: InputError: the storage cannot be used.
        """
        folder = self.folder
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        url = self.storage_url or sqlite_url((folder / "queue.db").absolute())
        queue = Queue(url, queue_name(folder, run_id, jobs), heartbeat_seconds=self.heartbeat_seconds)
        with queue.locked():
            for job in jobs:
                if failure_file(folder, job.key).exists() and not is_lasting(folder, job.key):
                    failure_file(folder, job.key).unlink()  # its cause may be gone
        reported = 0
        while left := {job.key: job for job in jobs if _is_left(folder, job.key)}:
            elsewhere = {key for key in left if is_trained_now(folder, key)}
            queue.offer({key: job.title for key, job in left.items() if key not in elsewhere})
            run_one = partial(self._run_one, left)
            for _ in queue.work(run_one, waiting=self.waiting, poll_seconds=POLL_SECONDS):
                pass
            if len(elsewhere) == len(left):
                if reported != len(left):
                    reported = len(left)
                    self.waiting(reported)
                time.sleep(POLL_SECONDS)

    def epochs_of(self, job: Job) -> Generator[tuple[Run, EpochReport]]:
        """Train a job and yield each epoch as it ends, with its run.

        Raises:
            LockedRunError: another process trains it.
            InputError: as `epochs_of_runs` does.
        """
        images = self.images.of(job.config)
        where = run_folder(self.folder, job.key)
        return epochs_of_runs(job.config, where, fabric=self.fabric, images=images)

    def _run_one(self, left: Mapping[str, Job], trial: optuna.Trial) -> float:
        job = left.get(trial.user_attrs.get("run", ""))
        if job is None or not _is_left(self.folder, job.key) or is_trained_now(self.folder, job.key):
            return 0.0
        self.on_job(job, sum(_is_left(self.folder, key) for key in left))
        try:
            # Closed whatever is raised, or the run would stay locked while the error is kept.
            with closing(self.epochs_of(job)) as epochs:
                for run, report in epochs:
                    self.on_epoch(run, report)
        except LockedRunError:
            pass  # begun elsewhere since the look above: left for later
        except torch.AcceleratorError:
            raise  # the device runs nothing more for this process
        except FAULTS_OF_A_RUN as error:
            reason = failure_reason(error)
            record_failure(self.folder, job, reason, lasting=isinstance(error, DivergedError))
            self.on_failure(job, reason)
        return 1.0


def _is_left(folder: Path, key: str) -> bool:
    return state_of(folder, key) in ("begun", "not run")
