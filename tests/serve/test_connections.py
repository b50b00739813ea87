"""What a connection can do wrong: heads, lengths, slowness; the server answers the next as before."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from live_server import Server, saved, wait_until

from tuplet.serve.server import ConnectionLimits
from tuplet.serve.service import ServiceSettings

pytestmark = pytest.mark.usefixtures("answers_afterwards")
MOST = 300_000


@pytest.fixture(scope="module")
def settings() -> ServiceSettings:
    return ServiceSettings(most_upload_bytes=MOST, upload_seconds=2.0, map_points=1)


@pytest.fixture(scope="module")
def limits() -> ConnectionLimits:
    return ConnectionLimits(head_seconds=2.0, whole_seconds=5.0, idle_seconds=2.0)


HEAD = b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"
HEADS = {
    "no HTTP": (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" * 20 + b"\r\n\r\n", 400),
    "one word": (b"HELLO\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "a name that is none": (b"GET / HTTP/1.1\r\nhost: localhost\r\na b: c\r\n\r\n", 400),
    "NUL in a value": (b"GET / HTTP/1.1\r\nhost: localhost\r\na: \0\r\n\r\n", 400),
    "two lengths": (HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nx", 400),
    "a length that is none": (HEAD + b"content-length: -1\r\n\r\nx", 400),
    "length and chunks": (HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks that are none": (HEAD + b"transfer-encoding: chunked\r\n\r\nZZZ\r\n", 400),
    "another encoding": (HEAD + b"transfer-encoding: gzip\r\n\r\nx", 501),
    "huge header": (b"GET / HTTP/1.1\r\nhost: localhost\r\na: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    "many headers": (b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 9_000 + b"\r\n", 431),
    "endless head": (b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 9_000, 431),
    "endless address": (b"GET /" + b"a" * 90_000, 431),
    "long address": (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 414),
    "foreign address": (b"GET http://evil.example/ HTTP/1.1\r\nhost: localhost\r\n\r\n", 404),
    "bytes in the address": (b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(server: Server, name: str) -> None:
    sent, status = HEADS[name]
    answer = server.raw(sent)
    assert answer.status == status
    assert answer.detail


def parts(total: int) -> Iterator[bytes]:
    for _ in range(total // 65_536):
        yield bytes(65_536)


def test_uploads_that_are_too_long(server: Server) -> None:
    fits = saved("PNG", (30, 30))
    assert server.post("/search", fits + bytes(MOST - len(fits))).status == 200
    for answer in (
        server.post("/search", fits + bytes(MOST + 1 - len(fits))),
        server.post("/search", bytes(100_000_000)),
        server.ask("POST", "/search", parts(20_000_000), {"content-type": "image/png"}),
        server.raw(HEAD + b"content-length: 99999999999999999999\r\n\r\n"),
    ):
        assert answer.status == 413
        assert (
            answer.detail
            == "the picture has more than 300,000 bytes; want fewer (tuplet serve --max-upload-mb)"
        )


def test_a_length_that_lies(server: Server) -> None:
    # Longer than said: the rest is a second request, and none.
    assert server.raw(HEAD + b"content-length: 3\r\n\r\nGIF89a").status == 422
    # Shorter than said, and then the end.
    with pytest.raises(http.client.RemoteDisconnected):
        server.raw(HEAD + b"content-length: 30\r\n\r\nGIF89a", end=True)


def test_slow_clients_are_cut_off(server: Server) -> None:
    answers: dict[str, tuple[bytes, float]] = {}

    def drip(name: str, first: bytes, then: bytes) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            began = time.monotonic()
            connection.sendall(first)
            connection.settimeout(0.1)
            got = b""
            while time.monotonic() - began < 25:
                try:
                    part = connection.recv(4096)
                    got += part
                    if not part:
                        break
                except TimeoutError:
                    try:
                        connection.sendall(then)
                    except ConnectionError:
                        break
                except ConnectionError:
                    break
            answers[name] = (got[:12], time.monotonic() - began)

    sends = {
        "nothing": (b"", b""),
        "head": (b"GET / HT", b"T"),
        "headers": (b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
        "second head": (b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET", b"T"),
        "body": (HEAD + b"content-length: 1000\r\n\r\n", b"x"),
        "chunks": (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        "refused": (HEAD + b"content-length: 99999999\r\n\r\n", b"x"),
        "idle": (b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n", b""),
    }
    threads = [threading.Thread(target=drip, args=(name, *sent)) for name, sent in sends.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begins = {name: got for name, (got, _) in answers.items()}
    assert begins == {
        "nothing": b"HTTP/1.1 408",
        "head": b"HTTP/1.1 408",
        "headers": b"HTTP/1.1 408",
        "second head": b"HTTP/1.1 200",
        "body": b"HTTP/1.1 408",
        "chunks": b"HTTP/1.1 408",
        "refused": b"HTTP/1.1 413",
        "idle": b"HTTP/1.1 200",
    }
    assert max(seconds for _, seconds in answers.values()) < 20


def test_who_goes_away_is_not_waited_for(server: Server) -> None:
    for _ in range(40):  # more than there are places
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(HEAD + f"content-length: {len(saved('PNG'))}\r\n\r\n".encode() + saved("PNG"))
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(HEAD + b"content-length: 1000\r\n\r\nhalf")
    wait_until(lambda: "tuplet_queue_depth 0.0" in server.get("/metrics").body.decode())


def test_more_connections_than_there_may_be(server: Server) -> None:
    with server.beside(limits=ConnectionLimits(connections=5)) as small:
        held = [socket.create_connection(("127.0.0.1", small.port), timeout=30) for _ in range(5)]
        try:
            refused = small.raw(b"")
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert "too many connections" in refused.detail
        finally:
            for one in held:
                one.close()
        wait_until(lambda: small.raw(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").status == 200)
