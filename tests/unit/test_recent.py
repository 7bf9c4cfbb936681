"""`Recent`: one question for all who wait, and again after its time."""

import asyncio

import pytest

from gateway.recent import Recent


class Question:
    def __init__(self) -> None:
        self.asked = 0
        self.fails = False

    async def __call__(self) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        if self.fails:
            raise OSError
        return self.asked


async def test_asks_once_for_all_who_wait_and_again_later() -> None:
    now = [0.0]
    question = Question()
    recent = Recent(question, ttl_s=1.0, clock=lambda: now[0])
    assert await asyncio.gather(*(recent.get() for _ in range(5))) == [1] * 5
    now[0] += 0.9
    assert await recent.get() == 1
    now[0] += 0.2
    assert await recent.get() == 2


async def test_a_failure_is_not_kept() -> None:
    question = Question()
    recent = Recent(question, ttl_s=1.0)
    question.fails = True
    with pytest.raises(OSError):
        await recent.get()
    question.fails = False
    assert await recent.get() == 2
