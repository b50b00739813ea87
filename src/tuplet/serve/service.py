"""The search server: an index, its model, and what they need to answer many requests at a time."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, TypeVar, final

import numpy as np
from fastapi import HTTPException, Request
from jaxtyping import Float32

from tuplet.errors import InputError
from tuplet.inference.encoder import PictureEmbedder
from tuplet.search.index import ImageIndex, Neighbour
from tuplet.search.map import MOST_POINTS, BackgroundMap
from tuplet.serve.answers import (
    MOST_FOUND,
    LabelsAnswer,
    Picture,
    PicturesAnswer,
    SearchAnswer,
    Wanted,
    WantedSome,
)
from tuplet.serve.batching import EmbeddingQueue, QueueFullError, WorkThreads
from tuplet.serve.metrics import ServiceMetrics
from tuplet.serve.uploads import decode_upload, read_upload

T = TypeVar("T")

_READERS, _SCANNERS, _DECODERS, _SAMPLES = 8, 2, 2, 64


@dataclass(frozen=True)
class ServiceSettings:
    """What the server takes upon itself.

    Attributes:
        most_upload_bytes: of a picture that is sent, >= 1.
        most_upload_pixels: of it that may have to be decoded, >= 1; see `DecodingWork`.
        upload_seconds: in which it must have come, > 0.
        answer_seconds: for everything after that, > 0.
        queue: pictures that are sent, decoded and embedded at the same time, >= 1; others are refused.
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
    """What is known of the index as it was when last looked at.

    Attributes:
        version: of the index.
        rows: pictures.
        labels: those that pictures have.
        labels_answer: how many pictures each of the most frequent ones has.
        problem: why the model's vectors cannot be looked up in it; empty where they can.
    """

    version: int
    rows: int
    labels: frozenset[str]
    labels_answer: LabelsAnswer
    problem: str


