"""Answers that may be a moment old, for routes that anybody may call as often as they like."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Asks at most once in `ttl_s`, and once for all who wait at the time."""

    def __init__(
        self, ask: Callable[[], Awaitable[T]], *, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = asyncio.Lock()
        self._answer: tuple[float, T] | None = None

    async def get(self) -> T:
        async with self._lock:
            if self._answer is None or self._clock() - self._answer[0] >= self._ttl_s:
                self._answer = (self._clock(), await self._ask())
            return self._answer[1]
