"""Threads for what many ask for at a time: who gives up leaves nothing behind in their queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar, final

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
