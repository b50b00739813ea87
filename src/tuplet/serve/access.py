"""Who may ask: the name the server is called by, the page the request comes from, and the token."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuplet.errors import InputError

SESSION_COOKIE = "tuplet-session"
"""Begin of the cookie's name; see `session_cookie`."""
OPEN_PATHS = frozenset({"/", "/favicon.ico", "/health"})
"""What needs no token: the page, in which there is nothing yet, and whether the server is alive."""
LEAST_TOKEN = 16
"""Characters of a token: a shorter one can be guessed."""
MOST_ADDRESS, MOST_HEADERS = 8_192, 16_384
"""Bytes of a request's address and of its headers."""

_USUAL_PORTS = {"http": 80, "https": 443}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_ALWAYS = {
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
        loopback: the server listens on the loopback interface only. Without a token any other name that it
            is called by is that of a foreign page whose name was made to lead here. With one such a page gets
            nowhere, for the browser keeps the cookie for the name at which it was given; and what speaks TLS
            on this machine may call the server by the name that it has itself.
    """

    token: str | None = field(default=None, repr=False)
    loopback: bool = True

    def __post_init__(self) -> None:
        if self.token is None and not self.loopback:
            raise InputError(
                "a server that others can reach needs a token; want --token-file FILE, or the environment"
                " variable TUPLET_TOKEN"
            )
        if self.token is not None and (
            len(self.token) < LEAST_TOKEN
            or not self.token.isascii()
            or not self.token.isprintable()
            or " " in self.token
        ):
            raise InputError(
                f"the token has {len(self.token)} characters, some perhaps unusual; want {LEAST_TOKEN} or"
                " more letters, digits and signs without spaces, such as openssl rand -hex 24 makes"
            )

    @property
    def session(self) -> str:
        """What the page's cookie holds: it proves the token without telling it."""
        return hmac.new((self.token or "").encode(), b"tuplet session", hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered.

    Attributes:
        status: of HTTP.
        detail: one line.
        headers: to send with it.
    """

    status: int
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)


def is_loopback(address: str) -> bool:
    """Whether an address or the name localhost is this machine's own."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def refusal(access: Access, scope: Scope) -> Refusal | None:
    """Why a request is not answered; None where it is.

    Args:
        access: who may ask.
        scope: the request's, of ASGI.
    """
    headers, method = Headers(scope=scope), scope["method"]
    if len(scope["raw_path"]) + len(scope["query_string"]) > MOST_ADDRESS:
        return Refusal(414, f"the address is too long; want at most {MOST_ADDRESS:,} bytes")
    if sum(len(name) + len(value) for name, value in headers.raw) > MOST_HEADERS:
        return Refusal(431, f"the headers are too long; want at most {MOST_HEADERS:,} bytes")
    hosts = headers.getlist("host")
    host = hosts[0].lower() if len(hosts) == 1 else ""
    if access.token is None and not is_loopback(_place(host)[0]):
        return Refusal(
            421,
            f"this server is not called {host[:80]!r}; want localhost or 127.0.0.1 as the host, or a token"
            " (--token-file), with which any name will do",
        )
    refused = _foreign(method, host, headers)
    if refused is None and access.token is not None and scope["path"] not in OPEN_PATHS:
        refused = _stranger(access, access.token, headers)
    return refused


def session_cookie(access: Access, scope: Scope) -> str:
    """The header Set-Cookie for a browser that has brought the token; it ends with the browser.

    Browsers keep one cookie of a name for all ports of a host, so the port that the page was opened at, if
    it shows one, is part of the name. Where the page came by TLS the cookie goes by nothing else.

    Args:
        access: who may ask.
        scope: of the request, of ASGI.
    """
    headers = Headers(scope=scope)
    rules = "HttpOnly; Path=/; SameSite=strict"
    if headers.get("origin", "").lower().startswith("https://"):
        rules += "; Secure"
    return f"{_cookie_name(headers)}={access.session}; {rules}"


def _cookie_name(headers: Headers) -> str:
    _, port = _place(headers.get("host", ""))
    return SESSION_COOKIE if port is None else f"{SESSION_COOKIE}-{port}"


def _place(host: str) -> tuple[str, int | None]:
    """The name and the port in a Host header; the name is empty where it is none."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "", parts.port
    except ValueError:
        return "", None


def _foreign(method: str, host: str, headers: Headers) -> Refusal | None:
    """Why a request that a page of another site made is not answered."""
    # A browser says so on its own; a page cannot change it. Following a link to here is no harm.
    site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "")
    follows_link = method in _SAFE_METHODS and mode == "navigate"
    origin = headers.get("origin", "").lower()
    alien = "origin" in headers and method not in _SAFE_METHODS and not _is_of(origin, host)
    if alien and site == "same-origin":
        return Refusal(
            403,
            f"the page is of {origin[:80]!r} and its request came to {host[:80]!r}; want the proxy"
            " between them to pass on the header Host as it came",
        )
    if alien or (site not in ("none", "same-origin") and not follows_link):
        return Refusal(403, "the request comes from a page of another site; want the server's own page")
    return None


def _is_of(origin: str, host: str) -> bool:
    """Whether a page is of the server that its request was sent to."""
    scheme, _, netloc = origin.partition("://")
    usual = _USUAL_PORTS.get(scheme)
    (name, port), (own_name, own_port) = _place(netloc), _place(host)
    return usual is not None and name != "" and (name, port or usual) == (own_name, own_port or usual)


def _stranger(access: Access, token: str, headers: Headers) -> Refusal | None:
    given = headers.getlist("authorization")
    if given:
        scheme, _, credentials = given[0].partition(" ")
        known = len(given) == 1 and scheme.lower() == "bearer" and _same(credentials.strip(), token)
    else:
        cookie = cookie_parser(headers.get("cookie", "")).get(_cookie_name(headers), "")
        known = _same(cookie, access.session)
    if known:
        return None
    detail = "the token is wrong" if given else "the token is missing"
    wanted = "want the header Authorization: Bearer TOKEN"
    return Refusal(401, f"{detail}; {wanted}", {"www-authenticate": 'Bearer realm="tuplet"'})


def _same(given: str, wanted: str) -> bool:
    # In the same time, however much of it is right.
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


@final
class Gate:
    """An application behind `refusal`; gives every answer the headers that make a browser careful.

    Args:
        app: what is behind it.
        access: who may ask.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing; the request is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    headers.setdefault(name, value)
                if scope["path"] == "/login" and message["status"] == 204:
                    headers["set-cookie"] = session_cookie(self._access, scope)
            await send(message)

        refused = refusal(self._access, scope)
        if refused is None:
            await self._app(scope, receive, careful)
            return
        body = json.dumps({"detail": refused.detail}).encode()
        given = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
        raw = [(name.encode(), value.encode()) for name, value in given.items()]
        await careful({"type": "http.response.start", "status": refused.status, "headers": raw})
        await careful({"type": "http.response.body", "body": body})
