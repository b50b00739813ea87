"""A search server on a free port, in a thread of the test, and ways to talk to it."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from picture_folder import draw, open_embedder, save_model
from PIL import Image

from tuplet.inference.encoder import PictureEmbedder
from tuplet.search.index import ImageIndex, picture_id
from tuplet.search.indexing import index_pictures
from tuplet.serve.access import Access
from tuplet.serve.app import build_service
from tuplet.serve.server import ConnectionLimits, listen, listens_on_loopback, make_server
from tuplet.serve.service import SearchService, ServiceSettings

SmallIndex: TypeAlias = tuple[ImageIndex, PictureEmbedder, Path]
TOKEN = "correct-horse-battery"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        """The one line of an error."""
        assert self.headers["content-type"] == "application/json"
        tree = self.json
        assert list(tree) == ["detail"]
        assert "\n" not in tree["detail"]
        assert len(tree["detail"]) > 10
        detail: str = tree["detail"]
        return detail


@dataclass(frozen=True)
class Server:
    port: int
    service: SearchService
    index: ImageIndex
    embedder: PictureEmbedder
    photos: Path

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            return _read(connection.getresponse())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})

    def post(self, path: str, body: bytes, kind: str = "image/png", **headers: str) -> Answer:
        more = {name.replace("_", "-"): text for name, text in headers.items()}
        return self.ask("POST", path, body, {"content-type": kind, **more})

    def raw(self, sent: bytes, *, end: bool = False) -> Answer:
        """The answer to these very bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            with contextlib.suppress(ConnectionError):  # it may have answered before it has read everything
                connection.sendall(sent)
            if end:
                connection.shutdown(socket.SHUT_WR)
            return self.answer_on(connection)

    def answer_on(self, connection: socket.socket) -> Answer:
        response = http.client.HTTPResponse(connection)
        response.begin()
        return _read(response)

    def beside(self, **options: Any) -> contextlib.AbstractContextManager[Server]:
        """Serve the same index a second time, with other options of `serving`."""
        return serving(self.index, self.embedder, self.photos, **options)

    def id_of(self, name: str) -> str:
        """Return the id of one of the photos."""
        return picture_id(str(self.photos / name))

    def is_well(self) -> bool:
        return bool(self.get("/health").json == {"status": "ok"})


def _read(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): text for name, text in response.getheaders()}
    assert len(headers) == len(response.getheaders())  # none twice
    return Answer(response.status, headers, response.read())


def saved(kind: str, size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    """A file of noise in a format of Pillow's."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def wait_until(true: Callable[[], object]) -> None:
    """Return as soon as it is true; the machine may be busy."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def serving(
    index: ImageIndex,
    embedder: PictureEmbedder,
    photos: Path,
    *,
    access: Access | None = None,
    settings: ServiceSettings | None = None,
    limits: ConnectionLimits | None = None,
) -> Iterator[Server]:
    listener = listen("127.0.0.1", 0)
    assert listens_on_loopback(listener)
    port = listener.getsockname()[1]
    service = SearchService(index, embedder, settings or ServiceSettings(map_points=1))
    server = make_server(build_service(service, access or Access()), limits or ConnectionLimits())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield Server(port, service, index, embedder, photos)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def small_index(root: Path) -> SmallIndex:
    """An index of fifteen drawings of three classes and two photographs, its model and its pictures."""
    photos = draw(root / "photos", range(3), range(5))
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    (photos / "it's").mkdir()
    Image.fromarray(noise).save(photos / "it's" / 'a "noise".jpg', quality=80)
    Image.fromarray(noise).save(photos / "it's" / "lossless.tif")
    embedder = open_embedder(save_model(root / "model"))
    index_pictures(str(root / "index"), [photos], embedder)
    return ImageIndex(str(root / "index")), embedder, photos
