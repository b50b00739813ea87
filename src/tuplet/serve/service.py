"""The search service: an index and its model, with the threads, queues and caches to serve many requests."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar, final

import numpy as np
from async_lru import alru_cache
from fastapi import HTTPException, Request
from jaxtyping import Float32

from tuplet.errors import InputError, RequestError, one_line
from tuplet.evaluation.calibration import Calibration
from tuplet.inference.pictures import PictureEncoder
from tuplet.search.classify import IndexAnswer, answer_of
from tuplet.search.index import ImageIndex, Neighbour, bytes_hash
from tuplet.search.map import MOST_POINTS, BackgroundMap
from tuplet.serve.answers import (
    MOST_FOUND,
    LabelsAnswer,
    Picture,
    PicturesAnswer,
    SampleQuery,
    SearchAnswer,
    SearchQuery,
)
from tuplet.serve.batching import EmbeddingQueue, QueueFullError, WorkThreads
from tuplet.serve.metrics import ServiceMetrics
from tuplet.serve.uploads import decode_upload, read_upload

T = TypeVar("T")

_READERS, _SCANNERS, _DECODERS, _SAMPLES = 8, 2, 2, 64


@dataclass(frozen=True)
class ServiceSettings:
    """The limits of the server.

    Attributes:
        most_upload_bytes: of an uploaded picture, >= 1.
        most_upload_pixels: of it that may have to be decoded, >= 1; see `DecodingWork`.
        upload_seconds: in which it must have arrived, > 0.
        answer_seconds: for everything after that, > 0.
        queue: uploads that are decoded and embedded at the same time, >= 1; others are refused.
        batch_size: pictures that the model sees at a time, at most, >= 1.
        batch_wait_seconds: how long a picture waits for others to share its batch, >= 0.
        refresh_seconds: between two looks at whether the index was written, > 0.
        map_points: pictures on the map, at most, >= 1.
    """

    most_upload_bytes: int = 20_000_000
    most_upload_pixels: int = 25_000_000
    upload_seconds: float = 30.0
    answer_seconds: float = 30.0
    queue: int = 32
    batch_size: int = 16
    batch_wait_seconds: float = 0.004
    refresh_seconds: float = 10.0
    map_points: int = MOST_POINTS


@dataclass(frozen=True)
class Collection:
    """The state of the index when it was last read.

    Attributes:
        problem: why vectors of the model cannot be searched in it; empty if they can be.
        calibration: of the model; None if there is none, or if the index stores vectors in few bytes, which
            changes the cosines.
    """

    version: int
    rows: int
    labels: frozenset[str]
    labels_answer: LabelsAnswer
    problem: str
    calibration: Calibration | None


@final
class SearchService:
    """An index and its model, for many requests at a time. Belongs to one event loop.

    Its methods raise HTTPException, and SearchIndexError where the index cannot be read.

    Attributes:
        collection: the state of the index when it was last read.
        stale_since: time since which reading the index fails; None if it does not fail.
    """

    def __init__(
        self,
        index: ImageIndex,
        embedder: PictureEncoder,
        settings: ServiceSettings,
        calibration: Calibration | None = None,
    ) -> None:
        self.index, self.settings, self._embedder = index, settings, embedder
        self._calibration = calibration
        self.metrics = ServiceMetrics()
        self.map = BackgroundMap(index, settings.map_points)
        self._queue = EmbeddingQueue(
            embedder.embed,
            capacity=settings.queue,
            batch_size=settings.batch_size,
            wait_seconds=settings.batch_wait_seconds,
            on_taken=self.metrics.queue.set,
            on_batch=self.metrics.batches.observe,
        )
        self._readers = WorkThreads(_READERS, "index")
        self._scanners = WorkThreads(_SCANNERS, "scan")  # searches by path, which take longer
        self._decoders = WorkThreads(_DECODERS, "decode")
        # Concurrent requests for the same sample share one read; errors are not cached.
        self._cached_sample = alru_cache(maxsize=_SAMPLES)(self._sample)
        self.stale_since: datetime | None = None
        self.collection = self._describe()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests within the block."""
        self._queue.start()
        self.map.update(self.collection.version)
        refreshing = asyncio.create_task(self._keep_fresh())
        try:
            yield
        finally:
            refreshing.cancel()
            with suppress(asyncio.CancelledError):
                await refreshing
            await self._queue.close()
            for threads in (self._readers, self._scanners, self._decoders):
                threads.close()

    async def read(self, look: Callable[[], T], threads: WorkThreads | None = None) -> T:
        """Call a function that reads the index or the disk in a thread, with a time limit."""
        try:
            async with asyncio.timeout(self.settings.answer_seconds):
                return await (threads or self._readers).run(look)
        except TimeoutError:
            raise self._too_slow() from None

    async def of_picture(self, name: str, look: Callable[[str], T]) -> T:
        """Call a method of the index with a picture's id; raise HTTPException 404 where there is none."""
        try:
            if re.fullmatch("[0-9a-f]{32}", name):
                return await self.read(partial(look, name))
        except RequestError:
            pass
        detail = f"there is no picture {name[:80]!r}; want the id of one that is in the index"
        raise HTTPException(404, detail)

    async def sample(self, query: SampleQuery) -> PicturesAnswer:
        """Return random pictures, the same ones for the same version of the index."""
        known = self.collection
        if query.label is not None and query.label not in known.labels:
            return PicturesAnswer(pictures=[])
        drawn = await self._cached_sample(known.version, query.label)
        # They come by id, a hash, so that the first of them are as random as all.
        return PicturesAnswer(pictures=drawn[: query.top])

    async def _sample(self, version: int, label: str | None) -> list[Picture]:
        draw = partial(self.index.sample, MOST_FOUND, 0, labels=None if label is None else [label])
        return [Picture.of(picture) for picture in (await self.read(draw)).pictures]

    async def similar_to_picture(self, name: str, query: SearchQuery) -> SearchAnswer:
        """Find what is similar to a picture of the index, without itself."""
        picture = await self.of_picture(name, self.index.row)
        vector = await self.of_picture(name, self.index.vector)
        neighbours, said = await self._nearest(vector, query, {picture.id}, picture.content)
        return SearchAnswer.of(picture, neighbours, picture.content, said)

    async def similar_to_upload(self, request: Request, query: SearchQuery) -> SearchAnswer:
        """Find what is similar to the picture in a request's body."""
        if self.collection.problem:
            raise HTTPException(503, self.collection.problem)
        settings = self.settings
        try:
            with self._queue.place():
                content = await read_upload(
                    request, most_bytes=settings.most_upload_bytes, seconds=settings.upload_seconds
                )
                async with asyncio.timeout(settings.answer_seconds):
                    return await _while_connected(request, self._look_up(content, query))
        except QueueFullError:
            busy = "too many pictures are waiting; want another try in a second"
            raise HTTPException(503, busy, {"retry-after": "1"}) from None
        except TimeoutError:
            raise self._too_slow() from None

    async def _look_up(self, content: bytes, query: SearchQuery) -> SearchAnswer:
        def pixels() -> Any:
            side, most = self._embedder.min_side, self.settings.most_upload_pixels
            return self._embedder.square(decode_upload(content, min_side=side, most_pixels=most))

        square = await self._decoders.run(pixels)
        try:
            vector = await self._queue.vector(square)
        except InputError as error:
            raise HTTPException(422, str(error)) from None
        digest = bytes_hash(content)
        neighbours, said = await self._nearest(vector, query, set(), digest)
        return SearchAnswer.of(None, neighbours, digest, said)

    async def _nearest(
        self, vector: Float32[np.ndarray, " D"], query: SearchQuery, exclude: set[str], content: str
    ) -> tuple[list[Neighbour], IndexAnswer | None]:
        """Return the nearest pictures, and what they say where the model is calibrated.

        Args:
            vector: looked up.
            query: the conditions.
            exclude: ids of pictures that are not found.
            content: hash of the bytes that were looked up; pictures with the same do not vote.
        """
        threads = self._readers if query.path is None else self._scanners
        nearest = partial(self.index.nearest, vector, where=query.condition)
        calibration = self.collection.calibration

        def look() -> tuple[list[Neighbour], IndexAnswer | None]:
            if calibration is None:
                return nearest(query.top, exclude=exclude), None
            most = calibration.num_votes
            neighbours = nearest(max(query.top, most), exclude=exclude)
            voting = [neighbour for neighbour in neighbours if neighbour.picture.content != content]
            if len(voting) < most <= len(neighbours):  # copies took the places of pictures that vote
                copies = {picture.id for picture in self.index.copies(content)}
                voting = nearest(most, exclude=exclude | copies)
            return neighbours[: query.top], answer_of(voting, calibration)

        try:
            return await self.read(look, threads)
        except RequestError as error:
            raise HTTPException(400, f"label or path cannot be used: {error}") from None

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(self.settings.refresh_seconds)
            try:
                self.collection = await self.read(self._refreshed)
                self.map.update(self.collection.version)
                self.stale_since = None
            except Exception as error:  # whatever it is, the next look may succeed
                self.stale_since = self.stale_since or datetime.now(UTC)
                said = f"{type(error).__name__}: {one_line(error, None)}"
                logging.getLogger(__name__).warning("the index cannot be refreshed: %s", said)
            self.metrics.stale.set(self.stale_since is not None)

    def _refreshed(self) -> Collection:
        self.index.refresh()
        return self.collection if self.index.version == self.collection.version else self._describe()

    def _describe(self) -> Collection:
        index = self.index
        difference = self._embedder.model.difference(index.model)
        problem = f"the index was rebuilt with another model ({difference}); want the server started again"
        version, rows, labels = index.version, index.count(), index.labels()
        self.metrics.rows.set(rows)
        self.metrics.version.set(version)
        answer = LabelsAnswer.of(rows, labels)
        calibration = None if index.model.code else self._calibration
        return Collection(
            version, rows, frozenset(labels), answer, problem if difference else "", calibration
        )

    def _too_slow(self) -> HTTPException:
        seconds = self.settings.answer_seconds
        detail = f"there was no answer within {seconds:g} s; want another try when less is going on"
        return HTTPException(504, detail)


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of the work; cancel it as soon as the client disconnects."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(400, "the connection was closed before there was an answer")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
