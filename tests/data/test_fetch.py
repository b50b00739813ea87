from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

import tuplet.data.fetch
from tuplet.data.fetch import Archive, fetch
from tuplet.errors import DataError

NOISE = np.random.default_rng(0).bytes(300_000)


@dataclass
class Server:
    """What the server has, how it behaves, and the Range that each request asked for."""

    url: str = ""
    content: bytes = b""
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    status: int = 200
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            if state.status != 200:
                self.send_error(state.status)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and state.ranges else 0
            body = state.content[start:]
            if start and not body:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}"
                )
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cut_after.pop(0)] if state.cut_after else body)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    monkeypatch.setattr(tuplet.data.fetch, "_PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def tar_of(
    members: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] = lambda member: None
) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            change(member)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def become(member: tarfile.TarInfo, **of: object) -> None:
    for name, value in of.items():
        setattr(member, name, value)


def zip_of(members: dict[str, bytes], mode: int = 0o100644) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, content)
    return stream.getvalue()


def served(server: Server, content: bytes, name: str = "birds.tgz") -> Archive:
    server.content = content
    return Archive(f"{server.url}/files/{name}", hashlib.md5(content).hexdigest(), "birds")


def refused(archive: Archive, to: Path) -> DataError:
    with pytest.raises(DataError) as error:
        fetch(archive, to)
    return error.value


BIRDS = {"birds/images/a b.jpg": NOISE, "birds/._x": b"", "beside.txt": b"left out"}


@pytest.mark.parametrize(
    ("name", "content"),
    [("birds.tgz", tar_of(BIRDS)), ("birds.zip", zip_of(BIRDS))],
    ids=["tgz", "zip"],
)
def test_the_folder_alone_is_left(server: Server, tmp_path: Path, name: str, content: bytes) -> None:
    seen: list[tuple[str, int, int | None]] = []
    archive = served(server, content, name)
    folder = fetch(archive, tmp_path / "new" / "data", lambda *of: seen.append(of))
    assert folder == tmp_path / "new" / "data" / "birds"
    assert (folder / "images" / "a b.jpg").read_bytes() == NOISE
    assert [entry.name for entry in folder.parent.iterdir()] == ["birds"]
    assert {what.split()[0] for what, _, _ in seen} == {"getting", "checking", "unpacking"}
    assert (f"getting {name}", len(content), len(content)) in seen
    assert fetch(archive, tmp_path / "new" / "data") == folder
    assert server.asked == [None]


def test_a_cut_connection_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    archive = served(server, tar_of(BIRDS))
    server.cut_after = [1000, 2000]
    assert (fetch(archive, tmp_path) / "images" / "a b.jpg").read_bytes() == NOISE
    assert server.asked == [None, "bytes=1000-", "bytes=3000-"]


def test_what_an_earlier_call_left_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    archive = served(server, tar_of(BIRDS))
    server.cut_after = [5000] + [0] * 10
    assert "5,000 bytes" in str(refused(archive, tmp_path).wanted)
    assert [entry.name for entry in tmp_path.iterdir()] == ["birds.tgz.part"]
    assert len(server.asked) == 6
    server.cut_after = []
    fetch(archive, tmp_path)
    assert server.asked[-1] == "bytes=5000-"
    assert (tmp_path / "birds" / "images" / "a b.jpg").read_bytes() == NOISE


def test_a_server_that_sends_no_ranges(server: Server, tmp_path: Path) -> None:
    archive = served(server, tar_of(BIRDS))
    server.ranges = False
    server.cut_after = [70_000]
    fetch(archive, tmp_path)
    assert server.asked == [None, "bytes=70000-"]
    assert (tmp_path / "birds" / "images" / "a b.jpg").read_bytes() == NOISE


def test_a_server_that_never_comes_further(server: Server, tmp_path: Path) -> None:
    archive = served(server, tar_of(BIRDS))
    server.ranges = False
    server.cut_after = [70_000, 20_000, 30_000, 70_000, 60_000, 50_000, 70_000, 70_000]
    assert refused(archive, tmp_path).subject == archive.url
    assert len(server.asked) == 6


