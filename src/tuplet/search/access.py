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
OPEN_PATHS = frozenset({"/", "/favicon.ico", "/health"})
"""What needs no token: the page, in which there is nothing yet, and whether the server is alive."""
LEAST_TOKEN = 16
"""Characters of a token: a shorter one can be guessed."""
MOST_ADDRESS, MOST_HEADERS = 8_192, 16_384
"""Bytes of a request's address and of its headers."""

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
        loopback: the server listens on the loopback interface only, so any other name that it is called by
            is that of a foreign page whose name was made to lead here.
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
    if access.loopback and not is_loopback(_name(host)):
        return Refusal(
            421, f"this server is not called {host[:80]!r}; want localhost or 127.0.0.1 as the host"
        )
    refused = _foreign(method, host, headers)
    if refused is None and access.token is not None and scope["path"] not in OPEN_PATHS:
        refused = _stranger(access, access.token, headers)
    return refused


def _name(host: str) -> str:
    """The name in a Host header, without the port; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _foreign(method: str, host: str, headers: Headers) -> Refusal | None:
    """Why a request that a page of another site made is not answered."""
    # A browser says so on its own; a page cannot change it. Following a link to here is no harm.
    site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "")
    follows_link = method in _SAFE_METHODS and mode == "navigate"
    origin = headers.get("origin")
    alien = origin is not None and method not in _SAFE_METHODS and _netloc(origin) != host
    if alien or (site not in ("none", "same-origin") and not follows_link):
        return Refusal(403, "the request comes from a page of another site; want the server's own page")
    return None


def _netloc(origin: str) -> str | None:
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return None
    return parts.netloc if parts.scheme in ("http", "https") else None


def _stranger(access: Access, token: str, headers: Headers) -> Refusal | None:
    given = headers.getlist("authorization")
    if given:
        scheme, _, credentials = given[0].partition(" ")
        known = len(given) == 1 and scheme.lower() == "bearer" and _same(credentials.strip(), token)
    else:
        cookie = cookie_parser(headers.get("cookie", "")).get(SESSION_COOKIE, "")
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
