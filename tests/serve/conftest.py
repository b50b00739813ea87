"""The server of the tests here; a file that wants others overrides `settings` or `limits`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_server import Server, SmallIndex, saved, serving, small_index

from tuplet.serve.server import ConnectionLimits
from tuplet.serve.service import ServiceSettings


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> SmallIndex:
    """An index, which tests leave as it is, with its model and its pictures."""
    return small_index(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def settings() -> ServiceSettings:
    return ServiceSettings(most_upload_bytes=300_000, map_points=1)


@pytest.fixture(scope="module")
def limits() -> ConnectionLimits:
    return ConnectionLimits()


@pytest.fixture(scope="module")
def server(served: SmallIndex, settings: ServiceSettings, limits: ConnectionLimits) -> Iterator[Server]:
    with serving(*served, settings=settings, limits=limits) as running:
        yield running


@pytest.fixture
def answers_afterwards(server: Server) -> Iterator[None]:
    """Whatever a test does to the server, it answers the next request as before."""
    yield
    assert server.is_well()
    answer = server.post("/search?top=1", saved("PNG"))
    assert (answer.status, len(answer.json["found"])) == (200, 1)
