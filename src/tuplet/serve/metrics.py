"""What the search server counts, for Prometheus.

By hand, because prometheus-fastapi-instrumentator 8.1 cannot keep the metrics as they are: its label for our
`route` is always `handler`, and it runs inside the application, so it misses what `Gate` refuses.
"""

from __future__ import annotations

import time
from typing import final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


@final
class ServiceMetrics:
    """The metrics of one server; each says itself what it counts."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "tuplet_requests", "Requests answered", ("route", "method", "status"), registry=registry
        )
        self.seconds = Histogram(
            "tuplet_request_seconds", "Time to answer", ("route",), buckets=_SECONDS, registry=registry
        )
        self.queue = Gauge("tuplet_queue_depth", "Places taken before the model", registry=registry)
        self.batches = Histogram(
            "tuplet_batch_size", "Pictures that the model saw at a time", buckets=_SIZES, registry=registry
        )
        self.rows = Gauge("tuplet_index_rows", "Pictures in the index", registry=registry)
        self.version = Gauge("tuplet_index_version", "Version of the index that is read", registry=registry)
        self.stale = Gauge(
            "tuplet_index_stale", "Whether the last look at the index failed: 1 or 0", registry=registry
        )

    def text(self) -> bytes:
        """Return everything in the format of Prometheus."""
        return generate_latest(self._registry)


@final
class Counted:
    """An ASGI application whose requests are counted."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_watched)
        finally:
            # Never the path itself: anyone could make as many counters as there are paths.
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(route, method, str(status or "none")).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)
