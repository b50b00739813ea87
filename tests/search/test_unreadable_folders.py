from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from picture_folder import counts, draw

from tuplet.data.pixels import UnreadableImageError
from tuplet.errors import DataError
from tuplet.inference.encoder import PictureEmbedder
from tuplet.search import embedding
from tuplet.search.index import ImageIndex
from tuplet.search.indexing import index_pictures


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Numbers of the errors with which folders are listed and paths are looked at, by path; none so far."""
    errors: dict[str, int] = {}
    scandir, stat = os.scandir, Path.stat

    def fail(path: object) -> None:
        number = errors.get(str(path))
        if number is not None:
            raise OSError(number, os.strerror(number), str(path))

    def listing(path: Any = ".") -> Any:
        fail(path)
        return scandir(path)

    def looking(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        fail(self)
        return stat(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "scandir", listing)
    monkeypatch.setattr(Path, "stat", looking)
    return errors


@pytest.mark.parametrize("only", [False, True])
def test_what_cannot_be_looked_at_is_listed_and_stays(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path, failing: dict[str, int], *, only: bool
) -> None:
    uri = str(tmp_path / "index")
    for name in (b"deep", b"\xff"):
        draw(photos / "class 0" / os.fsdecode(name), range(4, 5), range(2))
    index_pictures(uri, [photos], embedder)
    before = set(ImageIndex(uri).pictures())
    forbidden, broken = photos / "class 0", photos / "class 2" / "3.png"
    (photos / "class 1" / "0.png").unlink()
    draw(photos, range(3, 4), range(1))
    failing |= {str(forbidden): errno.EACCES, str(broken): errno.EIO}
    report = index_pictures(uri, [photos], embedder, only=only)
    assert report.unreadable == (
        f"{forbidden}: cannot list it (Permission denied)",
        f"{broken}: Input/output error",
    )
    # Of class 0, which has eight, none is gone; of class 1 one is; class 3 is new.
    assert (report.kept, report.added, report.dropped, report.unchanged, report.others) == (9, 1, 1, 6, 0)
    after = set(ImageIndex(uri).pictures())
    assert {one.path for one in before - after} == {str(photos / "class 1" / "0.png")}
    assert {one.path for one in after - before} == {str(photos / "class 3" / "0.png")}
    assert report.total == len(after) == 16
    failing.clear()
    assert counts(index_pictures(uri, [photos], embedder)) == (0, 0, 0, 16, 0, 0)
    shutil.rmtree(forbidden)
    assert counts(index_pictures(uri, [photos], embedder)) == (0, 0, 0, 8, 8, 0)


def test_a_file_that_the_system_refuses_to_read_stays(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "index")
    index_pictures(uri, [photos], embedder)
    forbidden, half_read, truncated = (photos / "class 0" / f"{number}.png" for number in range(3))
    for file in (forbidden, half_read, truncated):
        file.write_bytes(file.read_bytes()[:60])  # of another size: they have to be read
    before = set(ImageIndex(uri).pictures())
    content_hash, decode_pixels = embedding.content_hash, embedding.decode_pixels

    def hashed(file: Path) -> str:
        if file == forbidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return content_hash(file)

    def decoded(file: Path, *, min_side: int) -> Any:
        if file == half_read:
            cause = OSError(errno.EIO, os.strerror(errno.EIO))
            raise UnreadableImageError("cannot read", file, "Input/output error") from cause
        return decode_pixels(file, min_side=min_side)

    monkeypatch.setattr(embedding, "content_hash", hashed)
    monkeypatch.setattr(embedding, "decode_pixels", decoded)
    report = index_pictures(uri, [photos], embedder)
    assert (report.kept, report.dropped, report.unchanged, report.total) == (2, 1, 9, 11)
    assert report.unreadable[:2] == (f"{forbidden}: Permission denied", f"{half_read}: Input/output error")
    after = set(ImageIndex(uri).pictures())
    assert {one.path for one in before - after} == {str(truncated)}
    assert not after - before


def test_folders_that_only_begin_like_one_that_cannot_be_listed(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path, failing: dict[str, int]
) -> None:
    uri = str(tmp_path / "index")
    draw(photos / "class 1 and more", range(1), range(2))
    index_pictures(uri, [photos], embedder)
    shutil.rmtree(photos / "class 1 and more")
    failing[str(photos / "class 1")] = errno.ESTALE
    report = index_pictures(uri, [photos], embedder)
    assert (report.kept, report.dropped, report.unchanged) == (4, 2, 8)


def test_a_rebuild_leaves_out_what_cannot_be_looked_at(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path, failing: dict[str, int]
) -> None:
    uri = str(tmp_path / "index")
    index_pictures(uri, [photos], embedder)
    failing[str(photos / "class 1")] = errno.EACCES
    report = index_pictures(uri, [photos], embedder, rebuild=True)
    assert counts(report) == (8, 0, 0, 0, 0, 0)
    assert report.unreadable == (f"{photos / 'class 1'}: cannot list it (Permission denied)",)


def test_links_to_a_drive_that_does_not_answer(
    photos: Path,
    embedder: PictureEmbedder,
    tmp_path: Path,
    failing: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, drive = str(tmp_path / "index"), draw(tmp_path / "drive", range(5, 6), range(2)) / "class 5"
    (photos / "drive").symlink_to(drive)
    (photos / "class 0" / "linked.png").symlink_to(drive / "0.png")
    index_pictures(uri, [photos], embedder)
    links = [str(photos / "drive"), str(photos / "class 0" / "linked.png")]
    listing = os.scandir

    class Entry:
        """One whose link cannot be followed."""

        def __init__(self, path: str) -> None:
            self.path, self.name = path, Path(path).name

        def is_dir(self) -> bool:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)

        is_file = is_dir

        def is_symlink(self) -> bool:
            return self.name == "linked.png"

    def with_entries(path: Any = ".") -> Any:
        with listing(path) as entries:
            found = [Entry(one.path) if one.path in links else one for one in entries]
        return contextlib.nullcontext(found)

    failing |= dict.fromkeys(links, errno.EIO)
    monkeypatch.setattr(os, "scandir", with_entries)
    report = index_pictures(uri, [photos], embedder)
    assert (report.kept, report.dropped, report.unchanged) == (3, 0, 12)
    assert report.unreadable == (
        f"{links[0]}: cannot list it (Input/output error)",
        f"{links[1]}: Input/output error",
    )


@pytest.mark.parametrize("options", [{}, {"only": True}, {"rebuild": True}])
def test_a_folder_that_vanished_or_is_empty_drops_nothing(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path, failing: dict[str, int], options: dict[str, bool]
) -> None:
    uri, drive = str(tmp_path / "index"), draw(tmp_path / "drive", range(2), range(2))
    index_pictures(uri, [photos, drive], embedder)
    version = ImageIndex(uri).version
    for trouble in ("unreadable", "empty", "missing"):
        if trouble == "unreadable":
            failing[str(drive)] = errno.EIO
        elif trouble == "empty":
            drive.rename(tmp_path / "away")
            drive.mkdir()
        else:
            drive.rmdir()
        for folders in ([drive], [photos, drive]):
            with pytest.raises(DataError) as refused:
                index_pictures(uri, folders, embedder, **options)  # type: ignore[arg-type]
            assert refused.value.subject == str(drive)
        failing.clear()
    assert (ImageIndex(uri).version, ImageIndex(uri).count()) == (version, 16)
    (tmp_path / "away").rename(drive)
    assert counts(index_pictures(uri, [photos, drive], embedder)) == (0, 0, 0, 16, 0, 0)


def test_a_folder_of_nothing_but_what_cannot_be_listed(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path, failing: dict[str, int]
) -> None:
    for forbidden, subject in (
        ({str(photos / f"class {label}"): errno.EACCES for label in range(3)}, photos / "class 0"),
        ({str(photos): errno.EACCES}, photos),
    ):
        failing |= forbidden
        with pytest.raises(DataError) as refused:
            index_pictures(str(tmp_path / "index"), [photos], embedder)
        assert refused.value.subject == str(subject)