def test_a_whole_part_needs_no_more(server: Server, tmp_path: Path) -> None:
    archive = served(server, tar_of(BIRDS))
    (tmp_path / "birds.tgz.part").write_bytes(server.content)
    fetch(archive, tmp_path)
    assert server.asked == [f"bytes={len(server.content)}-"]
    assert (tmp_path / "birds" / "images" / "a b.jpg").read_bytes() == NOISE


def test_an_archive_got_by_hand(server: Server, tmp_path: Path) -> None:
    archive = served(server, tar_of(BIRDS))
    (tmp_path / "birds.tgz").write_bytes(server.content)
    fetch(archive, tmp_path)
    assert server.asked == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["birds"]


def test_a_wrong_checksum(server: Server, tmp_path: Path) -> None:
    archive = served(server, tar_of(BIRDS))
    server.content = server.content[:-1] + b"?"
    assert archive.md5 in str(refused(archive, tmp_path).wanted)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "birds.tgz").write_bytes(b"by hand")
    assert archive.md5 in str(refused(archive, tmp_path).wanted)
    assert (tmp_path / "birds.tgz").exists()  # the user's own file is theirs to remove


@pytest.mark.parametrize(
    "content",
    [
        tar_of({"birds/a": b"1", "birds/../../out": b"2"}),
        tar_of({"birds/a": b"1", "../out": b"2"}),
        tar_of({"birds/a": b""}, lambda member: become(member, type=tarfile.SYMTYPE, linkname="../../out")),
        tar_of({"birds/a": b""}, lambda member: become(member, type=tarfile.LNKTYPE, linkname="../out")),
        tar_of({"birds/a": b""}, lambda member: become(member, type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        tar_of({"birds/a": b""}, lambda member: become(member, type=tarfile.FIFOTYPE)),
        zip_of({"birds/a": b"1", "birds/../../out": b"2"}),
        zip_of({"birds/a": b"1", "/out": b"2"}),
        zip_of({"birds/a": b"1", "birds\\..\\..\\out": b"2"}),
        zip_of({"birds/a": b"1", "C:/out": b"2"}),
        zip_of({"birds/a": b"../../out"}, mode=0o120777),
    ],
    # A tarball's bytes hold the second it was packed in, and pytest would make them the test's name.
    ids=lambda content: content[:2].hex(),
)
def test_a_member_that_leaves_the_folder(server: Server, tmp_path: Path, content: bytes) -> None:
    archive = served(server, content)
    assert "a member" in str(refused(archive, tmp_path / "data").given)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["birds.tgz"]


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (tar_of({"cars/a": b"1"}), "holds cars"),
        (tar_of(BIRDS)[:-20_000], "unpacked"),
        (b"<html>sign in</html>", "unpacked"),
    ],
    ids=["another", "cut off", "a page"],
)
def test_no_such_archive(server: Server, tmp_path: Path, content: bytes, fact: str) -> None:
    error = refused(served(server, content), tmp_path)
    assert (fact in str(error.given), error.subject) == (True, str(tmp_path / "birds.tgz"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["birds.tgz"]


def test_a_stopped_unpacking_is_begun_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "birds.partial" / "birds").mkdir(parents=True)
    (tmp_path / "birds.partial" / "birds" / "half").write_bytes(b"1")
    folder = fetch(served(server, tar_of(BIRDS)), tmp_path)
    assert sorted(entry.name for entry in folder.iterdir()) == ["._x", "images"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["birds"]


def test_a_server_that_does_not_have_it(server: Server, tmp_path: Path) -> None:
    archive = served(server, b"")
    server.status = 404
    assert refused(archive, tmp_path).given == "answers 404 Not Found"
    assert len(server.asked) == 1


def test_a_server_that_cannot_be_reached(tmp_path: Path, server: Server) -> None:
    archive = Archive("http://127.0.0.1:9/birds.tgz", "0" * 32, "birds")
    assert "refused" in str(refused(archive, tmp_path).given)
    assert list(tmp_path.iterdir()) == []
