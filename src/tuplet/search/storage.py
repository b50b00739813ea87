"""Where an index lies, a folder or object storage: opened, made, held by one process."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
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
"""The table that answers."""
REBUILD = "rebuild-"
"""How the names of tables begin that are made to take its place."""
_LOCK = ".lock"
_OURS = re.compile(rf"{re.escape(_LOCK)}|({TABLE}|{REBUILD}[0-9a-f]+)\.lance")


def is_remote(uri: Uri) -> bool:
    """Whether an index lies in object storage."""
    return "://" in uri


def open_table(uri: Uri, name: str = TABLE, session: lancedb.Session | None = None) -> Table | None:
    """A table of an index; None where there is none yet.

    Args:
        uri: where. LanceDB reads the credentials, the region and the endpoint of object storage from the
            environment: AWS_ACCESS_KEY_ID, AWS_ENDPOINT, AWS_ALLOW_HTTP and so on.
        name: of the table.
        session: what LanceDB remembers of the index from one opening to the next; None: nothing.

    Raises:
        InputError: it cannot be read.
    """
    if not is_remote(uri) and not Path(uri, f"{name}.lance").is_dir():
        return None  # to connect would make the folder
    with errors_in_a_line(f"cannot open the index {uri}"):
        database = lancedb.connect(uri, session=session)
        try:
            return database.open_table(name)
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise


def make_table(uri: Uri, rows: pyarrow.RecordBatchReader, name: str = TABLE) -> Table:
    """A table of these rows in place of what there was, in one step: a new version, or nothing.

    Args:
        uri: where.
        rows: read once, a batch at a time.
        name: of the table.

    Raises:
        InputError: it cannot be written.
    """
    wanted = "want room there, and leave to write; the same command then goes on"
    with errors_in_a_line(f"cannot write the index {uri}", wanted):
        mode = "create" if open_table(uri, name) is None else "overwrite"
        return lancedb.connect(uri).create_table(name, data=rows, mode=mode)


def no_rows(schema: pyarrow.Schema) -> pyarrow.RecordBatchReader:
    """Nothing to read, with these columns."""
    return pyarrow.RecordBatchReader.from_batches(schema, [])


def rebuild_names(uri: Uri) -> list[str]:
    """The names of the tables that are, or were, made to take the place of the one that answers."""
    with errors_in_a_line(f"cannot open the index {uri}"):
        return [name for name in lancedb.connect(uri).list_tables().tables if name.startswith(REBUILD)]


def drop_table(uri: Uri, name: str) -> None:
    """Nothing; there is no such table then. A drop that is killed leaves one without rows, or none.

    Raises:
        InputError: it cannot be written.
    """
    with errors_in_a_line(f"cannot write the index {uri}", "want leave to write"):
        database = lancedb.connect(uri)
        # Files go one by one: what remains of a table that was not emptied could look like a whole one.
        with suppress(RuntimeError, ValueError):  # it cannot be opened as it is
            emptied = make_table(uri, no_rows(pyarrow.schema([("nothing", pyarrow.bool_())])), name)
            emptied.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)
        database.drop_table(name)


@contextmanager
def locked(uri: Uri) -> Iterator[None]:
    """Hold an index in a folder for one writing process; the hold ends with the process, however it ends.

    What a process that was killed had written only in part is removed.

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
    others = sorted(one.name for one in folder.iterdir() if not _OURS.fullmatch(one.name))
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
        for torn in folder.glob("*.lance/**/.tmp*"):  # LanceDB's own cleaning passes them over
            torn.unlink(missing_ok=True)
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


MOST_STARS, MOST_ONES = 8, 64
"""Of a path's pattern: places with *, and signs that stand for one character."""

_PART = re.compile(r"(?P<wild>[*?]+)|\[(?P<inside>!?+.[^\]]*)\]|.", re.DOTALL)


def label_is(label: str) -> str:
    """The condition that a picture has this label."""
    return f"label = {quoted(label)}"


def path_like(pattern: str) -> str:
    """The condition that a picture's whole path fits a pattern of the shell.

    Args:
        pattern: * is any text, slashes too; ? one character; [abc] and [a-z] one of these, [!abc] one of the
            others; anything else is itself. One that begins with neither / nor * may begin anywhere behind a
            slash.

    Raises:
        InputError: it has so many * or ? that a search by it would take very long.
    """
    anywhere = "" if pattern.startswith(("/", "*")) else ".*/"
    return f"regexp_like(path, {quoted(f'(?s)^{anywhere}{_expression(pattern)}$')})"


def any_of(column: str, values: Collection[str]) -> str:
    """The condition that a column has one of some texts."""
    return f"{column} IN ({', '.join(map(quoted, sorted(values)))})" if values else "FALSE"


def all_of(*conditions: str | None) -> str | None:
    """All conditions together, each in brackets; None where there are none."""
    given = [f"({condition})" for condition in conditions if condition is not None]
    return " AND ".join(given) or None


def quoted(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def _expression(pattern: str) -> str:
    """The regular expression of a shell's pattern."""
    parts, stars, ones = [], 0, 0
    for found in _PART.finditer(pattern):
        wild, inside = found["wild"] or "", found["inside"]
        # In whatever order they stand, ? and * in a row are any text of so many characters or more.
        stars, ones = stars + ("*" in wild), ones + wild.count("?") + (inside is not None)
        if inside is not None:
            parts.append(_one_of(inside))
        elif wild:
            parts.append("." * wild.count("?") + (".*" if "*" in wild else ""))
        else:
            parts.append(re.escape(found[0]))
    if stars > MOST_STARS or ones > MOST_ONES:
        raise InputError(
            f"the path's pattern has {stars} * (in a row they count once) and {ones} ? or [...]; want at most"
            f" {MOST_STARS} and {MOST_ONES}"
        )
    return "".join(parts)


def _one_of(inside: str) -> str:
    negated = inside.startswith("!")
    members = re.sub(r"([\\\[\]^&~])", r"\\\1", inside[negated:])
    return f"[{'^' if negated else ''}{members}]"
