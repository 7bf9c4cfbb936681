"""Keeping answers: beside them, bounded, and never needed."""

import asyncio

from gateway.answer_cache import MAX_KEEPING, PAUSE_S, AnswerCache
from storage.errors import Unavailable
from tests.unit.fake_services import FakeAnswers


class _Held(FakeAnswers):
    """A store that takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()

    async def put(self, question: str, answer: bytes, *, ttl_s: int) -> None:
        await self.let_go.wait()
        if self.error is not None:
            raise self.error
        await super().put(question, answer, ttl_s=ttl_s)


async def _turns() -> None:
    """What is ready has its turn."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_few_answers_are_on_their_way_at_once() -> None:
    store = _Held()
    cache = AnswerCache(store, store, ttl_s=60)
    for number in range(MAX_KEEPING + 2):
        cache.keep(f"q{number}", lambda: b"answer")
    await _turns()
    assert not store.kept
    store.let_go.set()
    await _turns()
    assert list(store.kept) == [f"q{number}" for number in range(MAX_KEEPING)]
    cache.keep("later", lambda: b"answer")
    await _turns()
    assert "later" in store.kept


async def test_after_a_failure_the_store_is_left_alone_for_a_while() -> None:
    now_s = 100.0
    store = _Held()
    store.let_go.set()
    cache = AnswerCache(store, store, ttl_s=60, clock=lambda: now_s)
    store.error = Unavailable("Redis: no answer")
    cache.keep("a", lambda: b"answer")
    await _turns()
    store.error = None
    cache.keep("b", lambda: b"answer")
    await _turns()
    now_s += PAUSE_S
    cache.keep("c", lambda: b"answer")
    await _turns()
    assert list(store.kept) == ["c"]


async def test_closing_lets_go_what_is_not_kept() -> None:
    store = _Held()
    cache = AnswerCache(store, store, ttl_s=60)
    cache.keep("a", lambda: b"answer")
    await _turns()
    await cache.close()
    store.let_go.set()
    await _turns()
    assert not store.kept
