"""Where studies are kept, SQLite or PostgreSQL, and the lock under which a worker takes its next trial."""

from __future__ import annotations

import contextlib
import hashlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, final

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from tuplet.errors import InputError

_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}


def sqlite_url(file: Path) -> str:
    """The address of an SQLite file."""
    return f"sqlite:///{file}"


@final
class Storage:
    """A database of studies, which any number of workers share.

    A worker says every few seconds that it is alive. A trial whose worker was silent for three times as long
    has failed, and waits to be tried again with the same settings.

    Args:
        url: sqlite:///FILE for workers of one machine, postgresql://USER:PASSWORD@HOST/DATABASE for many.
        heartbeat_seconds: between two signs of life, >= 1.

    Raises:
        InputError: (a ValueError) another kind of address, or a database that cannot be used.
    """

    def __init__(self, url: str, *, heartbeat_seconds: int = 20) -> None:
        self._url = _with_driver(url)
        self.name = self._url.render_as_string(hide_password=True)
        with storage_errors(self.name), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.optuna_storage = _Database(
                self._url.render_as_string(hide_password=False),
                engine_kwargs=_engine_options(self._url),
                heartbeat_interval=heartbeat_seconds,
                grace_period=3 * heartbeat_seconds,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )

    def study(self, name: str) -> optuna.Study:
        """The study of that name, which larger values are better in; a new one where there is none."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with storage_errors(self.name):
            return optuna.create_study(
                storage=self.optuna_storage, study_name=name, direction="maximize", load_if_exists=True
            )

    def lock(self, name: str) -> AbstractContextManager[object]:
        """What one worker of a study holds at a time, while it takes a trial; ends with the process."""
        if self._url.get_backend_name() == "sqlite":
            return FileLock(f"{self._url.database}.lock")
        return self._advisory_lock(_key(name))

    @contextlib.contextmanager
    def _advisory_lock(self, key: int) -> Iterator[None]:
        with self.optuna_storage.engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
            try:
                yield
            finally:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": key})


@contextlib.contextmanager
def storage_errors(name: str) -> Iterator[None]:
    """What goes wrong inside with a database, as one line.

    Args:
        name: of the storage, without its password.

    Raises:
        InputError: (a ValueError) what went wrong; whatever was running is tried again.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = " ".join(str(error.__cause__ or error).split("[SQL")[0].split())
        raise InputError(
            f"{name} cannot be used ({cause}); want a database that answers, and then the same command again"
        ) from error


@final
class _Database(RDBStorage):
    def record_heartbeat(self, trial_id: int) -> None:
        # A sign of life that is lost with a connection must not end the training; the next may arrive.
        with contextlib.suppress(SQLAlchemyError, StorageInternalError):
            super().record_heartbeat(trial_id)


def _with_driver(url: str) -> URL:
    try:
        parsed = make_url(url)
        return parsed.set(drivername=_DRIVERS[parsed.get_backend_name()])
    except (sqlalchemy.exc.ArgumentError, KeyError):
        scheme = url.split("://")[0] if "://" in url else url
        raise InputError(
            f"--storage begins with {scheme!r}; want sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from None


def _engine_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 60}}
    # A connection for each question: hours lie between two, and none is left open or found dead.
    return {"poolclass": sqlalchemy.pool.NullPool}


def _key(name: str) -> int:
    """A number of PostgreSQL's own size for a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


Job = Callable[[optuna.Trial], float]

_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)


def work(
    storage: Storage,
    study: optuna.Study,
    job: Job,
    *,
    wanted: int,
    prepare: Callable[[optuna.Study, int], None] = lambda study, number: None,
    waiting: Callable[[int], None] = lambda running: None,
    poll_seconds: float = 2.0,
) -> Iterator[FrozenTrial]:
    """Each trial that ended in this process, until as many as are wanted have ended anywhere.

    Trials that wait in the study are taken first, whatever `wanted` says. A trial that was stopped, here by
    Ctrl-C or elsewhere by the loss of its worker, is tried again under a new number with the same settings.

    Args:
        storage: of the study.
        study: which other workers may share.
        job: from a trial to its value. What it raises ends the work.
        wanted: trials in all, >= 0.
        prepare: called with the study and the next trial's number before it is taken; no other worker takes
            one meanwhile.
        waiting: called with the number of trials that run elsewhere, when no other is left to take.
        poll_seconds: between two looks whether those have ended, > 0.

    Raises:
        InputError: (a ValueError) the storage cannot be reached.
    """
    told = 0
    while True:
        ended: list[FrozenTrial] = []
        with storage_errors(storage.name), ExitStack() as lock:
            lock.enter_context(storage.lock(study.study_name))
            states = _states(study)
            free = states[TrialState.WAITING] > 0 or sum(states[one] for one in _COUNTED) < wanted
            if free:
                prepare(study, sum(states.values()))
                ended = _one_trial(storage, study, job, lock.close)
        yield from ended
        if free:
            continue
        running = states[TrialState.RUNNING]
        if not running:
            return
        if running != told:
            told = running
            waiting(running)
        time.sleep(poll_seconds)


def first_number(trial: FrozenTrial | optuna.Trial) -> int:
    """The number under which a trial's settings were first tried."""
    return int(trial.user_attrs.get("first_number", trial.number))


def _states(study: optuna.Study) -> Counter[TrialState]:
    with _without_experimental_warnings():
        fail_stale_trials(study)
    return Counter(trial.state for trial in study.get_trials(deepcopy=False))


def _one_trial(
    storage: Storage, study: optuna.Study, job: Job, release: Callable[[], None]
) -> list[FrozenTrial]:
    """Take one trial and do it, the lock let go as soon as it is taken; empty where it was lost meanwhile."""
    taken: list[int] = []
    raised: list[BaseException] = []
    ended: list[FrozenTrial] = []

    def released(trial: optuna.Trial) -> float:
        release()
        taken.append(trial.number)
        trial.set_user_attr("first_number", first_number(trial))
        try:
            return job(trial)
        except BaseException as error:
            raised.append(error)
            raise

    try:
        with _without_experimental_warnings():
            study.optimize(released, n_trials=1, callbacks=[lambda _, trial: ended.append(trial)])
    except KeyboardInterrupt:
        if taken:
            _try_again(storage, study, taken[0])
        raise
    except Exception:
        if raised and not isinstance(raised[0], optuna.TrialPruned):
            raise raised[0] from None
        # A worker that was silent for too long: its trial was given to another, and its value is refused.
        if not taken or study.get_trials(deepcopy=False)[taken[0]].state != TrialState.FAIL:
            raise
    return ended


def _try_again(storage: Storage, study: optuna.Study, number: int) -> None:
    """Let the trial wait for the next worker, unless it does already."""
    with storage.lock(study.study_name), _without_experimental_warnings():
        trials = study.get_trials()
        if not any(number in trial.system_attrs.get("retry_history", []) for trial in trials):
            RetryHeartbeatStaleTrialCallback()(study, trials[number])


@contextlib.contextmanager
def _without_experimental_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
