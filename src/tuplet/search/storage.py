"""Where an index lies, a folder or object storage: opened, made, held by one process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import lancedb
import pyarrow
from filelock import FileLock, Timeout
from lancedb.table import Table

from tuplet.errors import InputError

Uri: TypeAlias = str
"""A folder, or s3://bucket/path, gs://bucket/path, az://container/path."""

TABLE = "pictures"
_LOCK = ".lock"


def is_remote(uri: Uri) -> bool:
    """Whether an index lies in object storage."""
    return "://" in uri


def open_table(uri: Uri) -> Table | None:
    """The table of an index; None where there is no index yet.

    Args:
        uri: where. LanceDB reads the credentials, the region and the endpoint of object storage from the
            environment: AWS_ACCESS_KEY_ID, AWS_ENDPOINT, AWS_ALLOW_HTTP and so on.

    Raises:
        InputError: it cannot be read.
    """
    if not is_remote(uri) and not Path(uri, f"{TABLE}.lance").is_dir():
        return None  # to connect would make the folder
    with errors_in_a_line(f"cannot open the index {uri}"):
        database = lancedb.connect(uri)
        try:
            return database.open_table(TABLE)
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise


def make_table(uri: Uri, schema: pyarrow.Schema) -> Table:
    """An empty table in place of what there was, in one step.

    Raises:
        InputError: it cannot be written.
    """
    with errors_in_a_line(f"cannot write the index {uri}", "want room there, and leave to write"):
        mode = "create" if open_table(uri) is None else "overwrite"
        return lancedb.connect(uri).create_table(TABLE, schema=schema, mode=mode)


@contextmanager
def locked(uri: Uri) -> Iterator[None]:
    """Hold an index in a folder for one writing process; the hold ends with the process, however it ends.

    In object storage nothing is held: there LanceDB's commits put two writers in order.

    Raises:
        InputError: another process writes it, or it is a folder of other things.
    """
    if is_remote(uri):
        yield
        return
    folder = Path(uri)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{uri} is a file; want a folder for the index")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the index {uri} ({error.strerror}); want another --index") from None
    others = sorted(one.name for one in folder.iterdir() if one.name not in (_LOCK, f"{TABLE}.lance"))
    if others and not (folder / f"{TABLE}.lance").is_dir():
        raise InputError(f"{uri} holds other things, such as {others[0]}; want a new folder")
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another process is writing the index {uri}; want one at a time: wait, or end it"
        ) from None
    except OSError as error:
        raise InputError(f"cannot write the index {uri} ({error.strerror}); want another --index") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def errors_in_a_line(what: str, wanted: str = "") -> Iterator[None]:
    """What LanceDB raises within it becomes an InputError of one line.

    Args:
        what: cannot be done.
        wanted: what to do instead; may be empty.
    """
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        said = re.sub(r",? ?\S*/(?:\.cargo|rustc)/\S*", "", " ".join(str(error).split()))
        said = re.sub(r"^lance error: ", "", said).rstrip(". ")
        raise InputError(f"{what} ({said[:300]}){'; ' if wanted else ''}{wanted}") from error
