"""Fetch an archive from the network into a folder: resume, check and unpack it safely."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeAlias

from tuplet.errors import DataError, one_line, unusable

Bar: TypeAlias = Callable[[str, int, int | None], None]
"""Shows progress: what is being done, how much of it is done, and how much there is, if known."""

_BLOCK = 1 << 20
_SECONDS = 60.0
_TRIES = 5
_PAUSE = 1.0


@dataclass(frozen=True)
class Archive:
    """A file that unpacks into one folder.

    Attributes:
        url: where it is, http or https; its last part is the name of the file, .zip or .tgz.
        md5: its checksum as published, in hexadecimal.
        folder: the folder inside that is wanted.
    """

    url: str
    md5: str
    folder: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return PurePosixPath(self.url).name


def fetch(archive: Archive, to: Path, bar: Bar | None = None) -> Path:
    """Download an archive and unpack its folder below `to`; return the folder.

    Where the folder is there, nothing is done. An archive that lies in `to` already is used, and a partial
    download is resumed. The archive is removed once it is unpacked.

    Args:
        archive: what to fetch.
        to: folder that it goes to; it is made if need be.
        bar: called with the progress.

    Raises:
        DataError: the server cannot be reached, does not have it, or sent something else, or the archive
            cannot be unpacked safely; a later call resumes.
    """
    final = to / archive.folder
    if final.exists():
        return final
    bar = bar or (lambda what, done, whole: None)
    to.mkdir(parents=True, exist_ok=True)
    file = to / archive.name
    if not file.exists():
        part = to / f"{archive.name}.part"
        _download(archive, part, bar)
        _require_checksum(part, archive, bar)
        part.replace(file)
    else:
        _require_checksum(file, archive, bar)
    _unpack(file, archive.folder, final, bar)
    file.unlink()
    return final


def _download(archive: Archive, part: Path, bar: Bar) -> None:
    """Download the whole file to `part`, resuming from what is there."""
    # Some servers send the file from its start again: only what exceeds every earlier try is progress.
    furthest, failures = _size(part), 0
    while True:
        try:
            if _request(archive, part, bar):
                return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            problem = f"answers {error.code} {error.reason}"
            raise unusable(archive.url, problem, f"a server that has it, {_by_hand(archive, part)}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = one_line(getattr(error, "reason", error), None) or type(error).__name__
        failures = 0 if _size(part) > furthest else failures + 1
        furthest = max(furthest, _size(part))
        if failures == _TRIES or not _size(part):
            wanted = f"a network that reaches it, {_by_hand(archive, part)}"
            if _size(part):
                wanted = f"the same command again: {_size(part):,} bytes are in {part}, and it resumes there"
            raise unusable(archive.url, f"cannot be downloaded ({reason})", wanted)
        time.sleep(_PAUSE * failures)


def _request(archive: Archive, part: Path, bar: Bar) -> bool:
    """Return whether the whole file is in `part` after one request for what it lacks."""
    start = _size(part)
    request = urllib.request.Request(archive.url, headers={"User-Agent": "tuplet"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        answer = urllib.request.urlopen(request, timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # nothing is left to send: the checksum will tell whether it is whole
        raise
    with answer:
        is_rest = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if is_rest and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            problem = "sent another part of the file than was asked for"
            raise unusable(archive.url, problem, f"{part} removed, to start again")
        done = start if is_rest else 0
        length = answer.headers.get("Content-Length")
        whole = None if length is None else done + int(length)
        with part.open("ab" if is_rest else "wb") as stream:
            while block := answer.read(_BLOCK):
                stream.write(block)
                done += len(block)
                bar(f"getting {archive.name}", done, whole)
    return whole is None or done == whole


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _by_hand(archive: Archive, part: Path) -> str:
    return f"or put {archive.name} (md5 {archive.md5}) into {part.parent} by hand and give the same command"


def _require_checksum(file: Path, archive: Archive, bar: Bar) -> None:
    """Raise DataError, and remove a file downloaded here, where it is not the one published."""
    digest, whole = hashlib.md5(usedforsecurity=False), _size(file)
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(_BLOCK), b""):
            digest.update(block)
            bar(f"checking {archive.name}", stream.tell(), whole)
    if digest.hexdigest() == archive.md5:
        return
    if file.suffix == ".part":
        file.unlink()
        what = f"what {archive.url} sent ({whole:,} bytes)"
        remedy = "it was damaged on its way or has been replaced, and is removed: give the same command again"
    else:
        what, remedy = f"{file} ({whole:,} bytes)", "it is not whole or another file: remove it"
    raise unusable(what, f"has md5 {digest.hexdigest()}", f"{archive.md5}; {remedy}")


def _unpack(file: Path, folder: str, final: Path, bar: Bar) -> None:
    """Unpack the folder of this name in the archive to `final`."""
    # Under another name until it is whole: `final` is never half a data set.
    partial = final.with_name(f"{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        if zipfile.is_zipfile(file):
            _unzip(file, partial, bar)
        else:
            _untar(file, partial, bar)
        if not (partial / folder).is_dir():
            held = ", ".join(sorted(entry.name for entry in partial.iterdir())[:5]) or "nothing"
            raise unusable(file, f"holds {held} and no folder {folder}", "the official archive")
        (partial / folder).replace(final)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        reason = one_line(error, None) or type(error).__name__
        raise unusable(file, f"cannot be unpacked ({reason})", "a whole .zip or .tgz: remove it") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _untar(file: Path, folder: Path, bar: Bar) -> None:
    with tarfile.open(file) as archive:
        for count, member in enumerate(archive, 1):
            try:
                archive.extract(member, folder, filter="data")
            except tarfile.FilterError:
                raise _leaves(file, member.name) from None
            bar(f"unpacking {file.name}", count, None)


def _unzip(file: Path, folder: Path, bar: Bar) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        for member in members:
            paths = PurePosixPath(member.filename), PureWindowsPath(member.filename)
            leaves = any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)
            if leaves or stat.S_ISLNK(member.external_attr >> 16):
                raise _leaves(file, member.filename)
        for count, member in enumerate(members, 1):
            archive.extract(member, folder)
            bar(f"unpacking {file.name}", count, len(members))


def _leaves(file: Path, member: str) -> DataError:
    problem = f"has a member {member!r} that is a link or leads out of the folder"
    return unusable(file, problem, "the official archive: remove this one, of which nothing is kept")
