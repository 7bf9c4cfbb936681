"""Places for what projects ask: one project's many or slow questions leave the others a place, and a turn (IS-1)."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.errors import ApiError


class ProjectTurns:
    """So many questions at once, of one project one fewer. Others wait for a moment, each project in its own line; a
    place that gets free is the next project's. When too many wait, the last in the longest line goes."""

    def __init__(self, places: int, *, max_waiting: int = 0, longest_wait_s: float = 0.0) -> None:
        self._places = places
        self._places_of_one = max(1, places - 1)
        self._max_waiting = max_waiting
        self._longest_wait_s = longest_wait_s
        self._running: Counter[str] = Counter()
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        """Of waiting projects, the one whose turn is next first; none is empty."""

    @asynccontextmanager
    async def place(self, project_id: str) -> AsyncIterator[None]:
        """Raises `ApiError` overloaded when no place gets free."""
        await self._wait(project_id)
        try:
            yield
        finally:
            self._give_back(project_id)

    async def _wait(self, project_id: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(project_id, deque()).append(turn)
        self._hand_on()
        if sum(map(len, self._lines.values())) > self._max_waiting:
            # Of equal lines the last, which is where a project that comes anew is.
            longest = max(reversed(self._lines), key=lambda each: len(self._lines[each]))
            last = self._lines[longest][-1]
            self._leave(longest, last)
            last.set_exception(self._overloaded())
        try:
            async with asyncio.timeout(self._longest_wait_s):
                # Who goes away leaves the line below, and not a moment before: it may be given a place meanwhile.
                await asyncio.shield(turn)
        except BaseException as error:
            if not turn.done():
                self._leave(project_id, turn)
            elif turn.exception() is None:
                self._give_back(project_id)
            if isinstance(error, TimeoutError):
                raise self._overloaded() from error
            raise

    def _hand_on(self) -> None:
        """At most one place is free for somebody who waits: each that gets free is handed on at once."""
        if self._running.total() >= self._places:
            return
        for project_id, line in self._lines.items():
            if self._running[project_id] < self._places_of_one:
                self._running[project_id] += 1
                line[0].set_result(None)
                self._leave(project_id, line[0])
                if line:
                    self._lines[project_id] = self._lines.pop(project_id)
                return

    def _leave(self, project_id: str, turn: "asyncio.Future[None]") -> None:
        self._lines[project_id].remove(turn)
        if not self._lines[project_id]:
            del self._lines[project_id]

    def _give_back(self, project_id: str) -> None:
        self._running[project_id] -= 1
        if not self._running[project_id]:
            del self._running[project_id]
        self._hand_on()

    def _overloaded(self) -> ApiError:
        return ApiError("overloaded", "This worker runs as many queries at once as it may, or as many of the project.")
