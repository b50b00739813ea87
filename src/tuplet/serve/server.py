"""Listen on a socket: HTTP/1.1 by uvicorn, with a time limit for every step."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tuplet.errors import DeviceError
from tuplet.serve.access import is_loopback


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of one connection, and how many there may be at the same time.

    Attributes:
        head_seconds: from the first byte, or from the connection, to the end of a request's head.
        whole_seconds: from there to the end of the answer.
        idle_seconds: between two requests.
    """

    head_seconds: float = 10.0
    whole_seconds: float = 120.0
    idle_seconds: float = 15.0
    head_bytes: int = 16_384
    connections: int = 500


def listen(host: str, port: int) -> socket.socket:
    """Open a socket on a host's port, 0 for any free one; raise DeviceError where that is not possible."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(address[0]), port), family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:  # Unicode: a part of the name is too long
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        reason = said.partition(" (")[0].lower()
        raise DeviceError(
            f"cannot listen on {host}:{port} ({reason}); want another --port, or --host",
            subject=f"{host}:{port}",
        ) from None


def listens_on_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can reach a socket."""
    return is_loopback(str(listener.getsockname()[0]))


def make_server(app: ASGIApp, limits: ConnectionLimits) -> uvicorn.Server:
    """Return a server that is not running yet."""
    config = uvicorn.Config(
        app,
        http=partial(_TimedProtocol, limits),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(limits.idle_seconds),
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=limits.head_bytes,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # bad requests are no fault of the server
    return uvicorn.Server(config)


def serve(app: ASGIApp, listener: socket.socket, limits: ConnectionLimits) -> None:
    """Serve until the process is interrupted or terminated; the socket is closed then."""
    # uvicorn raises the signal that stopped it again when it has stopped.
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        make_server(app, limits).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


@final
class _TimedProtocol(H11Protocol):
    """uvicorn's protocol with time limits: uvicorn itself limits only the time between two requests."""

    def __init__(self, limits: ConnectionLimits, **given: Any) -> None:
        super().__init__(**given)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._timed: object = None  # the step that the timer is for; None: there is none

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._end(503, "too many connections; want another try in a second")
        else:
            self._set_timer("first head", self._limits.head_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_timer(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; uvicorn calls it while it handles h11's error, which knows the status."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        details = {431: f"the head is too long; want at most {self._limits.head_bytes:,} bytes"}
        self._end(status, details.get(status, "the request cannot be read; want HTTP/1.1"))

    def _watch(self) -> None:
        """Set the timer for the step that the connection is at."""
        if self.conn.their_state is h11.IDLE:
            if self.conn.trailing_data[0]:
                self._set_timer("head", self._limits.head_seconds, self._head_is_late)
            elif self._timed != "first head":
                self._set_timer(None)
        elif self.conn.their_state is h11.SEND_BODY or not self.cycle.response_complete:
            self._set_timer(self.cycle, self._limits.whole_seconds, self.transport.abort)
        else:
            self._set_timer(None)

    def _set_timer(
        self, step: object, seconds: float = 0.0, on_late: Callable[[], object] = lambda: None
    ) -> None:
        if step is self._timed and step is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timed = step
        self._timer = None if step is None else self.loop.call_later(seconds, on_late)

    def _head_is_late(self) -> None:
        seconds = self._limits.head_seconds
        self._end(408, f"the request's head took more than {seconds:g} s; want it faster")

    def _end(self, status: int, detail: str) -> None:
        """Close the connection with an answer that does not come from the application."""
        self._set_timer(None)
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        try:
            for event in _answer(status, detail):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # half an answer is sent already
            self.transport.abort()
        else:
            self.transport.close()


def _answer(status: int, detail: str) -> tuple[h11.Event, ...]:
    """Return a whole answer that is the last one on its connection."""
    body = json.dumps({"detail": detail}).encode()
    headers = [
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("connection", "close"),
        ("x-content-type-options", "nosniff"),
        *([("retry-after", "1")] if status == 503 else []),
    ]
    return h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()
