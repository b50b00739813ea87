from __future__ import annotations

import asyncio

import pytest

from tuplet.serve.service import KeptAnswers


class Counting:
    """Answers when it may, and counts how often it was asked what."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may = asyncio.Event()

    async def answer(self, question: str) -> str:
        self.asked.append(question)
        await self.may.wait()
        if question == "wrong":
            raise ValueError("no answer")
        return question.upper()


def test_a_question_under_way_is_not_asked_again() -> None:
    async def run() -> None:
        counting = Counting()
        kept = KeptAnswers(counting.answer, 2)
        waiting = [asyncio.create_task(kept.get(question)) for question in ("a", "a", "b", "a")]
        await asyncio.sleep(0)
        waiting[0].cancel()
        counting.may.set()
        assert await asyncio.gather(*waiting[1:]) == ["A", "B", "A"]
        assert await kept.get("a") == "A"
        assert counting.asked == ["a", "b"]
        await kept.get("c")
        assert await kept.get("a") == "A"
        assert await kept.get("b") == "B"
        assert counting.asked == ["a", "b", "c", "b"]  # b was asked for longest ago

    asyncio.run(run())


def test_an_error_is_for_all_who_wait_and_is_not_kept() -> None:
    async def run() -> None:
        counting = Counting()
        kept = KeptAnswers(counting.answer, 2)
        counting.may.set()
        errors = await asyncio.gather(kept.get("wrong"), kept.get("wrong"), return_exceptions=True)
        assert [str(one) for one in errors] == ["no answer"] * 2
        assert counting.asked == ["wrong"]
        with pytest.raises(ValueError, match="no answer"):
            await kept.get("wrong")
        assert counting.asked == ["wrong"] * 2

    asyncio.run(run())
