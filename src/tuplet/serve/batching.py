"""Bounded queues: pictures wait for the model and share its batches, other work waits for a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, final

import numpy as np
from jaxtyping import Float32, UInt8

from tuplet.errors import InputError

Embed: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""From uint8 pixels [N, 3, S, S] to vectors [N, D]."""


class QueueFullError(Exception):
    """Every place of the queue is taken; there may be one in a moment."""


@dataclass(frozen=True)
class _Waiting:
    pixels: UInt8[np.ndarray, "3 S S"]
    vector: asyncio.Future[np.ndarray]


@final
class EmbeddingQueue:
    """One thread for the model, and a queue with a fixed number of places before it.

    Belongs to one event loop. A request that was cancelled is skipped when the next batch is made.

    Args:
        embed: called in the thread, with one batch at a time.
        capacity: places, >= 1.
        batch_size: pictures at a time, at most, >= 1.
        wait_seconds: how long a picture that is alone waits for others, >= 0.
        on_taken: called with the number of places taken, whenever that changes.
        on_batch: called with the size of every batch.
    """

    def __init__(
        self,
        embed: Embed,
        *,
        capacity: int,
        batch_size: int,
        wait_seconds: float,
        on_taken: Callable[[float], object] = lambda count: None,
        on_batch: Callable[[float], object] = lambda size: None,
    ) -> None:
        self._embed, self._capacity, self._batch_size = embed, capacity, batch_size
        self._wait_seconds, self._on_taken, self._on_batch = wait_seconds, on_taken, on_batch
        self._taken = 0
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start embedding."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stop embedding; pictures that still wait never get an answer."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place of the queue for the block; raise QueueFullError where there is none."""
        if self._taken >= self._capacity:
            raise QueueFullError
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    async def vector(self, pixels: UInt8[np.ndarray, "3 S S"]) -> Float32[np.ndarray, " D"]:
        """Embed one picture, for whoever holds a place; raise InputError as `embed` does."""
        waiting = _Waiting(pixels, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        return await waiting.vector

    def _change(self, by: int) -> None:
        self._taken += by
        self._on_taken(self._taken)

    async def _work(self) -> None:
        while True:
            batch = [waiting for waiting in await self._next_batch() if not waiting.vector.done()]
            if batch:
                self._on_batch(len(batch))
                await self._answer(batch)

    async def _next_batch(self) -> list[_Waiting]:
        batch = [await self._queue.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_seconds):
                while len(batch) < self._batch_size:
                    batch.append(await self._queue.get())
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        try:
            pixels = np.stack([waiting.pixels for waiting in batch])
            vectors = await loop.run_in_executor(self._thread, self._embed, pixels)
        except Exception as error:
            if isinstance(error, InputError) and len(batch) > 1:
                for waiting in batch:  # one by one, so that only the bad picture fails
                    await self._answer([waiting])
                return
            for waiting in batch:
                if not waiting.vector.done():
                    waiting.vector.set_exception(error)
            return
        for waiting, vector in zip(batch, vectors, strict=True):
            if not waiting.vector.done():
                waiting.vector.set_result(vector)


T = TypeVar("T")


@final
class WorkThreads:
    """Some threads, and the work that waits for one. Belongs to one event loop.

    An executor alone would keep the work of a cancelled request, with its picture, until a thread is free.
    Here work waits in its request, and a thread whose request was cancelled counts as busy until it is done.

    Args:
        count: of threads, >= 1.
        name: prefix of the threads' names.
    """

    def __init__(self, count: int, name: str) -> None:
        self._free = asyncio.Semaphore(count)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """Call a function in a thread as soon as one is free, and return its result."""
        loop = asyncio.get_running_loop()

        def release(done: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop has ended before the thread
                loop.call_soon_threadsafe(self._free.release)

        await self._free.acquire()
        future = self._pool.submit(work)
        future.add_done_callback(release)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Start no more work."""
        self._pool.shutdown(wait=False, cancel_futures=True)
