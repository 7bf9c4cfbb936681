"""Answers over ranges that are closed, kept for a while. An answer is found again only by the very same question about
roll-ups that have not changed since: their version is part of the question, so nobody has to throw anything away.

The cache is never needed: while it, or the version, cannot be had, answers are made as if there was none. And no answer
waits for being kept, so the same question at once may be answered anew.
"""

import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from analytics_actors.background import Background
from gateway.metric_query import DAY_S, HOUR_S, Plan
from storage.errors import StorageError

MAX_RANGE_S = 400 * DAY_S
"""A version is made of the totals of all hours of the range: 10,000 rows, some milliseconds, at most."""

PAUSE_S = 5.0
"""After a failure the cache is left alone so long: each call may wait for its deadline."""


MAX_KEEPING = 4
"""Answers that are on their way to the cache, some MB each. What comes meanwhile is not kept."""


class AnswerStore(Protocol):
    """`storage.answer_cache.RedisAnswers`."""

    async def get(self, question: str) -> bytes | None: ...

    async def put(self, question: str, answer: bytes, *, ttl_s: int) -> None: ...


class RangeVersions(Protocol):
    """`storage.metric_reads.MetricReads`."""

    async def range_version(self, project_id: str, metric: str, start: int, end: int) -> str | None: ...


class AnswerCache:
    """One per worker. Close it."""

    def __init__(
        self,
        store: AnswerStore,
        versions: RangeVersions,
        *,
        ttl_s: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._versions = versions
        self._ttl_s = ttl_s
        self._clock = clock
        self._away_until = 0.0
        self._keeping = 0
        self._background = Background()

    async def question(self, plan: Plan) -> str | None:
        """What the answer is kept under; None when it is not to be kept. Ask before the answer is made."""
        if plan.end - plan.start > MAX_RANGE_S or self._clock() < self._away_until:
            return None
        try:
            begin = plan.start // HOUR_S * HOUR_S
            version = await self._versions.range_version(plan.project_id, plan.definition.name, begin, plan.end)
        except StorageError:
            return None
        if version is None:
            return None
        filters = [(each.name, sorted(each.values), each.negated) for each in plan.filters]
        parts = [
            *(version, plan.project_id, plan.metric, plan.version, plan.definition),
            *(plan.granularity, plan.timezone, plan.start, plan.end),
            *(plan.group_by, filters, plan.fill, plan.limit),
        ]
        return msgspec.json.encode(parts).decode()

    async def get(self, question: str) -> bytes | None:
        try:
            return await self._store.get(question)
        except StorageError:
            self._away_until = self._clock() + PAUSE_S
            return None

    def keep(self, question: str, answer: Callable[[], bytes]) -> None:
        """Soon; `answer` is called then."""
        if self._clock() >= self._away_until and self._keeping < MAX_KEEPING:
            self._keeping += 1
            self._background.spawn(self._put(question, answer), on_end=self._kept)

    async def _put(self, question: str, answer: Callable[[], bytes]) -> None:
        try:
            await self._store.put(question, answer(), ttl_s=self._ttl_s)
        except StorageError:
            self._away_until = self._clock() + PAUSE_S

    def _kept(self) -> None:
        self._keeping -= 1

    async def close(self) -> None:
        """What is not kept yet is let go."""
        await self._background.close()
