"""Answers that take a while and are kept: who asks for one that is under way waits for it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, final

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
