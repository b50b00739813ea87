from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from functools import partial

import pytest

from tuplet.serve.batching import WorkThreads


class Work:
    """What a thread is asked for; waits for `may_go`."""

    def __init__(self, may_go: threading.Event) -> None:
        self.may_go = may_go

    def done(self) -> str:
        assert self.may_go.wait(30)
        return threading.current_thread().name


async def begun(threads: WorkThreads, work: Work) -> asyncio.Task[str]:
    task = asyncio.create_task(threads.run(work.done))
    await asyncio.sleep(0)
    return task


def test_work_is_done_in_the_threads_and_what_it_raises_is_raised() -> None:
    async def go() -> None:
        threads, may_go = WorkThreads(2, "of-two"), threading.Event()
        may_go.set()
        names = await asyncio.gather(*(threads.run(Work(may_go).done) for _ in range(20)))
        assert all(name.startswith("of-two") for name in names)
        assert len(set(names)) <= 2
        with pytest.raises(ZeroDivisionError):
            await threads.run(partial(divmod, 1, 0))
        assert await threads.run(partial(divmod, 7, 2)) == (3, 1)
        threads.close()
        with pytest.raises(RuntimeError):
            await threads.run(partial(divmod, 7, 2))

    asyncio.run(go())


def test_who_gives_up_leaves_nothing_behind() -> None:
    async def go() -> None:
        threads, may_go = WorkThreads(2, "work"), threading.Event()
        busy = [await begun(threads, Work(may_go)) for _ in range(2)]
        left = []
        for _ in range(50):
            work = Work(may_go)
            left.append(weakref.ref(work))
            task = await begun(threads, work)
            del work
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        del task
        await asyncio.sleep(0.01)  # the loop itself keeps the last one for a moment
        gc.collect()
        assert [one() for one in left] == [None] * 50
        # A thread that was given up is busy until it is done: nothing more is handed to the pool.
        busy[0].cancel()
        waiting = weakref.ref(work := Work(may_go))
        task = await begun(threads, work)
        del work
        await asyncio.sleep(0.05)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del task
        await asyncio.sleep(0.01)  # the loop itself keeps the last one for a moment
        gc.collect()
        assert waiting() is None
        last = await begun(threads, Work(may_go))
        may_go.set()
        assert (await busy[1]).startswith("work")
        assert (await last).startswith("work")
        threads.close()

    asyncio.run(go())
