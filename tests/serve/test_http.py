"""HEAD is answered as GET is, without the body, at every address."""

from __future__ import annotations

import socket

import pytest
from live_server import TOKEN, Server

from tuplet.serve.access import Access


def head(server: Server, path: str) -> bytes:
    """Everything that comes back, to the end of the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_head_is_get_without_the_body(server: Server) -> None:
    name = server.id_of("class 0/0.png")
    paths = [
        path.format(name=name)
        for path, methods in server.get("/openapi.json").json["paths"].items()
        if "get" in methods
    ]
    assert len(paths) >= 8
    for path in (*paths, "/", "/docs", "/favicon.ico", "/openapi.json", f"/search?id={name}", "/images/x"):
        answer, wanted = server.ask("HEAD", path), server.get(path)
        assert (answer.status, answer.body) == (wanted.status, b""), path
        for header in wanted.headers.keys() - {"date"}:
            if not (path == "/metrics" and header == "content-length"):
                assert answer.headers[header] == wanted.headers[header], (path, header)
        sent = head(server, path)
        assert sent.startswith(f"HTTP/1.1 {wanted.status} ".encode())
        assert sent.index(b"\r\n\r\n") == len(sent) - 4, path


def test_head_is_for_reading_only_and_for_those_who_may_read(server: Server) -> None:
    assert server.ask("HEAD", "/login").status == 405
    assert "head" not in {
        method for methods in server.get("/openapi.json").json["paths"].values() for method in methods
    }
    with server.beside(access=Access(TOKEN)) as closed:
        assert [closed.ask("HEAD", path).status for path in ("/health", "/labels", "/map")] == [200, 401, 401]


@pytest.mark.parametrize("path", ["/health", "/labels"])
def test_head_is_counted_as_such(server: Server, path: str) -> None:
    server.ask("HEAD", path)
    line = f'tuplet_requests_total{{method="HEAD",route="{path}",status="200"}}'
    assert line in server.get("/metrics").body.decode()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/images/x", "GET"),
        ("DELETE", "/search", "GET, POST"),
        ("PUT", "/search", "GET, POST"),
        ("GET", "/login", "POST"),
        ("TRACE", "/", "GET"),
        ("CONNECT", "/health", "GET"),
        ("BREW", "/health", "GET"),
    ],
)
def test_methods(server: Server, method: str, path: str, allowed: str) -> None:
    answer = server.ask(method, path)
    assert answer.status == 405
    assert f"{method} cannot be used here; want " in answer.detail
    assert set(answer.headers["allow"].split(", ")) <= set(allowed.split(", "))
