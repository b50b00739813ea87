"""The queue of trainings, in SQLite or PostgreSQL, from which any number of workers take one at a time.

Searches and claims runs share it. Each entry is a trial of Optuna's, which waits, runs, and then is complete,
pruned or failed. Two different locks keep workers apart:

- While a worker *takes* a trial, for milliseconds, it holds a lock on the queue. Otherwise two workers could
  both read that 59 of 60 trials are taken, and both take the sixtieth; and a sampler could not see what the
  others are trying.
- While a worker *trains*, for hours, it holds a lease: it writes a heartbeat every few seconds, and its trial
  belongs to it until three heartbeats are missing. A file lock would be simpler, but only the machine that
  holds it sees that its process has ended, and network file systems lose locks silently. A database lock
  ends with its connection, which may break for a moment while the training is in good health.

A worker whose heartbeats stop is lost: killed, switched off or disconnected. Its trial becomes failed, and a
new trial with the same settings waits for the next worker. If the lost worker comes back, such as a laptop
that slept, its result is refused: another worker has those settings already, and nothing is counted twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeAlias, final

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from tuplet.errors import InputError, RunFolderError, SettingsError, one_line

TrialFunction: TypeAlias = Callable[[optuna.Trial], float]
"""A function that runs a trial and returns its value."""

FAULTS_OF_A_RUN = (InputError, RuntimeError, MemoryError)
"""Errors that may end one training while others succeed. A full disk is none of them: it would end all."""

_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)


@final
class Queue:
    """Open a queue of trials, or create it.

    Args:
        url: sqlite:///FILE for workers on one machine, postgresql://USER:PASSWORD@HOST/DATABASE for many.
        name: the name of the queue in its database, which may hold several.
        heartbeat_seconds: time between two heartbeats, >= 1; after three times as long a worker is lost.
    Raises:
        SettingsError: the address is of another kind.
        RunFolderError: the database cannot be used.
    """

    def __init__(self, url: str, name: str, *, heartbeat_seconds: int = 20) -> None:
        self._url = with_driver(url)
        self.address = self._url.render_as_string(hide_password=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self._errors(), _without_experimental_warnings():
            self._database = _Database(
                self._url.render_as_string(hide_password=False),
                engine_kwargs=_engine_options(self._url),
                heartbeat_interval=heartbeat_seconds,
                grace_period=3 * heartbeat_seconds,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
            self.study = optuna.create_study(
                storage=self._database, study_name=name, direction="maximize", load_if_exists=True
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other workers from taking a trial in the meantime."""
        with self._errors(), self._lock():
            yield

    def offer(self, titles: Mapping[str, str]) -> None:
        """Add a trial for each run that does not wait or run in this queue already.

        Args:
            titles: what to call each run, by its key; the key becomes the trial's attribute "run".
        """
        with self.locked():
            self._fail_lost_trials()
            known = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
            offered = {trial.user_attrs.get("run") for trial in known}
            for key, title in titles.items():
                if key not in offered:
                    self.study.enqueue_trial({}, user_attrs={"run": key, "title": title})

    def work(
        self,
        function: TrialFunction,
        *,
        wanted: int = 0,
        prepare: Callable[[optuna.Study, int], None] = lambda study, number: None,
        waiting: Callable[[int], None] = lambda running: None,
        poll_seconds: float = 2.0,
    ) -> Iterator[FrozenTrial]:
        """Take trials one after another, and yield each that ended here, until all have ended everywhere.

        Waiting trials are taken first, whatever `wanted` is. A trial that Ctrl-C stops here waits again,
        under a new number with the same settings, as that of a lost worker does.

        Args:
            function: computes the value of a trial. An error that it raises ends the work.
            wanted: trials in all, over all workers, >= 0.
            prepare: called with the study and the next trial's number, under the lock, before it is taken.
            waiting: called with the number of trials that run elsewhere, when there is none left to take.
            poll_seconds: time between two looks at those, > 0.
        Raises: RunFolderError: the database cannot be used.
        """
        reported = 0
        while True:
            ended: list[FrozenTrial] = []
            with self._errors(), ExitStack() as lock:
                lock.enter_context(self._lock())
                states = self._states()
                free = states[TrialState.WAITING] > 0 or sum(states[state] for state in _COUNTED) < wanted
                if free:
                    prepare(self.study, sum(states.values()))
                    ended = self._run_one(function, lock.close)
            yield from ended
            if free:
                continue
            running = states[TrialState.RUNNING]
            if not running:
                return
            if running != reported:
                reported = running
                waiting(running)
            time.sleep(poll_seconds)

    def _run_one(self, function: TrialFunction, release: Callable[[], None]) -> list[FrozenTrial]:
        """Take one trial, release the lock and run it; return an empty list where the trial was lost."""
        taken: list[int] = []
        raised: list[BaseException] = []
        ended: list[FrozenTrial] = []

        def run(trial: optuna.Trial) -> float:
            # Optuna has entered the trial as running, so that other workers see it: the lock may go.
            release()
            taken.append(trial.number)
            trial.set_user_attr("first_number", first_number(trial))
            try:
                return function(trial)
            except BaseException as error:
                raised.append(error)
                raise

        try:
            with _without_experimental_warnings():
                self.study.optimize(run, n_trials=1, callbacks=[lambda _, trial: ended.append(trial)])
        except KeyboardInterrupt:
            if taken:
                self._retry(taken[0])
            raise
        except Exception:
            # Optuna raises an error of its own over that of the function when it cannot record the failure.
            if raised and not isinstance(raised[0], optuna.TrialPruned):
                raise raised[0] from None
            # A failed trial means that this worker's lease ran out: another has it, this value was refused.
            if not taken or self.study.get_trials(deepcopy=False)[taken[0]].state != TrialState.FAIL:
                raise
        return ended

    def _retry(self, number: int) -> None:
        """Let a stopped trial wait again, unless its lease ran out and it waits already."""
        with self._lock(), _without_experimental_warnings():
            trials = self.study.get_trials()
            if not any(number in trial.system_attrs.get("retry_history", []) for trial in trials):
                RetryHeartbeatStaleTrialCallback()(self.study, trials[number])

    def _states(self) -> Counter[TrialState]:
        self._fail_lost_trials()
        return Counter(trial.state for trial in self.study.get_trials(deepcopy=False))

    def _fail_lost_trials(self) -> None:
        # No server watches the leases, so each worker ends the expired ones whenever it reads the queue.
        with _without_experimental_warnings():
            fail_stale_trials(self.study)

    def _lock(self) -> AbstractContextManager[object]:
        # Both kinds end with their process, so a worker that is killed while it takes a trial blocks nobody.
        if self._url.get_backend_name() == "sqlite":
            return FileLock(f"{self._url.database}.lock")
        return self._advisory_lock()

    @contextlib.contextmanager
    def _advisory_lock(self) -> Iterator[None]:
        # PostgreSQL locks numbers of 64 bits; workers need no file system in common.
        digest = hashlib.sha256(self.study.study_name.encode()).digest()
        key = {"key": int.from_bytes(digest[:8], "big", signed=True)}
        with self._database.engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), key)
            try:
                yield
            finally:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), key)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise what goes wrong in the database as one line, without its password or its SQL."""
        try:
            yield
        except (SQLAlchemyError, StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) else error
            cause = cause.orig if isinstance(cause, DBAPIError) else cause
            raise RunFolderError(
                f"{self.address} cannot be used ({one_line(cause or error, None)}); want a database that"
                " answers, and then the same command again",
                subject=self.address,
            ) from error


def sqlite_url(file: Path) -> str:
    """Return the address of an SQLite file."""
    return f"sqlite:///{file}"


def first_number(trial: FrozenTrial | optuna.Trial) -> int:
    """Return the number under which the settings of a trial were first tried."""
    return int(trial.user_attrs.get("first_number", trial.number))


def failure_reason(error: BaseException) -> str:
    """Return why a run failed as one line; of errors that are not ours, their type and how they begin."""
    if isinstance(error, InputError):
        return one_line(error, None)
    words = one_line(error, 300)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


@final
class _Database(RDBStorage):
    def record_heartbeat(self, trial_id: int) -> None:
        # A heartbeat that is lost with a connection must not end the training; the next one may arrive.
        with contextlib.suppress(SQLAlchemyError, StorageInternalError):
            super().record_heartbeat(trial_id)


def with_driver(url: str) -> URL:
    """Return the address of a database with the driver that reaches it.

    Raises: SettingsError: the address is of another kind than SQLite's or PostgreSQL's.
    """
    try:
        parsed = make_url(url)
        return parsed.set(drivername=_DRIVERS[parsed.get_backend_name()])
    except (ArgumentError, KeyError):
        scheme = url.split("://")[0] if "://" in url else url
        raise SettingsError(
            f"--storage begins with {scheme!r}; want sqlite:///FILE or postgresql://USER@HOST/DATABASE",
            subject="--storage",
            given=scheme,
            wanted=tuple(_DRIVERS),
        ) from None


def _engine_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 60}}  # one writer at a time; the others wait this long
    # Hours may pass between two queries. With a new connection for each, none stays open or turns out dead.
    return {"poolclass": sqlalchemy.pool.NullPool}


@contextlib.contextmanager
def _without_experimental_warnings() -> Iterator[None]:
    # Heartbeats and retries are marked as experimental in Optuna; our tests hold them to what we need.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
