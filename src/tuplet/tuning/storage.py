"""Where studies are kept, SQLite or PostgreSQL, and the lock under which a worker takes its next trial."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, final

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
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
