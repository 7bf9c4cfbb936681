"""The bound on what read and admin routes ask of the databases: so many at once, each with a deadline."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.errors import ApiError
from gateway.project_turns import ProjectTurns


class QueryGate:
    """By default nothing waits at the gate: a queue of queries would only make all of them late. A gate for many
    short ones may have a short queue, in which a burst waits for a moment instead of being refused."""

    def __init__(
        self, *, max_concurrent: int, deadline_s: float, max_waiting: int = 0, longest_wait_s: float = 0.0
    ) -> None:
        self._turns = ProjectTurns(max_concurrent, max_waiting=max_waiting, longest_wait_s=longest_wait_s)
        self._deadline_s = deadline_s

    @asynccontextmanager
    async def slot(self, project_id: str) -> AsyncIterator[None]:
        """Raises `ApiError`: overloaded when no slot gets free, unavailable when the deadline has passed."""
        async with self._turns.place(project_id):
            try:
                async with asyncio.timeout(self._deadline_s):
                    yield
            except TimeoutError as error:
                message = f"The answer took longer than {self._deadline_s:g} s."
                raise ApiError("unavailable", message, hint="Ask for a shorter time range, or again later.") from error
