"""Bad requests for pictures, and requests by those who may not ask; the server answers the next as before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener

import pytest
from live_server import TOKEN, Server, saved, serving, small_index

from tuplet.search.index import picture_id
from tuplet.serve.access import Access
from tuplet.serve.service import ServiceSettings

pytestmark = pytest.mark.usefixtures("answers_afterwards")


NOT_IDS = [
    *("..%2f..%2fetc/passwd", "..%2f..%2f..%2f..%2fetc%2fpasswd", "../../../../etc/passwd", "..;/health"),
    *("%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "%2fetc%2fpasswd", "....//....//etc/passwd"),
    *("file:%2f%2f%2fetc%2fpasswd", "C:%5cwindows%5cwin.ini", "%0d%0aset-cookie:%20a=b", "%f0%9f%90%a6"),
    *("%00", "%ff%fe", "x'%20OR%20'1'='1", "*", "a" * 31 + "%00", "a" * 32, "A" * 32, "a" * 5_000),
    "%e2%80%ae" * 20,
]
OTHER_HOSTS = [
    *("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1"),
    *("0.0.0.0", "", "[::1", "127.0.0.1@evil.example", "localhost, evil.example"),
]


@pytest.mark.parametrize("name", NOT_IDS)
@pytest.mark.parametrize("route", ["/images/", "/thumbnails/"])
def test_ids_that_are_none(server: Server, route: str, name: str) -> None:
    answer = server.raw(
        f"GET {route}{name} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
    )
    assert answer.status == 404
    assert answer.detail.startswith(("there is no picture", "there is nothing at this URL"))
    assert "set-cookie" not in answer.headers
    if "/" not in name and "%2f" not in name and "%00" not in name and "%0d" not in name:
        assert server.get(f"/search?id={name[:500]}").status == (422 if "%ff" in name else 404)


def test_files_that_are_no_longer_what_was_indexed(server: Server, tmp_path: Path) -> None:
    file, address = server.photos / "class 0" / "4.png", f"/images/{server.id_of('class 0/4.png')}"
    original, secret, same = file.read_bytes(), tmp_path / "secret.txt", tmp_path / "same.png"
    secret.write_bytes(b"secret")
    changes: list[tuple[str, Callable[[], object]]] = [
        ("no such file or directory", lambda: None),
        ("it was replaced by another file", lambda: file.symlink_to(secret)),
        ("its content has changed", lambda: file.write_bytes(b"<script>".ljust(len(original)))),
        ("it was replaced by another file", lambda: file.write_bytes(saved("PNG", (30, 40)))),
        ("it was replaced by another file", lambda: os.mkfifo(file)),
        ("its content has changed", lambda: file.hardlink_to(same)),
        ("is a directory", file.mkdir),
    ]
    same.write_bytes(b"secret".ljust(len(original)))
    for reason, change in changes:
        file.unlink(missing_ok=True)
        change()
        answer = server.get(address)
        assert (answer.status, reason in answer.detail, b"secret" in answer.body) == (410, True, False)
        # What the index itself holds is there as before.
        assert server.get(address.replace("images", "thumbnails")).status == 200
    file.rmdir()
    # A link to the same bytes shows nothing else than what was indexed.
    same.write_bytes(original)
    file.symlink_to(same)
    assert server.get(address).body == original
    file.unlink()
    file.write_bytes(original)
    assert server.get(address).body == original


def test_a_broken_thumbnail_is_not_handed_out(tmp_path: Path) -> None:
    index, embedder, photos = small_index(tmp_path)
    name = picture_id(str(photos / "class 0" / "0.png"))
    index.table.update(where=f"id = '{name}'", values={"thumbnail": b"<script>alert(1)</script>"})
    with serving(index, embedder, photos) as server:
        answer = server.get(f"/thumbnails/{name}")
        assert (answer.status, "thumbnail is broken" in answer.detail) == (410, True)


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_other_names_of_this_machine(server: Server, host: str) -> None:
    for path in ("/", "/labels", "/health"):
        answer = server.raw(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        assert answer.status == 421, path
        assert "want localhost or 127.0.0.1 as the host" in answer.detail


def test_its_own_names(server: Server) -> None:
    for host in ("localhost", "LOCALHOST:9", "127.0.0.1", f"127.0.0.1:{server.port}", "[::1]:80"):
        assert server.get("/health", host=host).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "file://"},
        {"origin": "http://["},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
        {"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},
    ],
)
def test_pages_of_other_sites_cannot_post(server: Server, headers: dict[str, str]) -> None:
    answer = server.post("/search", saved("PNG"), **headers)
    assert answer.status == 403
    assert "from a page of another site" in answer.detail


def test_pages_of_other_sites_can_only_lead_here(server: Server) -> None:
    assert server.get("/labels", sec_fetch_site="cross-site", sec_fetch_mode="no-cors").status == 403
    assert server.get("/", sec_fetch_site="cross-site", sec_fetch_mode="navigate").status == 200
    here = {"origin": f"http://127.0.0.1:{server.port}", "sec_fetch_site": "same-origin"}
    assert server.post("/search", saved("PNG"), **here).status == 200
    answer = server.get("/labels", origin="https://evil.example")
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.fixture(scope="module")
def closed(server: Server, settings: ServiceSettings) -> Iterator[Server]:
    """The same server, on the loopback interface as well, for those who have the token."""
    with server.beside(access=Access(TOKEN), settings=settings) as running:
        yield running


def test_a_stranger_gets_no_further_than_the_door(closed: Server) -> None:
    refused = closed.post("/search", bytes(5_000_000), authorization="Bearer wrong-wrong-wrong-wrong")
    assert (refused.status, "the token is wrong" in refused.detail) == (401, True)
    two = f"authorization: Bearer {TOKEN}\r\nauthorization: Bearer wrong\r\n"
    answer = closed.raw(f"GET /labels HTTP/1.1\r\nhost: localhost\r\n{two}\r\n".encode())
    assert answer.status == 401
    assert closed.get("/labels?token=" + TOKEN).status == 401
    assert closed.get("/labels", cookie="a=b; =; tuplet-session").status == 401


@pytest.mark.parametrize(
    ("host", "origin", "name", "secure"),
    [
        ("photos.example.com", "https://photos.example.com", "tuplet-session", True),
        ("Photos.example.com:443", "https://photos.example.com", "tuplet-session-443", True),
        ("photos.example.com:8443", "https://photos.example.com:8443", "tuplet-session-8443", True),
        ("photos.example.com", "http://photos.example.com", "tuplet-session", False),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", "tuplet-session-8000", False),
        ("[::1]:8000", "http://[::1]:8000", "tuplet-session-8000", False),
        ("photos.example.com", None, "tuplet-session", False),
    ],
)
def test_a_proxy_on_this_machine_that_passes_the_host_on(
    closed: Server, host: str, origin: str | None, name: str, secure: bool
) -> None:
    page = {"host": host, "sec_fetch_site": "same-origin"} | ({} if origin is None else {"origin": origin})
    assert closed.get("/labels", **page).status == 401
    given = closed.post("/login", b"", authorization=f"Bearer {TOKEN}", **page)
    assert given.status == 204
    ((own, cookie),) = SimpleCookie(given.headers["set-cookie"]).items()
    assert (own, bool(cookie["secure"])) == (name, secure)
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "strict", "/")
    page["cookie"] = f"{name}={cookie.value}"
    assert closed.get("/labels", **page).status == 200
    assert closed.post("/search?top=1", saved("PNG"), **page).status == 200


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8000", "https://photos.example.com"),
        ("photos.example.com", "https://photos.example.com:8443"),
        ("photos.example.com:80", "https://photos.example.com"),
        ("photos.example.com:443", "http://photos.example.com"),
    ],
)
def test_a_proxy_that_changes_the_host_is_told_so(closed: Server, host: str, origin: str) -> None:
    page = {"host": host, "origin": origin, "authorization": f"Bearer {TOKEN}"}
    refused = closed.post("/login", b"", sec_fetch_site="same-origin", **page)
    assert refused.status == 403
    assert repr(origin) in refused.detail
    assert "want the proxy between them to pass on the header Host" in refused.detail
    # A browser that does not say that page and server are one is not believed either.
    assert "a page of another site" in closed.post("/login", b"", **page).detail


def test_a_name_that_was_made_to_lead_here_is_of_no_use(closed: Server) -> None:
    # The page of evil.example asks evil.example, which is 127.0.0.1 by now: all is of one origin.
    page = {"host": "evil.example", "sec_fetch_site": "same-origin", "sec_fetch_mode": "cors"}
    for path in ("/labels", "/map", "/pictures", "/metrics", "/docs", "/openapi.json"):
        assert closed.get(path, **page).status == 401, path
    page["origin"] = "http://evil.example"
    assert closed.post("/search", saved("PNG"), **page).status == 401
    assert "set-cookie" not in closed.post("/login", b"", **page).headers
    # The browser would have brought a cookie to its own name only; and other sites stay outside of that.
    there = {"host": "photos.example.com", "authorization": f"Bearer {TOKEN}"}
    assert closed.post("/search", saved("PNG"), origin="https://evil.example", **there).status == 403


def test_two_servers_of_one_host_in_one_browser(server: Server) -> None:
    jar = CookieJar()
    browser = build_opener(ProxyHandler({}), HTTPCookieProcessor(jar))
    with server.beside(access=Access(TOKEN)) as one, server.beside(access=Access(TOKEN + "2")) as two:
        for each, token in ((one, TOKEN), (two, TOKEN + "2")):
            login = Request(f"http://127.0.0.1:{each.port}/login", method="POST")
            login.add_header("Authorization", f"Bearer {token}")
            browser.open(login).close()
        assert len(jar) == 2
        for each in (one, two):
            with browser.open(f"http://127.0.0.1:{each.port}/labels") as answer:
                assert answer.status == 200
