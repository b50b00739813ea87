"""Where an index lies, a folder or object storage: its tables, its lock, and SQL conditions on its rows."""

from __future__ import annotations

import os
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

from tuplet.errors import InputError, RequestError, SearchIndexError, one_line

Uri: TypeAlias = str
"""A folder, or s3://bucket/path, gs://bucket/path, az://container/path."""

TABLE = "pictures"
"""The table that is searched."""
REBUILD = "rebuild-"
"""How the names of tables begin that will replace it."""
_LOCK = ".lock"
_OURS = re.compile(rf"{re.escape(_LOCK)}|({TABLE}|{REBUILD}[0-9a-f]+)\.lance")


class LockedIndexError(SearchIndexError):
    """Another process is writing the index."""


def is_remote(uri: Uri) -> bool:
    """Return whether an index lies in object storage."""
    return "://" in uri


def open_table(uri: Uri, name: str = TABLE, session: lancedb.Session | None = None) -> Table | None:
    """Open a table of an index; return None where there is none yet.

    Args:
        uri: where. LanceDB reads the credentials, the region and the endpoint of object storage from the
            environment: AWS_ACCESS_KEY_ID, AWS_ENDPOINT, AWS_ALLOW_HTTP and so on.
        name: of the table.
        session: LanceDB's cache, kept from one opening to the next.

    """
    # In object storage the address or the keys may be wrong, and the index whole.
    wanted = "" if is_remote(uri) else "want it whole, or made again with tuplet index --model RUN --rebuild"
    with lance_errors(f"cannot open the index {uri}", wanted, subject=uri):
        if not is_remote(uri) and not Path(uri, f"{name}.lance").is_dir():
            return None  # connect would make the folder
        database = lancedb.connect(uri, session=session)
        try:
            return database.open_table(name)
        except ValueError:
            # Only a missing table is a ValueError here: the name is valid, and what cannot be read (a damaged
            # file, a missing bucket, no permission) is a RuntimeError or an OSError.
            return None


def is_damaged(uri: Uri, name: str = TABLE) -> bool:
    """Return whether a table in a folder, or what it keeps of its earlier versions, cannot be opened.

    LanceDB can neither replace such a table nor tidy it. False for object storage, which may only be out of
    reach.
    """
    if is_remote(uri):
        return False
    try:
        with lance_errors(f"cannot open the index {uri}", subject=uri):
            table = open_table(uri, name)
            if table is not None:
                table.list_versions()
    except SearchIndexError:
        return True
    return False


def make_table(uri: Uri, rows: pyarrow.RecordBatchReader, name: str = TABLE) -> Table:
    """Replace a table, or make it, in one step: there is a new version with all of the rows, or none.

    The rows are read once, a batch at a time.
    """
    wanted = "want free space and permission to write; the same command then goes on"
    with lance_errors(f"cannot write the index {uri}", wanted, subject=uri):
        mode = "create" if open_table(uri, name) is None else "overwrite"
        return lancedb.connect(uri).create_table(name, data=rows, mode=mode)


def make_new_table(uri: Uri, schema: pyarrow.Schema, name: str = TABLE) -> None:
    """Make an empty table; where there is one, which another process may have made meanwhile, it stays."""
    with lance_errors(f"cannot write the index {uri}", "want permission to write", subject=uri):
        try:
            lancedb.connect(uri).create_table(name, schema=schema, mode="create")
        except (RuntimeError, ValueError, OSError):
            if open_table(uri, name) is None:
                raise


def no_rows(schema: pyarrow.Schema) -> pyarrow.RecordBatchReader:
    """Return a reader of no rows with these columns."""
    return pyarrow.RecordBatchReader.from_batches(schema, [])


def rebuild_names(uri: Uri) -> list[str]:
    """Return the names of the tables of rebuilds that are running or were killed."""
    with lance_errors(f"cannot open the index {uri}", subject=uri):
        return [name for name in lancedb.connect(uri).list_tables().tables if name.startswith(REBUILD)]


def drop_table(uri: Uri, name: str) -> None:
    """Drop a table; if the process is killed meanwhile, a table without rows may be left."""
    with lance_errors(f"cannot write the index {uri}", "want permission to write", subject=uri):
        database = lancedb.connect(uri)
        # Files go one by one: the rest of a table that was not emptied first could look like a whole one.
        with suppress(RuntimeError, ValueError):  # it cannot be opened as it is
            emptied = make_table(uri, no_rows(pyarrow.schema([("nothing", pyarrow.bool_())])), name)
            emptied.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)
        database.drop_table(name)


