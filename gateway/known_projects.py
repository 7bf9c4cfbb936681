"""Which projects there are, for the key that may name any."""

import asyncio
from typing import Protocol

from gateway.errors import ApiError
from storage.errors import Unavailable
from storage.registry import PROJECT_ID

WAIT_S = 0.5
"""For PostgreSQL's word. Without it the route answers as it can: it says itself what it cannot tell."""


class ProjectSource(Protocol):
    """The part of `storage.registry.Registry` that is needed."""

    async def has_project(self, project_id: str) -> bool: ...


class KnownProjects:
    """One per worker. A project is never removed: PostgreSQL is not asked again for one that was found."""

    def __init__(self, source: ProjectSource) -> None:
        self._source = source
        # Bounded by the number of projects: what was not found is not kept, as it may be created at any time.
        self._found: set[str] = set()

    async def check(self, project_id: str) -> None:
        """Raises `ApiError` not_found when there is no such project; not when nobody can tell. What cannot be the id of
        a project is none that there is: no store is asked for it, as some would fail."""
        if project_id in self._found:
            return
        try:
            async with asyncio.timeout(WAIT_S):
                exists = PROJECT_ID.fullmatch(project_id) and await self._source.has_project(project_id)
        except (Unavailable, TimeoutError):
            return
        if not exists:
            raise ApiError("not_found", "There is no project of this id.", pointer="/projectId")
        self._found.add(project_id)
