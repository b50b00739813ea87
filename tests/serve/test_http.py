"""HTTP by its rules (RFC 9110): methods, HEAD, ranges, conditions, queries."""

from __future__ import annotations

import socket

import pytest
from live_server import TOKEN, Server, wait_until

from tuplet.serve.access import Access


def head(server: Server, path: str) -> bytes:
    """Everything that comes back, to the end of the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_head_is_get_without_the_body(server: Server) -> None:
    wait_until(lambda: server.get("/map").json["ready"])
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


READ, SEARCH = "GET, HEAD, OPTIONS", "GET, HEAD, OPTIONS, POST"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/images/x", READ),
        ("DELETE", "/search", SEARCH),
        ("PUT", "/search", SEARCH),
        ("GET", "/login", "OPTIONS, POST"),
        ("HEAD", "/login", "OPTIONS, POST"),
        ("TRACE", "/", READ),
        ("CONNECT", "/health", READ),
        ("PATCH", "/openapi.json", READ),
    ],
)
def test_methods_that_an_address_does_not_have(server: Server, method: str, path: str, allowed: str) -> None:
    answer = server.ask(method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        assert answer.detail == f"{method} cannot be used here; want {allowed}"


def test_options_and_methods_that_nobody_knows(server: Server) -> None:
    for path, allowed in (
        ("/search", SEARCH),
        ("/images/x", READ),
        ("/login", "OPTIONS, POST"),
        ("*", SEARCH),
    ):
        answer = server.ask("OPTIONS", path)
        assert (answer.status, answer.headers["allow"], answer.body) == (204, allowed, b"")
    assert server.ask("OPTIONS", "/nothing").status == 404
    for path in ("/health", "/nothing"):
        unknown = server.ask("BREW", path)
        assert (unknown.status, "BREW" in unknown.detail, "allow" in unknown.headers) == (501, True, False)


@pytest.mark.parametrize("route", ["/images/", "/thumbnails/"])
def test_ranges(server: Server, route: str) -> None:
    path = route + server.id_of("class 0/0.png")
    whole = server.get(path)
    size, tag = len(whole.body), whole.headers["etag"]
    assert whole.headers["accept-ranges"] == "bytes"
    for wanted, start, end in (
        ("bytes=0-9", 0, 10),
        ("bytes=10-", 10, size),
        ("BYTES=-7", size - 7, size),
        (f"bytes=5-{size}000", 5, size),
        (f"bytes=-{size}000", 0, size),
    ):
        for extra in ({}, {"if_range": tag}):
            part = server.get(path, range=wanted, **extra)
            assert (part.status, part.body) == (206, whole.body[start:end])
            assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
            assert (part.headers["content-length"], part.headers["etag"]) == (str(end - start), tag)
    for ignored in (
        "bytes=9-5",
        "bytes=-",
        "bytes=0-1,4-5",
        "bytes=a-b",
        "lines=0-9",
        "bytes=" + "9" * 5000 + "-",
    ):
        assert (server.get(path, range=ignored).status, server.get(path, range=ignored).body) == (
            200,
            whole.body,
        )
    for changed in ('"other"', f"W/{tag}", "Tue, 01 Jan 2030 00:00:00 GMT"):
        assert server.get(path, range="bytes=0-9", if_range=changed).body == whole.body
    for outside in (f"bytes={size}-", "bytes=-0"):
        refused = server.get(path, range=outside)
        assert (refused.status, refused.headers["content-range"]) == (416, f"bytes */{size}")
        assert refused.detail
    head = server.ask("HEAD", path, headers={"range": "bytes=0-9"})
    assert (head.status, head.headers["content-length"]) == (200, str(size))


@pytest.mark.parametrize("route", ["/images/", "/thumbnails/"])
def test_conditions(server: Server, route: str) -> None:
    path = route + server.id_of("class 0/0.png")
    whole = server.get(path)
    tag = whole.headers["etag"]
    for known in (tag, f"W/{tag}", f'"a,b", {tag}', "*"):
        for method in ("GET", "HEAD"):
            kept = server.ask(method, path, headers={"if-none-match": known, "range": "bytes=0-9"})
            assert (kept.status, kept.body, kept.headers["etag"]) == (304, b"", tag)
            assert kept.headers["cache-control"] == whole.headers["cache-control"]
    for condition in (
        {"if_none_match": '"other"'},
        {"if_none_match": tag.strip('"')},
        {"if_match": f'"other", {tag}'},
        {"if_match": "*"},
        {"if_modified_since": "Tue, 01 Jan 2030 00:00:00 GMT"},
    ):
        assert server.get(path, **condition).body == whole.body
    for failing in ('"other"', f"W/{tag}", tag.strip('"')):
        refused = server.get(path, if_match=failing, if_none_match=tag)
        assert (refused.status, tag in refused.detail) == (412, True)
    # Of what is not there nothing is kept.
    assert server.get(route + "0" * 32, if_none_match="*").status == 404


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/labels?label=oak", "label is no parameter of this route; want none"),
        ("/health?x", "x is no parameter of this route; want none"),
        ("/map?top=3", "top is no parameter of this route; want none"),
        ("/images/{id}?size=9", "size is no parameter of this route; want none"),
        ("/thumbnails/{id}?size=9", "size is no parameter of this route; want none"),
        ("/pictures?lable=oak", "lable is 'oak'; want only parameters that /docs lists"),
        ("/pictures?top=3&top=5", "top is given 2 times; want it once"),
        ("/search?id={id}&id={id}&top=1", "id is given 2 times; want it once"),
        ("/pictures?label=%ff", "the query is not UTF-8; want each character as %XX of its UTF-8"),
    ],
)
def test_queries_that_are_almost_right_are_refused(server: Server, path: str, detail: str) -> None:
    refused = server.get(path.format(id=server.id_of("class 0/0.png")))
    assert (refused.status, refused.detail) == (422, detail)