@contextmanager
def locked(uri: Uri) -> Iterator[None]:
    """Lock an index in a folder for one writing process; the lock ends with the process, however it ends.

    Files that a killed process left half written are removed. Object storage has no lock: there LanceDB's
    commits put two writers in order.

    Raises:
        LockedIndexError: another process is writing it.
        SearchIndexError: the folder is used for something else, or cannot be written.
    """
    if is_remote(uri):
        yield
        return
    folder = Path(uri)
    if folder.exists() and not folder.is_dir():
        raise SearchIndexError(f"{uri} is a file; want a folder for the index", subject=uri)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise _not_writable("make", uri, error) from None
    others = [name for name in names if not _OURS.fullmatch(name)]
    if others and not (folder / f"{TABLE}.lance").is_dir():
        raise SearchIndexError(
            f"{uri} holds other things, such as {others[0]}; want a new folder", subject=uri, given=others[0]
        )
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise LockedIndexError(
            f"another process is writing the index {uri}; want one at a time: wait, or end it", subject=uri
        ) from None
    except OSError as error:
        raise _not_writable("write", uri, error) from None
    try:
        for torn in folder.glob("*.lance/**/.tmp*"):  # LanceDB's own cleaning leaves them
            torn.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _not_writable(verb: str, uri: Uri, error: OSError) -> SearchIndexError:
    return SearchIndexError(
        f"cannot {verb} the index {uri} ({error.strerror}); want another --index", subject=uri
    )


_PANICS = frozenset({"PanicException", "RustPanic"})
"""Names of what a panic in LanceDB raises, as some damaged files cause; the types cannot be imported."""


@contextmanager
def lance_errors(
    what: str, wanted: str = "", *, subject: str, kind: type[InputError] = SearchIndexError
) -> Iterator[None]:
    """Raise what LanceDB raises within it as an InputError of one line.

    Args:
        what: the beginning of the line: what cannot be done.
        wanted: the end of the line: what to do instead; may be empty.
        subject: see `InputError`.
        kind: of the error.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        known = isinstance(error, RuntimeError | ValueError | OSError)
        if not known and type(error).__name__ not in _PANICS:
            raise
        # Without the places in LanceDB's own source.
        reason = re.sub(r",? ?\S*/(?:\.cargo|rustc)/\S*", "", one_line(error, None))
        reason = re.sub(r"^lance error: ", "", reason).rstrip(". ")
        raise kind(
            f"{what} ({reason[:300]}){'; ' if wanted else ''}{wanted}", subject=subject, given=reason
        ) from error


MOST_STARS, MOST_SINGLES = 8, 64
"""The most places with *, and with ? or [...], in a path's pattern: the search takes longer with each."""

_PART = re.compile(r"(?P<wild>[*?]+)|\[(?P<inside>!?+.[^\]]*)\]|.", re.DOTALL)


def picture_condition(
    *, where: str | None = None, label: str | None = None, path: str | None = None
) -> str | None:
    """Return the SQL condition for pictures that meet all that is given; None where nothing is.

    Args:
        where: an SQL condition.
        label: a picture's label.
        path: a pattern for its whole path, see `path_like`.
    """
    return all_of(
        where,
        None if label is None else f"label = {quoted(label)}",
        None if path is None else path_like(path),
    )


def path_like(pattern: str) -> str:
    """Return the condition that a picture's whole path matches a shell pattern.

    Args:
        pattern: * is any text, slashes too; ? one character; [abc] and [a-z] one of these, [!abc] one of the
            others; anything else is itself. One that begins with neither / nor * may begin after any slash.

    Raises:
        RequestError: it has so many * or ? that a search by it would take very long.
    """
    anywhere = "" if pattern.startswith(("/", "*")) else ".*/"
    return f"regexp_like(path, {quoted(f'(?s)^{anywhere}{_expression(pattern)}$')})"


def any_of(column: str, values: Collection[str]) -> str:
    """Return the condition that a column has one of some texts."""
    return f"{column} IN ({', '.join(map(quoted, sorted(values)))})" if values else "FALSE"


def all_of(*conditions: str | None) -> str | None:
    """Join conditions with AND, each in brackets; return None where all are None."""
    given = [f"({condition})" for condition in conditions if condition is not None]
    return " AND ".join(given) or None


def stored_text(name: str) -> str:
    """Return a path or name as text that can be stored: bytes that are not UTF-8 in hexadecimal."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def quoted(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _expression(pattern: str) -> str:
    """Translate a shell pattern into a regular expression."""
    parts, stars, singles = [], 0, 0
    for match in _PART.finditer(pattern):
        wild, inside = match["wild"] or "", match["inside"]
        # In whatever order they stand, ? and * in a row are any text of so many characters or more.
        stars, singles = stars + ("*" in wild), singles + wild.count("?") + (inside is not None)
        if inside is not None:
            parts.append(_character_class(inside))
        elif wild:
            parts.append("." * wild.count("?") + (".*" if "*" in wild else ""))
        else:
            parts.append(re.escape(match[0]))
    if stars > MOST_STARS or singles > MOST_SINGLES:
        raise RequestError(
            f"the path's pattern has {stars} * (in a row they count once) and {singles} ? or [...]; want at"
            f" most {MOST_STARS} and {MOST_SINGLES}",
            subject="path",
            given=(stars, singles),
            wanted=(MOST_STARS, MOST_SINGLES),
        )
    return "".join(parts)


def _character_class(inside: str) -> str:
    negated = inside.startswith("!")
    members = re.sub(r"([\\\[\]^&~])", r"\\\1", inside[negated:])
    return f"[{'^' if negated else ''}{members}]"
