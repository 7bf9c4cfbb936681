"""The bound on what read and admin routes ask of PostgreSQL: so many at once, each with a deadline."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.errors import ApiError


class QueryGate:
    """Nothing waits at the gate: a queue of queries would only make all of them late."""

    def __init__(self, *, max_concurrent: int, deadline_s: float) -> None:
        self._max_concurrent = max_concurrent
        self._deadline_s = deadline_s
        self.running = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Raises `ApiError`: overloaded when no slot is free, unavailable when the deadline has passed."""
        if self.running >= self._max_concurrent:
            raise ApiError("overloaded", f"This worker runs {self._max_concurrent} queries already.")
        self.running += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                yield
        except TimeoutError as error:
            message = f"The answer took longer than {self._deadline_s:g} s."
            raise ApiError("unavailable", message, hint="Ask for a shorter time range, or again later.") from error
        finally:
            self.running -= 1
