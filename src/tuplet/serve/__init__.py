"""Serve an index over HTTP."""

from tuplet.errors import require_extra

require_extra(
    "search", "lancedb", "fastapi", "uvicorn", "prometheus_client", "async_lru", purpose="tuplet.serve"
)
