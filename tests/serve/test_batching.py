from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from functools import partial

import numpy as np
import pytest

from tuplet.errors import InputError
from tuplet.serve.batching import EmbeddingQueue, QueueFullError, WorkThreads

WAIT = 0.2


class Model:
    """The sum of each picture's pixels; waits for `may_go`, and cannot embed pictures of 13s and 99s."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.may_go.set()
        self.batches: list[list[float]] = []
        self.threads: set[int] = set()

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        assert self.may_go.wait(30)
        self.threads.add(threading.get_ident())
        self.batches.append([float(one.flatten()[0]) for one in pixels])
        if bool((pixels == 13).any()):
            raise InputError("unlucky")
        if bool((pixels == 99).any()):
            raise ZeroDivisionError
        return pixels.reshape(len(pixels), -1).sum(axis=1, keepdims=True)


def picture(number: int) -> np.ndarray:
    return np.full((3, 2, 2), number, dtype=np.float32)


def queue_of(model: Model, taken: list[float], *, capacity: int = 64, batch_size: int = 4) -> EmbeddingQueue:
    return EmbeddingQueue(
        model.embed, capacity=capacity, batch_size=batch_size, wait_seconds=WAIT, on_taken=taken.append
    )


def test_pictures_share_batches_and_each_gets_its_own_vector() -> None:
    async def go() -> None:
        model, taken = Model(), list[float]()
        queue = queue_of(model, taken)
        queue.start()
        vectors = await asyncio.gather(*(queue.vector(picture(number)) for number in range(10)))
        assert [float(one[0]) for one in vectors] == [12 * number for number in range(10)]
        assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert len(model.threads) == 1
        assert threading.get_ident() not in model.threads
        await queue.close()

    asyncio.run(go())


def test_one_bad_picture_fails_alone() -> None:
    async def go() -> None:
        model = Model()
        queue = queue_of(model, [])
        queue.start()
        answers = await asyncio.gather(
            *(queue.vector(picture(number)) for number in (12, 13, 14)), return_exceptions=True
        )
        assert isinstance(answers[1], InputError)
        assert [float(one[0]) for one in (answers[0], answers[2])] == [144, 168]  # type: ignore[index]
        assert model.batches == [[12, 13, 14], [12], [13], [14]]
        await queue.close()

    asyncio.run(go())


def test_cancelled_pictures_are_skipped_and_their_places_are_free() -> None:
    async def go() -> None:
        model, taken = Model(), list[float]()
        model.may_go.clear()
        queue = queue_of(model, taken, capacity=3, batch_size=1)
        queue.start()

        async def asked(number: int) -> np.ndarray:
            with queue.place():
                return await queue.vector(picture(number))

        tasks = [asyncio.create_task(asked(number)) for number in (1, 2, 3)]
        await asyncio.sleep(2 * WAIT)
        with pytest.raises(QueueFullError), queue.place():
            pass
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        with queue.place():
            pass
        model.may_go.set()
        assert float((await tasks[0])[0]) == 12
        assert float((await tasks[2])[0]) == 36
        assert model.batches == [[1], [3]]
        assert (max(taken), taken[-1]) == (3, 0)
        # A defect of the model reaches whoever asked, and the queue goes on.
        with pytest.raises(ZeroDivisionError):
            await queue.vector(picture(99))
        assert float((await asked(5))[0]) == 60
        await queue.close()

    asyncio.run(go())


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


def test_cancelled_work_is_not_held() -> None:
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