@final
class SearchService:
    """An index and its model, asked by many at a time. Belongs to one event loop.

    Args:
        index: which is searched; refreshed now and then.
        embedder: of the index's model.
        settings: what the server takes upon itself.

    Attributes:
        metrics: what is counted.
        collection: the index as it was when last looked at.
        map: of the collection.
        stale_since: when the index could not be looked at for the first time since it could be; None: it can.
    """

    def __init__(self, index: ImageIndex, embedder: PictureEmbedder, settings: ServiceSettings) -> None:
        self.index, self.settings, self._embedder = index, settings, embedder
        self.metrics = ServiceMetrics()
        self.map = BackgroundMap(index, settings.map_points)
        self._queue = EmbeddingQueue(
            embedder.embed,
            capacity=settings.queue,
            batch_size=settings.batch_size,
            wait_seconds=settings.batch_wait_seconds,
            taken=self.metrics.queue.set,
            batched=self.metrics.batches.observe,
        )
        self._readers = WorkThreads(_READERS, "index")
        self._scanners = WorkThreads(_SCANNERS, "scan")  # every path is looked at; others need not wait
        self._decoders = WorkThreads(_DECODERS, "decode")
        self._samples = KeptAnswers(self._sample, _SAMPLES)
        self.stale_since: datetime | None = None
        self.collection = self._looked_at()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Nothing; within it requests can be answered."""
        self._queue.start()
        self.map.keep(self.collection.version)
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
        """What a function gives that reads the index or the disk, in a thread; HTTPException 504 if late."""
        try:
            async with asyncio.timeout(self.settings.answer_seconds):
                return await (threads or self._readers).run(look)
        except TimeoutError:
            raise _too_slow(self.settings) from None

    async def of_picture(self, name: str, look: Callable[[str], T]) -> T:
        """What a function of the index gives for a picture's id; HTTPException 404 where there is none."""
        if len(name) != 32 or not set(name) <= set("0123456789abcdef"):
            raise _no_picture(name)
        try:
            return await self.read(partial(look, name))
        except InputError as error:
            raise (_no_picture(name) if "there is no picture" in str(error) else _unreadable(error)) from None

    async def some(self, wanted: WantedSome) -> PicturesAnswer:
        """Some pictures, drawn at random, the same ones for the same version of the index; HTTPException."""
        known = self.collection
        if wanted.label is not None and wanted.label not in known.labels:
            return PicturesAnswer(pictures=[])
        try:
            drawn = await self._samples.get((known.version, wanted.label))
        except InputError as error:
            raise _unreadable(error) from None
        # They come by id, a hash, so that the first of them are as random as all.
        return PicturesAnswer(pictures=drawn[: wanted.top])

    async def _sample(self, version_and_label: tuple[int, str | None]) -> list[Picture]:
        _, label = version_and_label
        draw = partial(self.index.sample, MOST_FOUND, 0, labels=None if label is None else [label])
        drawn = await self.read(draw)
        return [Picture.of(one) for one in drawn.pictures]

    async def like_picture(self, name: str, wanted: Wanted) -> SearchAnswer:
        """What looks like a picture of the index, which itself is left out; HTTPException."""
        picture = await self.of_picture(name, self.index.row)
        vector = await self.of_picture(name, self.index.vector)
        found = await self._nearest(vector, wanted, {picture.id})
        return SearchAnswer.of(picture, found, picture.content)

    async def like_upload(self, request: Request, wanted: Wanted) -> SearchAnswer:
        """What looks like the picture in a request's body; HTTPException."""
        if self.collection.problem:
            raise HTTPException(503, self.collection.problem)
        settings = self.settings
        try:
            with self._queue.place():
                content = await read_upload(
                    request, most_bytes=settings.most_upload_bytes, seconds=settings.upload_seconds
                )
                async with asyncio.timeout(settings.answer_seconds):
                    return await _while_connected(request, self._look_up(content, wanted))
        except QueueFullError:
            busy = "too many pictures are waiting; want another try in a second"
            raise HTTPException(503, busy, {"retry-after": "1"}) from None
        except TimeoutError:
            raise _too_slow(settings) from None

    async def _look_up(self, content: bytes, wanted: Wanted) -> SearchAnswer:
        def pixels() -> Any:
            side, most = self._embedder.min_side, self.settings.most_upload_pixels
            return self._embedder.transform(decode_upload(content, min_side=side, most_pixels=most))

        square = await self._decoders.run(pixels)
        try:
            vector = await self._queue.vector(square)
        except InputError as error:
            raise HTTPException(422, str(error)) from None
        found = await self._nearest(vector, wanted, set())
        return SearchAnswer.of(None, found, hashlib.sha256(content).hexdigest()[:32])

    async def _nearest(
        self, vector: Float32[np.ndarray, " D"], wanted: Wanted, exclude: set[str]
    ) -> list[Neighbour]:
        threads = self._readers if wanted.path is None else self._scanners
        look = partial(self.index.nearest, vector, wanted.top, where=wanted.condition, exclude=exclude)
        try:
            return await self.read(look, threads)
        except InputError as error:
            if wanted.condition is None or not str(error).startswith("the condition"):
                raise _unreadable(error) from None
            raise HTTPException(400, f"label or path cannot be used: {error}") from None

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(self.settings.refresh_seconds)
            try:
                self.collection = await self.read(self._refreshed)
                self.map.keep(self.collection.version)
                self.stale_since = None
            except Exception as error:  # whatever it is, perhaps it works the next time
                self.stale_since = self.stale_since or datetime.now(UTC)
                said = f"{type(error).__name__}: {' '.join(str(error).split())}"
                logging.getLogger(__name__).warning("the index cannot be refreshed: %s", said)
            self.metrics.stale.set(self.stale_since is not None)

    def _refreshed(self) -> Collection:
        self.index.refresh()
        return self.collection if self.index.version == self.collection.version else self._looked_at()

    def _looked_at(self) -> Collection:
        index = self.index
        difference = self._embedder.model.difference(index.model)
        problem = (
            f"the index was made anew with another model ({difference}); want the server started again"
            if difference
            else ""
        )
        version, rows, labels = index.version, index.count(), index.labels()
        answer = LabelsAnswer.of(rows, labels)
        known = Collection(version, rows, frozenset(labels), answer, problem)
        self.metrics.rows.set(known.rows)
        self.metrics.version.set(known.version)
        return known


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives; it is given up as soon as nobody waits for it any more."""
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


def _no_picture(name: str) -> HTTPException:
    return HTTPException(404, f"there is no picture {name[:80]!r}; want the id of one that is in the index")


def _unreadable(error: InputError) -> HTTPException:
    return HTTPException(503, str(error), {"retry-after": "5"})


def _too_slow(settings: ServiceSettings) -> HTTPException:
    late = f"there was no answer within {settings.answer_seconds:g} s; want another try when less is going on"
    return HTTPException(504, late)


Question = TypeVar("Question")
Answer = TypeVar("Answer")


@final
class KeptAnswers(Generic[Question, Answer]):
    """The answers to the last few questions, each found once. Belongs to one event loop.

    Args:
        find: what answers a question; an error goes to all who wait for the answer, and is not kept.
        most: answers that are kept, >= 1.
    """

    def __init__(self, find: Callable[[Question], Coroutine[Any, Any, Answer]], most: int) -> None:
        self._find, self._most = find, most
        self._tasks: OrderedDict[Question, asyncio.Task[Answer]] = OrderedDict()

    async def get(self, question: Question) -> Answer:
        """The answer to a question."""
        task = self._tasks.get(question)
        if task is None:
            task = self._tasks[question] = asyncio.create_task(self._find(question))
            task.add_done_callback(lambda done: self._forget_failed(question, done))
        self._tasks.move_to_end(question)
        while len(self._tasks) > self._most:
            self._tasks.popitem(last=False)
        # Whoever gives up does so for himself alone.
        return await asyncio.shield(task)

    def _forget_failed(self, question: Question, task: asyncio.Task[Answer]) -> None:
        if (task.cancelled() or task.exception()) and self._tasks.get(question) is task:
            del self._tasks[question]
