"""What many requests at a time may hold, however slowly they are read, and who waits for whom."""

from __future__ import annotations

import http.client
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from live_server import Server, saved, serving, wait_until
from picture_folder import open_embedder, save_model

from tuplet.search.index import ImageIndex, picture_id
from tuplet.search.indexing import index_pictures
from tuplet.serve import service as service_module
from tuplet.serve.service import ServiceSettings
from tuplet.serve.uploads import decode_upload, read_upload

MEGABYTE = 1 << 20
UPLOAD = "POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ncontent-length: {}\r\n\r\n"
NUM_READERS = 8


@pytest.fixture(scope="module")
def settings() -> ServiceSettings:
    return ServiceSettings(map_points=1)


@contextmanager
def traced() -> Iterator[None]:
    """Count Python's own memory within the block."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def held() -> int:
    return tracemalloc.get_traced_memory()[0]


def test_clients_that_do_not_read_a_file_do_not_hold_it(tmp_path: Path) -> None:
    file = tmp_path / "photos" / "large.bmp"
    file.parent.mkdir()
    file.write_bytes(saved("BMP", (2000, 1400)))
    assert file.stat().st_size > 8 * MEGABYTE
    embedder = open_embedder(save_model(tmp_path / "model"))
    index_pictures(str(tmp_path / "index"), [file.parent], embedder)
    asked = f"GET /images/{picture_id(str(file))} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    parts = (ImageIndex(str(tmp_path / "index")), embedder, file.parent)
    with serving(*parts) as server, traced(), ExitStack() as stack:
        before, clients = held(), []
        for _ in range(12):
            client = stack.enter_context(socket.socket())
            client.settimeout(30)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.sendall(asked)
            clients.append(client)
        for client in clients:
            assert client.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200"
        assert held() - before < 8 * MEGABYTE
        answer = server.answer_on(clients[0])
        assert answer.headers["content-length"] == str(file.stat().st_size)
        assert answer.body == file.read_bytes()
        # One that is written meanwhile is broken off, before anything of what is new.
        secret = b"secret" * (file.stat().st_size // 6)
        with file.open("r+b") as opened:
            opened.write(secret)
        with pytest.raises(http.client.IncompleteRead) as broken:
            server.answer_on(clients[1])
        assert answer.body.startswith(broken.value.partial)
        assert server.is_well()


def test_pictures_whose_senders_went_away_are_not_held(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go, arrived = threading.Event(), list[int]()

    def waits(content: bytes, **limits: Any) -> Any:
        assert may_go.wait(30)
        return decode_upload(content, **limits)

    async def counted(request: Request, **limits: Any) -> bytes:
        content = await read_upload(request, **limits)
        arrived.append(len(content))
        return content

    monkeypatch.setattr(service_module, "decode_upload", waits)
    monkeypatch.setattr(service_module, "read_upload", counted)
    body = saved("PNG") + bytes(4 * MEGABYTE)
    with ThreadPoolExecutor(2) as pool:
        try:
            busy = [pool.submit(server.post, "/search?top=1", saved("PNG")) for _ in range(2)]
            wait_until(lambda: len(arrived) == 2)
            with traced():
                before = held()
                for number in range(3, 18):
                    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
                        client.sendall(UPLOAD.format(len(body)).encode() + body)
                        wait_until(lambda number=number: len(arrived) == number)  # type: ignore[misc]
                wait_until(lambda: "tuplet_queue_depth 2.0" in server.get("/metrics").body.decode())
                assert held() - before < 2 * len(body)
        finally:
            may_go.set()
        assert [one.result().status for one in busy] == [200, 200]


def test_searches_by_path_leave_room_for_others(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go, looking, nearest = threading.Event(), list[str | None](), server.service.index.nearest

    def waits(*given: Any, where: str | None, **more: Any) -> Any:
        looking.append(where)
        assert where is None or may_go.wait(30)
        return nearest(*given, where=where, **more)

    monkeypatch.setattr(server.service.index, "nearest", waits)
    name = server.id_of("class 0/0.png")
    asked = f"/search?id={name}&path=*.png"
    with ThreadPoolExecutor(2 * NUM_READERS) as pool:
        try:
            slow = [pool.submit(server.get, asked) for _ in range(2 * NUM_READERS)]
            wait_until(lambda: len(looking) == 2)
            for other in (f"/thumbnails/{name}", f"/images/{name}", f"/search?id={name}", "/pictures?top=3"):
                assert server.get(other).status == 200
            assert server.post("/search?top=1", saved("PNG")).status == 200
            assert sum(where is not None for where in looking) == 2
        finally:
            may_go.set()
        assert {(one.result().status, len(one.result().json["found"])) for one in slow} == {(200, 14)}
