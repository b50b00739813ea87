from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi import HTTPException
from live_server import saved

from tuplet.search.index import IndexedPicture, picture_id
from tuplet.search.storage import stored_text
from tuplet.serve.files import MOST_BYTES, picture_file

SIDE = 400  # a file of several parts


def indexed(file: Path) -> IndexedPicture:
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:32]
    return IndexedPicture("0" * 32, str(file), None, len(content), datetime.now(UTC), digest)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "noise.bmp"
    path.write_bytes(saved("BMP", (SIDE, SIDE)))
    return path


def replace_in_place(file: Path, content: bytes) -> None:
    """The same file, of other bytes; and its times have changed, whose clock ticks slowly."""
    before = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == before:
        time.sleep(0.002)
        with file.open("r+b") as opened:
            opened.write(content)


@pytest.mark.parametrize(
    ("name", "kind", "media_type"),
    [
        ("a.png", "PNG", "image/png"),
        ("a.png", "BMP", "image/bmp"),
        ("a", "JPEG", "image/jpeg"),
        ("a.jpg", "TIFF", "image/tiff"),
    ],
)
def test_the_bytes_are_those_of_the_file(tmp_path: Path, name: str, kind: str, media_type: str) -> None:
    for side in (30, SIDE):
        (tmp_path / name).write_bytes(saved(kind, (side, side)))
        found = picture_file(indexed(tmp_path / name))
        assert b"".join(found.parts(0, found.size)) == (tmp_path / name).read_bytes()
        assert (found.size, found.media_type) == ((tmp_path / name).stat().st_size, media_type)


@contextmanager
def gone() -> Iterator[None]:
    with pytest.raises(HTTPException) as error:
        yield
    assert error.value.status_code == 410


def test_what_was_not_hashed_is_not_sent(file: Path) -> None:
    picture = indexed(file)
    begun, waiting = (picture_file(picture).parts(0, picture.size) for _ in range(2))
    assert file.read_bytes().startswith(next(begun))
    replace_in_place(file, b"secret" * (picture.size // 6))
    for parts in (begun, waiting):
        with gone():
            next(parts)
    with gone():
        picture_file(picture)


def test_a_file_that_goes_away_or_grows_ends(file: Path) -> None:
    picture = indexed(file)
    changes: list[Callable[[], None]] = [
        file.unlink,
        lambda: os.truncate(file, 70_000),
        lambda: os.truncate(file, 1 << 20),
    ]
    for change in changes:
        file.write_bytes(saved("BMP", (SIDE, SIDE)))
        parts = picture_file(picture).parts(0, picture.size)
        next(parts)
        change()
        with gone():
            next(parts)
        with gone():
            picture_file(picture)


def test_files_that_are_too_large_are_not_opened(file: Path) -> None:
    too_large = IndexedPicture("0" * 32, str(file), None, MOST_BYTES + 1, datetime.now(UTC), "0" * 32)
    with pytest.raises(HTTPException) as refused:
        picture_file(too_large)
    assert refused.value.status_code == 413


@pytest.mark.parametrize("name", [b"\xff \xe9.png", rb"\xff.png", "\u00e9.png".encode()])
def test_names_that_are_not_utf_8_and_those_that_look_like_them(name: bytes, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(name)
    file.write_bytes(saved("PNG"))
    stored = replace(indexed(file), path=stored_text(str(file)), id=picture_id(str(file)))
    found = picture_file(stored)
    assert b"".join(found.parts(0, found.size)) == file.read_bytes()
