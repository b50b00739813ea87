"""A bounded queue before the model: pictures of several requests become one batch, too many are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from tuplet.errors import InputError

Embed: TypeAlias = Callable[[Tensor], np.ndarray]
"""From uint8 pixels [N, 3, S, S] to vectors [N, D]."""


class QueueFullError(Exception):
    """Every place of the queue is taken; there may be one in a moment."""


@dataclass(frozen=True)
class _Waiting:
    pixels: UInt8[Tensor, "3 S S"]
    vector: asyncio.Future[np.ndarray]


@final
class EmbeddingQueue:
    """One thread for the model, and a queue with a fixed number of places before it.

    Belongs to one event loop. Whoever gives up waiting is passed over when the next batch is made.

    Args:
        embed: called in the thread, with one batch at a time.
        capacity: places, >= 1.
        batch_size: pictures at a time, at most, >= 1.
        wait_seconds: how long a picture that is alone waits for others, >= 0.
        taken: told how many places are taken, whenever that changes.
        batched: told the size of every batch.
    """

    def __init__(
        self,
        embed: Embed,
        *,
        capacity: int,
        batch_size: int,
        wait_seconds: float,
        taken: Callable[[float], object] = lambda count: None,
        batched: Callable[[float], object] = lambda size: None,
    ) -> None:
        self._embed, self._capacity, self._batch_size = embed, capacity, batch_size
        self._wait_seconds, self._tell_taken, self._tell_batch = wait_seconds, taken, batched
        self._taken = 0
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Nothing; pictures are embedded from now on."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Nothing; no more pictures are embedded, and those that wait never get an answer."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Nothing; within it one place of the queue is held. Raises QueueFullError."""
        if self._taken >= self._capacity:
            raise QueueFullError
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    async def vector(self, pixels: UInt8[Tensor, "3 S S"]) -> Float32[np.ndarray, " D"]:
        """The vector of one picture, called by whoever holds a place; raises InputError as `embed` does."""
        waiting = _Waiting(pixels, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        return await waiting.vector

    def _change(self, by: int) -> None:
        self._taken += by
        self._tell_taken(self._taken)

    async def _work(self) -> None:
        while True:
            batch = [one for one in await self._next_batch() if not one.vector.done()]
            if batch:
                self._tell_batch(len(batch))
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
        pixels = torch.stack([one.pixels for one in batch])
        try:
            vectors = await loop.run_in_executor(self._thread, self._embed, pixels)
        except Exception as error:
            if isinstance(error, InputError) and len(batch) > 1:
                for one in batch:  # whose picture it was; the others get their answer
                    await self._answer([one])
                return
            for one in batch:
                if not one.vector.done():
                    one.vector.set_exception(error)
            return
        for one, vector in zip(batch, vectors, strict=True):
            if not one.vector.done():
                one.vector.set_result(vector)


T = TypeVar("T")


@final
class WorkThreads:
    """Some threads, and those who wait for one. Belongs to one event loop.

    A pool alone would keep the work of whoever gave up, and the picture that it is about, until a thread is
    free. Here work waits outside, with who asked for it, and a thread that was given up counts as busy until
    it is done.

    Args:
        count: of threads, >= 1.
        name: that theirs begin with.
    """

    def __init__(self, count: int, name: str) -> None:
        self._free = asyncio.Semaphore(count)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """What a function gives, called in a thread as soon as one is free."""
        loop = asyncio.get_running_loop()

        def give_back(done: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop has ended before the thread
                loop.call_soon_threadsafe(self._free.release)

        await self._free.acquire()
        future = self._pool.submit(work)
        future.add_done_callback(give_back)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Nothing; no more work begins."""
        self._pool.shutdown(wait=False, cancel_futures=True)
