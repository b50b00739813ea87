"""Access control of the server, by the request's host name, the page that it comes from, and the token."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass, field
from typing import final
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuplet.errors import SettingsError

SESSION_COOKIE = "tuplet-session"
"""How the cookie's name begins; see `session_cookie`."""
OPEN_PATHS = frozenset({"/", "/favicon.ico", "/health"})
"""What needs no token: the page, which holds nothing of the index, and whether the server is alive."""
LEAST_TOKEN = 16
"""Characters of a token: a shorter one can be guessed."""
MOST_ADDRESS, MOST_HEADERS = 8_192, 16_384
"""Bytes of a request's address and of its headers."""

_USUAL_PORTS = {"http": 80, "https": 443}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        token: what a request must bring; None: nothing, on the loopback interface only.
        loopback: the server listens on the loopback interface only. Without a token any other host name is
            then that of a foreign page, whose name was made to lead here (DNS rebinding). With a token such a
            page gets nowhere, because the browser sends the cookie only to the name that set it; so a proxy
            for TLS on this machine may use its own name for the server.
    """

    token: str | None = field(default=None, repr=False)
    loopback: bool = True

    def __post_init__(self) -> None:
        token = self.token
        if token is None:
            if self.loopback:
                return
            raise SettingsError(
                "a server that others can reach needs a token; want --token-file FILE, or the environment"
                " variable TUPLET_TOKEN",
                subject="token",
            )
        if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise SettingsError(
                f"the token has {len(token)} characters, some perhaps unusual; want {LEAST_TOKEN} or more"
                " letters, digits and signs without spaces, such as openssl rand -hex 24 makes",
                subject="token",
            )

    @property
    def session(self) -> str:
        """Return the value of the page's cookie: it proves the token without containing it."""
        return hmac.new((self.token or "").encode(), b"tuplet session", hashlib.sha256).hexdigest()


def is_loopback(address: str) -> bool:
    """Return whether an address or the name localhost is this machine's own."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def refusal(access: Access, scope: Scope) -> HTTPException | None:
    """Return why an ASGI request is refused; None where it is not."""
    headers, method = Headers(scope=scope), scope["method"]
    if len(scope["raw_path"]) + len(scope["query_string"]) > MOST_ADDRESS:
        return HTTPException(414, f"the address is too long; want at most {MOST_ADDRESS:,} bytes")
    if sum(len(name) + len(value) for name, value in headers.raw) > MOST_HEADERS:
        return HTTPException(431, f"the headers are too long; want at most {MOST_HEADERS:,} bytes")
    hosts = headers.getlist("host")
    host = hosts[0].lower() if len(hosts) == 1 else ""
    if access.token is None and not is_loopback(_host_and_port(host)[0]):
        return HTTPException(
            421,
            f"this server is not called {host[:80]!r}; want localhost or 127.0.0.1 as the host, or a token"
            " (--token-file), with which any name will do",
        )
    refused = _cross_site(method, host, headers)
    if refused is None and access.token is not None and scope["path"] not in OPEN_PATHS:
        refused = _without_token(access, access.token, headers)
    return refused


def session_cookie(access: Access, scope: Scope) -> str:
    """Return the header Set-Cookie for a browser that has sent the token; the cookie ends with the browser.

    Browsers keep one cookie of a name for all ports of a host, so the page's port is part of the name. A page
    that came by TLS gets a cookie that is sent by TLS only.
    """
    headers = Headers(scope=scope)
    secure = "; Secure" if headers.get("origin", "").lower().startswith("https://") else ""
    return f"{_cookie_name(headers)}={access.session}; HttpOnly; Path=/; SameSite=strict{secure}"


def _cookie_name(headers: Headers) -> str:
    _, port = _host_and_port(headers.get("host", ""))
    return SESSION_COOKIE if port is None else f"{SESSION_COOKIE}-{port}"


def _host_and_port(host: str) -> tuple[str, int | None]:
    """Split a Host header; the name is empty where the header is not valid."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "", parts.port
    except ValueError:
        return "", None


def _cross_site(method: str, host: str, headers: Headers) -> HTTPException | None:
    """Return why a request from a page of another site is refused."""
    # The browser sets these headers; a page cannot change them. Following a link to here is harmless.
    site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "")
    follows_link = method in _SAFE_METHODS and mode == "navigate"
    origin = headers.get("origin", "").lower()
    foreign = "origin" in headers and method not in _SAFE_METHODS and not _is_same_site(origin, host)
    if foreign and site == "same-origin":
        return HTTPException(
            403,
            f"the page is of {origin[:80]!r} and its request came to {host[:80]!r}; want the proxy"
            " between them to pass on the header Host as it came",
        )
    if foreign or (site not in ("none", "same-origin") and not follows_link):
        detail = "the request comes from a page of another site; want the server's own page"
        return HTTPException(403, detail)
    return None


def _is_same_site(origin: str, host: str) -> bool:
    scheme, _, netloc = origin.partition("://")
    usual = _USUAL_PORTS.get(scheme)
    (name, port), (own_name, own_port) = _host_and_port(netloc), _host_and_port(host)
    return usual is not None and name != "" and (name, port or usual) == (own_name, own_port or usual)


def _without_token(access: Access, token: str, headers: Headers) -> HTTPException | None:
    given = headers.getlist("authorization")
    if given:
        scheme, _, credentials = given[0].partition(" ")
        known = len(given) == 1 and scheme.lower() == "bearer" and _equal(credentials.strip(), token)
    else:
        cookie = cookie_parser(headers.get("cookie", "")).get(_cookie_name(headers), "")
        known = _equal(cookie, access.session)
    if known:
        return None
    detail = f"the token is {'wrong' if given else 'missing'}; want the header Authorization: Bearer TOKEN"
    return HTTPException(401, detail, {"www-authenticate": 'Bearer realm="tuplet"'})


def _equal(given: str, wanted: str) -> bool:
    # In constant time: the time of a usual comparison shows how many characters are right.
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


@final
class Gate:
    """An ASGI application behind `refusal`, which adds the security headers to every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"] == "/login" and message["status"] == 204:
                    headers["set-cookie"] = session_cookie(self._access, scope)
            await send(message)

        refused = refusal(self._access, scope)
        if refused is None:
            await self._app(scope, receive, send_secured)
        else:
            detail = {"detail": refused.detail}
            await JSONResponse(detail, refused.status_code, refused.headers)(scope, receive, send_secured)
