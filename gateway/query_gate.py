"""The bound on what read and admin routes ask of the databases: so many at once, each with a deadline."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.errors import ApiError


class QueryGate:
    """By default nothing waits at the gate: a queue of queries would only make all of them late. A gate for many
    short ones may have a short queue, in which a burst waits for a moment instead of being refused."""

    def __init__(
        self, *, max_concurrent: int, deadline_s: float, max_waiting: int = 0, longest_wait_s: float = 0.0
    ) -> None:
        self._max_concurrent = max_concurrent
        self._deadline_s = deadline_s
        self._max_waiting = max_waiting
        self._longest_wait_s = longest_wait_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.running = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Raises `ApiError`: overloaded when no slot gets free, unavailable when the deadline has passed."""
        if self.running >= self._max_concurrent:
            await self._wait()
        else:
            self.running += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                yield
        except TimeoutError as error:
            message = f"The answer took longer than {self._deadline_s:g} s."
            raise ApiError("unavailable", message, hint="Ask for a shorter time range, or again later.") from error
        finally:
            self._hand_on()

    async def _wait(self) -> None:
        """Return with a slot, which stays counted as running when it changes hands."""
        if len(self._waiting) >= self._max_waiting:
            raise self._overloaded()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._longest_wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._hand_on()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise self._overloaded() from error
            raise

    def _hand_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _overloaded(self) -> ApiError:
        return ApiError("overloaded", f"This worker runs {self._max_concurrent} queries already.")
